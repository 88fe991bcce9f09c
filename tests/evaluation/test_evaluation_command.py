"""`python -m captioning.evaluation` as a shell runs it: scores, a table, and one sentence on a mistake."""

import json
from pathlib import Path

import pytest

from captioning.evaluation.__main__ import main
from captioning.evaluation.java import JavaScores
from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.outputs import format_of

CANDIDATES = [{"image_id": 1, "caption": "A dog runs."}, {"image_id": 2, "caption": "Two cats sleep."}]
REFERENCES = [(1, "A dog is running."), (1, "The dog runs."), (2, "Two cats sleep on a bed."), (3, "A man.")]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes both files into the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)

    def write(candidates=CANDIDATES, references=REFERENCES[:3]):
        annotations = [{"image_id": picture, "caption": caption} for picture, caption in references]
        (tmp_path / "results.json").write_text(json.dumps(candidates))
        (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations}))
        return tmp_path

    return write


def run(capsys, *options: str, results: str = "results.json") -> tuple[object, str, str]:
    status: object = 0
    try:
        main([results, "captions.json", *options])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


def test_scores_are_written_and_a_table_is_printed(files, capsys):
    folder = files()
    status, out, err = run(capsys, "--no-java", "--output", "out/scores.json")
    assert (status, err) == (0, "")
    scores = json.loads((folder / "out" / "scores.json").read_text())
    assert list(scores) == [
        *("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"),
        *("intervals", "variety", "signature", "left_out", "per_picture"),
    ]
    assert [row["image_id"] for row in scores["per_picture"]] == [1, 2]
    assert f"CIDEr   {100 * scores['CIDEr']:8.2f}" in out
    assert "2 pictures" in out and "out/scores.json" in out


def test_what_is_left_out_is_said_once_and_recorded(files, capsys, monkeypatch):
    folder = files()
    sentence = "SPICE is left out, since its models are not there"
    found = JavaScores({"METEOR": 0.25}, {"METEOR": [0.2, 0.3]}, {"java": "17"}, [sentence])
    monkeypatch.setattr("captioning.evaluation.scoring.java_scores", lambda candidates, references: found)
    status, out, err = run(capsys)
    assert status == 0
    assert err.count(sentence) == 1
    assert "METEOR     25.00" in out
    assert json.loads((folder / "scores.json").read_text())["left_out"] == [sentence]


def test_no_file_is_replaced_unasked_and_never_one_that_is_scored(files, capsys):
    folder = files()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for own in ("results.json", "captions.json", "./results.json"):
        status, _, _ = run(capsys, "--no-java", "--output", own, "--overwrite")
        assert "is one of the files to be scored" in status
    (folder / "scores.json").write_text("mine")
    status, _, _ = run(capsys, "--no-java")
    assert "scores.json exists already; replace it with --overwrite" in status
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**before, "scores.json": b"mine"}
    assert run(capsys, "--no-java", "--overwrite")[0] == 0


def test_ids_that_differ_only_in_kind_are_of_one_picture(files, capsys):
    files(CANDIDATES)
    _, expected, _ = run(capsys, "--no-java", "--output", "by_number.json")
    files([{**row, "image_id": str(row["image_id"])} for row in CANDIDATES])
    status, table, _ = run(capsys, "--no-java", "--output", "by_text.json")
    assert status == 0 and table.splitlines()[:-1] == expected.splitlines()[:-1]


def written_by_predict(name: str, rows: list[CaptionedPicture]) -> None:
    with Path(name).open("wb") as file:
        made = format_of(name)(file)
        for row in rows:
            made.add(row)
        made.finish()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ""])
def test_what_predict_writes_is_matched_by_file_name_or_by_id(files, capsys, suffix):
    files()
    expected = run(capsys, "--no-java", "--output", "expected.json")[1].splitlines()[:-1]
    images = [{"id": 1, "file_name": "train/dog.jpg"}, {"id": 2, "file_name": "2=\\two cats.jpg"}]
    annotations = json.loads(Path("captions.json").read_text()) | {"images": images}
    Path("captions.json").write_text(json.dumps(annotations))
    for of_dog, of_cats in (
        ({"path": "photos/dog.jpg"}, {"path": "a/two cats.png"}),
        ({"image_id": 1}, {"image_id": "2"}),
    ):
        rows = [
            CaptionedPicture(**{"place": 0, "path": "x.jpg"} | of_dog, caption="A dog runs.", log_probability=-1),
            CaptionedPicture(**{"place": 1, "path": "=y.jpg"} | of_cats, caption="Two cats sleep."),
        ]
        written_by_predict(f"mine{suffix}", rows)
        status, table, _ = run(capsys, "--no-java", "--overwrite", results=f"mine{suffix}")
        assert status == 0 and table.splitlines()[:-1] == expected
    assert [row["image_id"] for row in json.loads(Path("scores.json").read_text())["per_picture"]] == [1, 2]


def write_rows(name: str, captions: list[str]) -> None:
    rows = [{"image_id": number + 1, "caption": caption} for number, caption in enumerate(captions)]
    Path(name).write_text(json.dumps(rows))


