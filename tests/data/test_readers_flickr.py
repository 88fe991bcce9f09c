"""Text files of Flickr8k and Flickr30k, and every way in which one can be malformed."""

import csv

import pytest
from data_sets import by_id, flickr8k, flickr30k, heard, write  # noqa: F401  # `heard` is a fixture for all

from captioning.data.datasets import find_photographs
from captioning.data.readers.flickr import csv_rows_8k, csv_rows_30k
from captioning.errors import UserError

TOKENS = "Flickr8k_text/Flickr8k.token.txt"


def captions_by_split(photographs):
    return {(p.image_id, p.split): p.captions for p in photographs}


# Flickr8k


def test_the_lists_of_flickr8k_say_the_splits(tmp_path):
    photographs = find_photographs("flickr8k", flickr8k(tmp_path))
    splits = {p.image_id: p.split for p in photographs}
    assert splits == {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val", "d.jpg": "test"}
    assert photographs[0].captions == ("caption 0 of a .", "caption 1 of a .")


def test_oddities_of_token_files_are_tolerated_and_counted(tmp_path, caplog):
    rows = (
        "\ufeffa.jpg#0\ta  dog, #1 \t of\u20282 ",
        "",
        "a.jpg#0\ta  dog, #1 \t of\u20282 ",  # repeated
        "a.jpg#1\ta dog, #1 of 2",  # said by somebody else
        "a.jpg#2\t",
        "b.png #0\tb",
        "c.jpg#0\tc",
        "d.jpg#0\tin no list",
        "2258277193_586949ec62.jpg.1#0\tno photograph",
    )
    write(flickr8k(tmp_path) / TOKENS, *rows, end="\r\n")
    write(
        tmp_path / "Flickr8k_text/Flickr_8k.trainImages.txt",
        "a.jpg ",
        "\tb.png",
        "nothing.jpg",
        "a.jpg",
        "",
        end="\r\n",
    )
    write(tmp_path / "Flickr8k_text/Flickr_8k.testImages.txt")
    photographs = captions_by_split(find_photographs("flickr8k", tmp_path))
    assert photographs == {
        ("a.jpg", "train"): ("a dog, #1 of 2", "a dog, #1 of 2"),
        ("b.png", "train"): ("b",),
        ("c.jpg", "val"): ("c",),
    }
    for oddity in (
        "1 names in Flickr_8k.trainImages.txt without a caption left out",
        "1 repeated rows left out",
        "1 empty captions left out",
        "1 rows of 2258277193_586949ec62.jpg.1, which is no photograph, left out",
        "1 photographs in no split list unused",
    ):
        assert oddity in caplog.text


@pytest.mark.parametrize("row", ["a.jpg\tno number", "a.jpg#0 no tab", "words alone", "#0\tno name"])
def test_a_malformed_token_row_is_named_with_its_line(tmp_path, row):
    write(flickr8k(tmp_path) / TOKENS, "a.jpg#0\tfine", "", row)
    with pytest.raises(UserError, match=r"token\.txt:3: this is not 'NAME#NUMBER<tab>CAPTION'"):
        find_photographs("flickr8k", tmp_path)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    write(flickr8k(tmp_path, lists=False) / TOKENS, "../../secret.jpg#0\twords")
    with pytest.raises(UserError, match=r"token\.txt:1 names the file '\.\./\.\./secret\.jpg', which leads out of"):
        find_photographs("flickr8k", tmp_path)


def test_a_name_in_two_lists_is_refused_with_both_places(tmp_path):
    write(flickr8k(tmp_path) / "Flickr8k_text/Flickr_8k.testImages.txt", "d.jpg", "a.jpg")
    with pytest.raises(
        UserError, match=r"a\.jpg is in train \(.*trainImages\.txt:1\) and in test \(.*testImages\.txt:2\)"
    ):
        find_photographs("flickr8k", tmp_path)


def test_one_list_without_the_others_is_refused(tmp_path):
    (flickr8k(tmp_path) / "Flickr8k_text/Flickr_8k.devImages.txt").unlink()
    with pytest.raises(
        UserError, match=r"trainImages\.txt is there, but Flickr_8k\.devImages\.txt is not; add it, or remove"
    ):
        find_photographs("flickr8k", tmp_path)


def test_kaggles_captions_may_be_quoted_or_not(tmp_path):
    path = write(
        tmp_path / "captions.txt",
        "\ufeffimage,caption",
        'a.jpg,"one , two"',
        "a.jpg,one , two",
        'a.jpg,"a sign "" sale "" hangs"',
        'a.jpg,"sale" is on the "sign"',
        "a.jpg,a 6' 2\" man, tall",
        'a.jpg,"A dog runs,',
        'and a ""cat""."',
        "",
        '"b, c.jpg",no, comma',
        '"b, c.jpg" , "two"',
        "a.jpg,",
        end="\r\n",
    )
    assert [row.text for row in csv_rows_8k(path)] == [
        "one , two",
        "one , two",
        'a sign " sale " hangs',
        '"sale" is on the "sign"',
        "a 6' 2\" man, tall",
        'A dog runs,\r\nand a "cat".',
        "no, comma",
        "two",
        "",
    ]
    assert [(row.name, row.line) for row in csv_rows_8k(path)][4:] == [
        *[("a.jpg", 6), ("a.jpg", 7), ("b, c.jpg", 10), ("b, c.jpg", 11), ("a.jpg", 12)]
    ]


def test_csv_written_by_the_csv_module_is_read_back(tmp_path):
    rows = [("a,b.jpg", "one\ntwo"), ('a "b".jpg', 'he said "no",'), ("c.jpg", "plain, with comma"), ("d|e.jpg", " | ")]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        with (tmp_path / "captions.txt").open("w", newline="") as file:
            csv.writer(file, quoting=quoting).writerows([("image", "caption"), *rows])
        read = [(row.name, row.text) for row in csv_rows_8k(tmp_path / "captions.txt")]
        assert read == [(name, text.strip()) for name, text in rows]
        with (tmp_path / "results.csv").open("w", newline="") as file:
            head = ("image_name", "comment_number", "comment")
            csv.writer(file, delimiter="|", quoting=quoting).writerows(
                [head, *((name, number, text) for number, (name, text) in enumerate(rows))]
            )
        read = [(row.name, row.number, row.text) for row in csv_rows_30k(tmp_path / "results.csv")]
        assert read == [(name, number, text.strip()) for number, (name, text) in enumerate(rows)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.jpg,words"], r"captions\.txt:1: the first line is 'a\.jpg,words', not 'image,caption'"),
        (["image,caption", "", "words alone"], r"captions\.txt:3: this is not 'image,caption': 'words alone'"),
        (["image,caption", ",words"], r"captions\.txt:2: this is not 'image,caption': ',words'"),
        (
            ["image,caption", 'a.jpg,"One', 'b.jpg,two " x', 'c.jpg,"three', "four."],
            r"txt:2: a quotation mark opens here",
        ),
        (
            ["image,caption", "a.jpg,1", 'c.jpg,"three', "four."],
            r"txt:3: .* not closed: '\"three'; close it at the end",
        ),
        (["image,caption", '"a.jpg,1', "c.jpg,three"], r"txt:2: a quotation mark opens here and is not closed"),
    ],
)
def test_a_malformed_row_of_kaggles_captions_is_named_with_its_line(tmp_path, lines, message):
    write(tmp_path / "captions.txt", *lines)
    with pytest.raises(UserError, match=message):
        find_photographs("flickr8k", tmp_path)