def test_two_files_are_compared_with_intervals_and_a_paired_test(files, capsys):
    pairs = [(f"a dog number {n} runs", f"a dog number {n} runs on grass") for n in range(30)]
    files(references=[(n + 1, text) for n, pair in enumerate(pairs) for text in pair])
    write_rows("results.json", ["a dog runs"] * 30)
    write_rows("better.json", [first if n % 4 else f"the dog {n}" for n, (first, _) in enumerate(pairs)])
    train = {"annotations": [{"image_id": 9, "caption": "A dog number 3 runs."}]}
    Path("captions_train.json").write_text(json.dumps(train))
    arguments = ["results.json", "better.json", "captions.json", "--no-java", "--training", "captions_train.json"]
    main(arguments)
    out = capsys.readouterr().out
    both = json.loads(Path("comparison.json").read_text())
    first, second = both["files"]
    assert (first["file"], second["file"]) == ("results.json", "better.json")
    assert first["variety"] == {"distinct": 1 / 30, "vocabulary": 3, "novel": 1.0}
    assert second["variety"]["novel"] == 29 / 30 and "96.7% not among the training captions" in out
    for name in ("Bleu_4", "CIDEr", "ROUGE_L"):
        found = both["second less first"][name]
        assert found["difference"] == pytest.approx(second[name] - first[name])
        assert found["low"] <= found["difference"] <= found["high"] and found["p"] < 0.01
        low, high = second["intervals"][name]
        assert low <= second[name] <= high
    with pytest.raises(SystemExit, match="4 files of results were named"):
        main(["results.json"] * 4 + ["captions.json"])
    write_rows("better.json", ["a dog runs"] * 29)
    with pytest.raises(SystemExit, match=r"better\.json and captions\.json don't belong together: picture 30 has"):
        main([*arguments, "--overwrite"])
    main([*arguments, "--overwrite", "--only-captioned"])
    both = json.loads(Path("comparison.json").read_text())
    assert both["signature"]["pictures"] == 29 and both["second less first"]["CIDEr"]["p"] == 1


NAMED = [{"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/1.jpg"}, {"id": 3, "file_name": "2.jpg"}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.jsonl", '{"path": "c/1.jpg", "caption": "a"}', r"c/1.jpg may be picture 1 (a/1.jpg) or 2 (b/1.jpg)"),
        ("x.json", '[{"image_id": "2", "caption": "a"}]', r"2 may be picture 2 (b/1.jpg) or 3 (2.jpg)"),
        ("x.csv", "path,caption\na/1.jpg,a\n/p/a/1.jpg,a", "a/1.jpg and /p/a/1.jpg are both picture 1; keep one"),
        ("x.csv", "path,caption\n4.jpg,a", "picture 4.jpg has a candidate but no references"),
        ("x.csv", "path,caption\n2.jpg,a,b", "x.csv:2: this row has 3 cells, and the first line names 2 columns"),
        (
            "x.csv",
            "name;caption\n2.jpg;a",
            "x.csv:1: the first line must name the columns caption, and path or image_id",
        ),
        ("x.csv", 'path,caption\n"2.jpg,a', "x.csv:2: a quotation mark opens here and is not closed"),
        ("x.jsonl", '{"path": "2.jpg", "caption": "a"}\n{"pa', "x.jsonl:2: this is no JSON object"),
        ("x.jsonl", '{"path": "2.jpg", "error": "cut"}', "there are no candidates to score"),
    ],
)
def test_a_row_that_may_mean_several_pictures_or_none_is_refused_by_name(files, capsys, name, content, sentence):
    files(references=[(1, "A dog."), (2, "A cat."), (3, "A man.")])
    annotations = json.loads(Path("captions.json").read_text()) | {"images": NAMED}
    Path("captions.json").write_text(json.dumps(annotations))
    Path(name).write_text(content)
    status, *_ = run(capsys, "--no-java", results=name)
    assert sentence in status and "\n" not in status


def test_empty_candidates_are_scored_and_counted(files, capsys):
    files([CANDIDATES[0], {"image_id": 2, "caption": " \n"}])
    status, _, err = run(capsys, "--no-java")
    assert status == 0
    assert err == "warning: 1 candidates hold no word, and so score nothing; were they captioned?\n"


def test_pictures_without_a_candidate_are_refused_or_left_out(files, capsys):
    folder = files(references=REFERENCES)
    status, _, _ = run(capsys, "--no-java")
    assert "picture 3 has references but no candidate" in status
    assert "--only-captioned" in status
    assert run(capsys, "--no-java", "--only-captioned", "--overwrite")[0] == 0
    assert json.loads((folder / "scores.json").read_text())["signature"]["pictures"] == 2


@pytest.mark.parametrize(
    ("candidates", "sentence"),
    [
        ([*CANDIDATES, {"image_id": 9, "caption": "a"}], "picture 9 has a candidate but no references"),
        ([*CANDIDATES, CANDIDATES[0]], "picture 1 has a candidate already"),
        ({"a": 1}, "not a list"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(files, capsys, candidates, sentence):
    folder = files(candidates)
    (folder / "scores.json").write_text("older")
    status, out, _ = run(capsys, "--no-java")
    assert sentence in status and status.startswith("error: ") and "\n" not in status
    assert out == ""
    assert (folder / "scores.json").read_text() == "older"
    assert sorted(path.name for path in folder.iterdir()) == ["captions.json", "results.json", "scores.json"]


def test_an_output_that_cannot_be_written_is_refused(files, capsys):
    folder = files()
    (folder / "taken").mkdir()
    assert (
        "--output taken is a folder; name a file, for example taken/scores.json"
        in run(capsys, "--no-java", "--output", "taken")[0]
    )
    assert "can't be written" in run(capsys, "--no-java", "--output", "results.json/scores.json")[0]