# Flickr30k


def test_a_row_without_its_second_bar_is_mended(tmp_path):
    path = flickr30k(tmp_path) / "results.csv"
    path.write_text(path.read_text() + "d.jpg| 4   A dog .\n" + "d.jpg| 5| or | a bar\n")
    assert by_id(find_photographs("flickr30k", tmp_path))["d.jpg"].captions[2:] == ("A dog .", "or | a bar")


@pytest.mark.parametrize("row", ["d.jpg 4 A dog .", "d.jpg| A dog .", "| 3| A dog", "d.jpg| 4"])
def test_other_malformed_rows_of_results_csv_are_named_with_their_line(tmp_path, row):
    path = flickr30k(tmp_path) / "results.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(UserError, match=r"results\.csv:10: this is not 'NAME\| NUMBER\| CAPTION'"):
        find_photographs("flickr30k", tmp_path)


def test_results_csv_needs_its_header(tmp_path):
    write(tmp_path / "results.csv", "a.jpg| 0| words")
    with pytest.raises(UserError, match=r"results\.csv:1: the first line is .*, not 'image_name\| comment_number"):
        find_photographs("flickr30k", tmp_path)


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_the_lists_of_flickr30k_entities_may_leave_out_the_extension(tmp_path, ending):
    flickr30k(tmp_path)
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        write(tmp_path / f"{split}.txt", *(name + ending for name in names))
    splits = {p.image_id: p.split for p in find_photographs("flickr30k", tmp_path)}
    assert splits == {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val", "d.jpg": "test"}


# Real files


@pytest.mark.parametrize("dataset", ["flickr8k", "flickr30k"])
def test_the_layouts_of_real_flickr_data_agree(shared_data, dataset):
    official, other, kaggle = (
        captions_by_split(find_photographs(dataset, shared_data / dataset, layout))
        for layout in ("official", "karpathy", "kaggle")
    )
    assert {key: sorted(captions) for key, captions in official.items()} == {
        key: sorted(captions) for key, captions in other.items()
    }
    assert {key: sorted(captions) for key, captions in official.items()} == {
        key: sorted(captions) for key, captions in kaggle.items()
    }
    counts = [sum(split == name for _, split in official) for name in ("train", "val", "test")]
    assert counts == {"flickr8k": [753, 80, 33], "flickr30k": [60, 10, 10]}[dataset]
    assert sum(map(len, official.values())) == {"flickr8k": 4330, "flickr30k": 400}[dataset]


def test_all_rows_of_the_flickr8k_text_are_accounted_for(shared_data, caplog):
    photographs = find_photographs("flickr8k", shared_data / "flickr8k-full-text")
    assert [sum(p.split == split for p in photographs) for split in ("train", "val", "test")] == [6074, 1013, 1013]
    assert "5 rows of 2258277193_586949ec62.jpg.1, which is no photograph" in caplog.text
    assert "94 photographs in no split list unused" in caplog.text


def test_a_listed_name_that_two_files_have_is_refused(tmp_path):
    write(flickr8k(tmp_path) / TOKENS, "a.jpg#0\ta", "a.png#0\tb", "b.jpg#0\tc", "c.jpg#0\td", "d.jpg#0\te")
    write(tmp_path / "Flickr8k_text/Flickr_8k.trainImages.txt", "b", "a")
    with pytest.raises(UserError, match=r"trainImages\.txt:2: a may be a\.jpg or a\.png; write the suffix"):
        find_photographs("flickr8k", tmp_path)
