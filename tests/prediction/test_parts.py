"""Large inputs into folders of files: what is read, what is written, what is gone on from, what is refused."""

import io
import json
import os
import resource
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
from parts import jpeg, rows_in, tar_of, tars
from small_runs import SMOKE, composed
from support import prediction

from captioning.data import images
from captioning.data.images import UnreadablePicture, fetched
from captioning.data.index import Columns
from captioning.errors import UserError
from captioning.prediction import engines
from captioning.prediction import parts as parts_module
from captioning.prediction.engines import Failure, Rows, in_order
from captioning.prediction.inputs import Shard, Url, find_inputs
from captioning.prediction.journal import NOTHING, CaptionedPicture, Journal
from captioning.prediction.outputs import elsewhere
from captioning.prediction.parts import Choice, Part, PartFiles, Reading, parts_of
from captioning.prediction.run import predict
from captioning.training.run import train


@pytest.fixture(scope="module")
def run_dir(once) -> Path:
    return once("a run", lambda folder: train(composed(folder, run=SMOKE)))


@pytest.fixture
def make(run_dir, tmp_path):
    """Captions an input into a folder of tmp_path, by keys."""

    def made(source, output="out/", *given):
        given = (f"cache={tmp_path / 'cache'}", "decoding.max_new_tokens=4", "batch_size=4", *given)
        output = output if "://" in output else f"{tmp_path}/{output}"
        return predict(prediction(run_dir, source, output, *given))

    return made


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return tars(tmp_path_factory.mktemp("shards") / "in", shards=3, pictures=5)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_shard_becomes_a_file_that_its_own_readers_read_back(make, shards, tmp_path):
    parquet, webdataset = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("webdataset")
    datasets = pytest.importorskip("datasets")
    for kind in ("jsonl", "csv", "parquet", "tar"):
        assert make(shards, f"{kind}/", f"format={kind}").captioned == 15
        names = {f"0000{i}.{kind}" for i in range(3)} | {"_settings.json", "_manifest.json", "_SUCCESS"}
        assert {path.name for path in (tmp_path / kind).iterdir()} == names
    manifest = json.loads((tmp_path / "tar/_manifest.json").read_text())
    assert manifest["captioned"] == 15 and manifest["parts"]["00001"] == {"captioned": 5, "failed": 0}
    rows = [json.loads(line) for line in rows_in(tmp_path / "jsonl").values()]
    assert rows[7]["key"] == "000000007" and rows[7]["shard"] == str(shards / "00001.tar")
    table = parquet.read_table(tmp_path / "parquet/00001.parquet")
    columns = ["key", "shard", "caption", "log_probability", "alternatives", "error", "width", "height"]
    assert table.column_names == columns
    assert table["caption"].to_pylist() == [row["caption"] for row in rows[5:10]]
    assert table["width"].to_pylist() == [32] * 5 and table["height"].to_pylist() == [24] * 5
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet/*.parquet"), split="train")
    assert read["key"] == [row["key"] for row in rows]
    samples = webdataset.WebDataset(str(tmp_path / "tar/00001.tar"), shardshuffle=False)
    for sample, row in zip(list(samples), rows[5:10], strict=True):
        assert sample["__key__"] == row["key"] and sample["txt"].decode() == row["caption"]
        assert sample["jpg"] == jpeg(int(row["key"])), "the bytes are as they were"
        assert json.loads(sample["json"])["log_probability"] == row["log_probability"]


def test_one_file_holds_all_of_several_shards_and_of_a_table(make, shards, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    make(shards, "whole/")
    make(shards, "one.parquet")
    assert parquet.read_table(tmp_path / "one.parquet")["key"].to_pylist() == [f"{i:09d}" for i in range(15)]
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "list.csv").write_text("id,file_name\n7,photos/2.jpg\n8,photos/0.jpg\n")
    (tmp_path / "list.jsonl").write_text('{"where": "photos/1.jpg"}\n')
    make(tmp_path / "list.csv", "table.jsonl")
    assert [Path(row["path"]).name for row in lines(tmp_path / "table.jsonl")] == ["2.jpg", "0.jpg"]
    make(f"[{tmp_path / 'list.csv'},{shards / '00000.tar'}]", "both.jsonl")
    both = lines(tmp_path / "both.jsonl")
    assert [row.get("key") for row in both] == [f"{i:09d}" for i in range(5)] + [None, None]
    assert {row["caption"] for row in both[:5]} == {
        json.loads(t)["caption"] for t in [*rows_in(tmp_path / "whole").values()][:5]
    }
    with pytest.raises(
        UserError, match=r"list\.jsonl has the columns where; name the one of paths or URLs in input_col"
    ):
        find_inputs(tmp_path / "list.jsonl")
    assert find_inputs(tmp_path / "list.jsonl", "where") == [tmp_path / "photos/1.jpg"]
    with pytest.raises(UserError, match=r"input_column=wo: .*list\.jsonl has the columns where"):
        find_inputs(tmp_path / "list.jsonl", "wo")
    (tmp_path / "shards.txt").write_text(f"{shards / '00001.tar'}\n")
    assert find_inputs(tmp_path / "shards.txt") == [Shard(shards / "00001.tar")], "and not a picture of that name"
    with pytest.raises(UserError, match="text_files=true writes beside pictures that are files"):
        make(shards, "texts.jsonl", "text_files.write=true")


def test_files_are_cut_into_parts_whose_rows_are_those_of_one_file(make, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(7):
        (tmp_path / f"photos/{number}.jpg").write_bytes(jpeg(number) if number != 4 else b"no picture")
    whole = make(tmp_path / "photos", "whole.jsonl")
    cut = make(tmp_path / "photos", "cut/", "part_size=3")
    assert (whole.captioned, whole.failed) == (cut.captioned, cut.failed) == (6, 1)
    assert [path.name for path in sorted((tmp_path / "cut").glob("*.jsonl"))] == [
        f"part-0000{i}.jsonl" for i in range(3)
    ]
    assert list(rows_in(tmp_path / "cut").values()) == (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    make(tmp_path / "photos", "some/", "part_size=3", "every_nth=2")
    assert [Path(path).name for path in rows_in(tmp_path / "some")] == ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]


def test_what_is_chosen_of_the_input(make, shards, tmp_path):
    def keys(*given) -> list[int]:
        make(shards, "chosen/", "overwrite=true", *given)
        return [int(json.loads(line)["key"]) for line in rows_in(tmp_path / "chosen").values()]

    assert keys("limit=7") == list(range(7))
    assert keys("every_nth=2") == [0, 2, 4, 5, 7, 9, 10, 12, 14]
    some = keys("sample=0.5")
    assert 2 < len(some) < 13 and keys("sample=0.5") == some != keys("sample=0.5", "seed=1")
    assert keys("sample=0.5", "limit=3") == some[:3]
    small = make(shards, "small/", "min_size=30")
    assert (small.captioned, small.failed) == (0, 0), "what is not wanted has not failed"
    assert {json.loads(line)["error"] for line in rows_in(tmp_path / "small").values()} == {
        "left out: 32 x 24 pixels, and min_size=30"
    }


@pytest.mark.parametrize(
    "before", ["b.jsonl", "b.csv", "b.parquet", "b.tar", "jsonl/", "csv/", "parquet/", "tar/", "s3://photos/before/"]
)
def test_what_has_a_caption_already_is_left_out_whatever_its_form(make, shards, tmp_path, before, request):
    if "parquet" in before:
        pytest.importorskip("pyarrow")
    if "://" in before:
        request.getfixturevalue("bucket")
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "é 2.jpg").write_bytes(b"no picture")
    (tmp_path / "some.txt").write_text(f"{shards}/00001.tar\n1.jpg\né 2.jpg\n")
    (tmp_path / "all.txt").write_text(f"{shards}/00000.tar\n{shards}/00001.tar\n{shards}/00002.tar\n1.jpg\né 2.jpg\n")
    kind = "jsonl" if "://" in before or not before.endswith("/") else before[:-1]
    make(tmp_path / "some.txt", before, f"format={kind}")
    there = before if "://" in before else f"{tmp_path}/{before}"
    make(tmp_path / "all.txt", "out/", f"skip_existing={there}")
    rows = [json.loads(line) for line in rows_in(tmp_path / "out").values()]
    assert [int(row["key"]) for row in rows if "key" in row] == [*range(5), *range(10, 15)]
    assert [Path(row["path"]).name for row in rows if "key" not in row] == ["é 2.jpg"], "which got no caption"


def test_captions_of_before_are_those_of_these_settings_and_name_their_pictures(make, shards, tmp_path):
    make(shards / "00001.tar", "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl was made with another decoding; leave it out"):
        make(shards, "out/", f"skip_existing={tmp_path / 'b.jsonl'}", "decoding.max_new_tokens=5")
    for place in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(UserError, match=r"no captions of predict.py are there; .* text_files=missing"):
            make(shards, "out/", f"skip_existing={place}")
    make(shards / "00001.tar", "b.json")
    with pytest.raises(UserError, match=r"b\.json has COCO results, which name no files; name a \.jsonl"):
        make(shards, "out/", f"skip_existing={tmp_path / 'b.json'}")


@pytest.mark.parametrize(
    "given, said",
    [
        ("skip_existing={tmp_path}/b.jsonl", "skip_existing was None and is .*b.jsonl with 5 pictures"),
        ("on_missing=skip", "on_missing was None and is skip"),
        ("input_column=jpg", "input_column was None and is jpg"),
        ("limit=12", "limit was None and is 12"),
        ("every_nth=2", "every_nth was None and is 2"),
        ("sample=0.5", "sample was None and is 0.5; seed was None and is 42"),
        ("min_size=9", "min_size was None and is 9"),
        ("part_size=9", "part_size was 10000 and is 9"),
    ],
)
def test_a_folder_is_not_gone_on_with_by_another_choice_of_pictures(once, run_dir, shards, tmp_path, given, said):
    def before(folder: Path) -> None:
        usual = ("decoding.max_new_tokens=4", "batch_size=4", f"cache={folder / 'cache'}")
        predict(prediction(run_dir, shards, f"{folder}/out/", *usual))
        predict(prediction(run_dir, shards / "00001.tar", f"{folder}/b.jsonl", *usual))

    made = once("a folder of captions", before)
    given = (given.format(tmp_path=made), "resume=true", "decoding.max_new_tokens=4", f"cache={tmp_path}")
    with pytest.raises(UserError, match=f"were made otherwise: .*{said}"):
        predict(prediction(run_dir, shards, f"{made}/out/", *given))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "tar"])
def test_what_was_stopped_goes_on_with_the_parts_and_rows_that_lack(make, shards, tmp_path, monkeypatch, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    make(shards, "undisturbed/", f"format={kind}")
    add = PartFiles.add
    with stopped_after(7), pytest.raises(KeyboardInterrupt):
        make(shards, "out/", f"format={kind}")
    complete = [path.name for path in (tmp_path / "out").glob(f"0*.{kind}")]
    assert complete == [f"00000.{kind}"] and not (tmp_path / "out/_SUCCESS").exists()
    with pytest.raises(UserError, match=r"holds 2 files, such as 00000.*; go on with resume=true, or begin anew"):
        make(shards, "out/", f"format={kind}")
    with pytest.raises(UserError, match=r"were made otherwise: decoding.max_new_tokens was 4 and is 5"):
        make(shards, "out/", f"format={kind}", "resume=true", "decoding.max_new_tokens=5")
    captioned: list[int] = []
    monkeypatch.setattr(
        PartFiles, "add", lambda self, part, total, rows: captioned.append(len(rows)) or add(self, part, total, rows)
    )
    made = make(shards, "out/", f"format={kind}", "resume=true")
    assert made.captioned == 15 and sum(captioned) < 10, "rows of the journal are not made again"
    for path in (tmp_path / "undisturbed").iterdir():
        if path.name not in ("_manifest.json", "_settings.json"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "out/.unfinished").exists()
    assert make(shards, "out/", f"format={kind}", "resume=true").captioned == 15, "nothing is left to do"


def test_a_process_that_died_between_a_file_and_its_name_is_gone_on_from(make, shards, tmp_path):
    make(shards, "undisturbed/", "format=csv")
    with mock.patch.object(PartFiles, "_publish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        make(shards, "out/", "format=csv")
    assert not list((tmp_path / "out").glob("*.csv"))
    assert make(shards, "out/", "format=csv", "resume=true").captioned == 15
    for number in range(3):
        name = f"0000{number}.csv"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_damaged_shard_is_said_and_the_others_are_captioned(make, tmp_path):
    folder = tars(tmp_path / "in", shards=2, pictures=3)
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"00001\.tar is cut short.*Of 2 parts of the input 1 are in .*resume=true tries"
    ):
        make(folder)
    assert (tmp_path / "out/00000.jsonl").exists() and not (tmp_path / "out/_SUCCESS").exists()
    (folder / "00001.tar").write_bytes(whole)
    assert make(folder, "out/", "resume=true").captioned == 6 and (tmp_path / "out/_SUCCESS").exists()
    (folder / "00001.tar").write_bytes(whole[: len(whole) // 2])
    assert 3 < make(folder, "some/", "on_missing=skip").captioned < 6


def test_keys_with_two_pictures_or_none_have_rows_that_say_so(make, tmp_path):
    tar_of(
        tmp_path / "a.tar", {"1.jpg": jpeg(1), "1.png": jpeg(2), "2.txt": b"a dog", "3.jpg": jpeg(3), "4.jpg": b"no"}
    )
    made = make(tmp_path / "a.tar", "a.jsonl")
    rows = {row["key"]: row.get("error") for row in lines(tmp_path / "a.jsonl")}
    assert (made.captioned, made.failed) == (1, 3)
    assert rows["1"] == "its key 1 has 2 pictures, 1.jpg and 1.png; input_column=SUFFIX chooses one"
    assert rows["2"] == "a caption without a picture"
    assert rows["3"] is None and rows["4"] == "not a picture, or damaged at its start"


def test_a_column_that_is_not_there_is_said_at_once(make, shards, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    parquet.write_table(pyarrow.table({"url": ["1.jpg"]}), tmp_path / "a.parquet")
    tar_of(tmp_path / "0.tar", {"1.jpg": jpeg(1)})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    for source, said in (
        (shards, r"input_column=wo is none of the suffixes in .*00000\.tar: jpg, json"),
        (tmp_path / "a.parquet", r"input_column=wo is none of the columns of .*a\.parquet: url"),
        (tmp_path / "1.jpg", "input_column=wo: there is no table and no shard in the input; leave it out"),
    ):
        for output in ("out/", "out.jsonl"):
            with pytest.raises(UserError, match=said):
                make(source, output, "input_column=wo")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UserError, match=r"0\.tar is cut short.* Of 1 parts of the input 0 are in"):
        make(tmp_path / "0.tar", "out/", "input_column=jpg")
    assert not (tmp_path / "out").exists()


def test_each_row_is_a_picture_though_it_is_there_twice_and_texts_beside_it_do_not_matter(make, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"jpg": [jpeg(1), jpeg(2), jpeg(1)]}), tmp_path / "a.parquet")
    assert make(tmp_path / "a.parquet", "a.jsonl").captioned == 3
    tar_of(tmp_path / "b.tar", {"1.jpg": jpeg(1), "1.json": b"{", "1.txt": b"\xff"})
    assert make(tmp_path / "b.tar", "b.jsonl").captioned == 1


def test_what_the_output_may_not_be(make, shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.md").write_text("dear")
    for given, said in (
        (("mine/",), "holds 1 files, such as thesis.md; no settings of a prediction are there: name another folder"),
        (("out/", "gallery=true"), "gallery goes with one file of captions, and output="),
        (("out.jsonl", "engine=ray", "num_workers=auto", "heat_maps=2"), "heat_maps=2: engine=ray draws none; leave"),
        (("https://a.org/out.jsonl",), "a web server takes no files; name a file or a folder here"),
        (("s3://photos/out",), "say s3://photos/out/ for a folder of files, or s3://photos/out.jsonl for one"),
        (("s3://photos/out.jsonl", "gallery=true"), "gallery writes files beside the output, and output="),
        (("out.jsonl", "format=csv"), "format=csv is of the files in a folder, and output="),
        (("out/", "ray.address=auto"), "ray.address=auto is for engine=ray; say that too, or leave it out"),
        (("out/", "engine=ray"), "num_workers=0: with engine=ray tasks of the cluster read; leave it out"),
        (
            ("out/", "engine=ray", "num_workers=auto", "device=cuda:1"),
            "device=cuda:1: with engine=ray it is auto, cpu or",
        ),
    ):
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            make(shards, *given)
    assert (tmp_path / "mine/thesis.md").read_text() == "dear" and len(list((tmp_path / "mine").iterdir())) == 1
    busy = PartFiles(f"{tmp_path}/busy/", ".jsonl", tmp_path, NO_READING, {}, NOTHING)
    with busy, pytest.raises(UserError, match="another process is writing there now"):
        make(shards, "busy/", "resume=true")


NO_READING = Reading(Columns(None, None, lines=False), Path(), 0, "error", False, Choice())  # no part is opened


def test_shards_of_one_name_have_files_of_their_own():
    shards = ("s3://a/0.tar", "s3://b/0.tar", "s3://b/1.tar", "s3://b/part-00000.parquet", "s3://b/Part-00001.tar")
    found = [*map(Shard, shards), *(Url(f"https://a.org/{i}.jpg") for i in range(2))]
    names = ["00000-0", "00001-0", "1", "00003-part-00000", "00004-Part-00001", "00005-part-00000", "00006-part-00001"]
    assert [part.name for part in parts_of(found, 1)] == names


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_no_name_of_a_shard_is_taken_for_another_file(make, tmp_path, kind):
    names = ("a", "a.partial", "a.settings", "a.jsonl.settings.partial", f"a.{kind}", "b/a", "[a]", "rows", "_manifest")
    for number, name in enumerate(names):
        (tmp_path / "in/b").mkdir(parents=True, exist_ok=True)
        tar_of(tmp_path / f"in/{name}.tar", {f"{2 * number}.jpg": jpeg(1), f"{2 * number + 1}.jpg": jpeg(2)})
    make(tmp_path / "in", "undisturbed/", f"format={kind}")
    for stop in (3, 9):
        with stopped_after(stop), pytest.raises(KeyboardInterrupt):
            make(tmp_path / "in", "out/", f"format={kind}", "batch_size=1", "resume=true")
    assert make(tmp_path / "in", "out/", f"format={kind}", "resume=true").captioned == 18
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").glob(f"*.{kind}")}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").glob(f"*.{kind}")}
    assert len(made) == len(names) and [*(tmp_path / "out").rglob(".*")] == []


@contextmanager
def stopped_after(rows: int):
    """Ctrl-C when so many rows came to `PartFiles`."""
    add, left = PartFiles.add, [rows]

    def stops(files: PartFiles, part: Part, total: int, records) -> None:
        add(files, part, total, records)
        left[0] -= len(records)
        if left[0] <= 0:
            raise KeyboardInterrupt

    with mock.patch.object(PartFiles, "add", stops):
        yield


def test_rows_that_come_early_wait_for_their_turn(tmp_path):
    part = Part("a")
    rows = [CaptionedPicture(i, f"{i}.jpg", caption="a dog", log_probability=-1) for i in range(5)]
    with PartFiles(f"{tmp_path}/out/", ".jsonl", tmp_path, NO_READING, {}, NOTHING) as files:
        for some in (rows[3:], rows[:1], rows[:1], rows[1:3]):  # one lot twice, as a task that was retried gives it
            assert "a" not in files.complete
            files.add(*Rows(part, 5, some))
        assert files.complete == {"a"} and files.finish([part]) == (5, 0)
    assert list(rows_in(tmp_path / "out")) == [f"{i}.jpg" for i in range(5)]


def test_rows_of_a_cluster_are_put_in_the_order_of_the_input_and_none_comes_twice(monkeypatch):
    parts, spans = {name: Part(name) for name in "abc"}, {"a": (0, 3), "b": (3, 0), "c": (3, 4)}

    def rows(name: str, *places: int) -> Rows:
        return Rows(parts[name], spans[name][1], [CaptionedPicture(place, name) for place in places])

    lots = [rows("c", 2, 3), rows("a", 1), rows("b"), rows("a", 0, 1), rows("c", 0), rows("c", 1, 0), rows("a", 2)]
    monkeypatch.setattr(engines, "AT_ONCE", 3)  # however many waited
    batches = list(in_order(lots, spans, 1))
    assert [[record.place for record in one] for one in batches] == [[1], [2, 3, 4], [5, 6]]
    assert [record.path for one in batches for record in one] == ["a", "a", *"cccc"]
    with pytest.raises(UserError, match=r"^c is damaged; resume=true goes on$"):
        list(in_order([Failure(parts["c"], "c is damaged")], spans, 0))
    with pytest.raises(UserError, match=r"^a had 3 pictures when this began, and has 5 now; begin anew$"):
        list(in_order([Rows(parts["a"], 5, [])], spans, 0))


def test_a_full_disk_is_one_sentence_and_what_was_there_is_gone_on_from(make, shards, tmp_path, full_disk):
    make(shards, "undisturbed/", "format=csv")
    for room in (0, 450):
        with pytest.raises(UserError, match="File too large"):
            full_disk(room)
            make(shards, "out/", "format=csv", "resume=true")
        full_disk(resource.RLIM_INFINITY)
        names = [path.name for path in (tmp_path / "out").glob("*.csv")] if (tmp_path / "out").exists() else []
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert make(shards, "out/", "format=csv", "resume=true").captioned == 15


# Pictures of the web.


@pytest.fixture
def web(monkeypatch):
    """A server of pictures; `faults` are what goes wrong with the next answers."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            fault = served.faults.pop(0) if served.faults else ""
            if fault.isdigit():
                self.send_error(int(fault))
                return
            data = jpeg(int(self.path.strip("/").partition(".")[0]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100] if fault == "cut" else data)
            self.close_connection = True

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.faults, served.url = [], f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(images.time, "sleep", lambda seconds: None)
    yield served
    served.shutdown()
    served.server_close()


def test_urls_are_fetched_and_addresses_of_this_network_only_if_allowed(make, web, tmp_path, monkeypatch):
    (tmp_path / "urls.txt").write_text(f"{web.url}/1.jpg\n{web.url}/2.jpg\n")
    web.faults[:] = ["503", "cut"]
    assert make(tmp_path / "urls.txt", "urls.jsonl", "private_urls=true").captioned == 2
    assert [row["path"] for row in lines(tmp_path / "urls.jsonl")] == [f"{web.url}/1.jpg", f"{web.url}/2.jpg"]
    refused = make(f"{web.url}/1.jpg", "refused.jsonl")
    assert refused.failed == 1
    words = "not fetched: 127.0.0.1 is 127.0.0.1, an address of this network; private_urls=true allows it"
    assert lines(tmp_path / "refused.jsonl")[0]["error"] == words
    stdin = mock.Mock(buffer=io.BytesIO(f"{web.url}/3.jpg\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert make("-", "stdin.jsonl", "private_urls=true").captioned == 1


def test_a_parquet_file_may_hold_paths_and_urls_of_pictures(make, web, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    urls = pyarrow.table({"URL": ["1.jpg", f"{web.url}/2.jpg", None], "TEXT": ["a", "b", "c"]})
    parquet.write_table(urls, tmp_path / "laion.parquet")
    made = make(tmp_path / "laion.parquet", "out/", "format=parquet", "private_urls=true")
    assert (made.captioned, made.failed) == (2, 1)
    table = parquet.read_table(tmp_path / "out/laion.parquet")
    assert table["path"].to_pylist()[:2] == [f"{tmp_path}/1.jpg", f"{web.url}/2.jpg"]
    assert table["key"].to_pylist()[:2] == ["1", "2"]


def test_a_web_server_that_keeps_failing_is_given_up_and_a_missing_picture_at_once(web):
    for faults, said in ((["503"] * 3, "503 Service Unavailable"), (["cut"] * 3, "100 of"), (["404"], "404 Not Found")):
        web.faults[:] = faults
        with pytest.raises(UnreadablePicture, match=f"not fetched: .*{said}"):
            fetched(f"{web.url}/1.jpg", tries=3)
        assert not web.faults


# Object storage.


@pytest.fixture(scope="module")
def bucket():
    server = pytest.importorskip("moto.server", reason="moto plays the object storage")
    s3fs = pytest.importorskip("s3fs")
    served = server.ThreadedMotoServer(port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with mock.patch.dict("os.environ", environment):
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("photos")
        yield s3fs.S3FileSystem()
        s3fs.S3FileSystem.clear_instance_cache()
    served.stop()


def test_shards_come_from_a_bucket_and_captions_go_there_whole(make, bucket, shards, tmp_path):
    for shard in shards.iterdir():
        bucket.put_file(str(shard), f"photos/in/{shard.name}")
    make(shards, "here/")

    def there(*given):
        return make("s3://photos/in/{00000..00002}.tar", "s3://photos/out/", *given)

    put, puts = parts_module.put, []

    def stops(file: Path, url: str) -> None:
        puts.append(url)
        if len(puts) == 3:
            raise KeyboardInterrupt
        put(file, url)

    with mock.patch.object(parts_module, "put", stops), pytest.raises(KeyboardInterrupt):
        there()
    assert there("resume=true").captioned == 15
    names = sorted(path.rpartition("/")[2] for path in bucket.ls("photos/out", refresh=True, detail=False))
    assert names == ["00000.jsonl", "00001.jsonl", "00002.jsonl", "_SUCCESS", "_manifest.json", "_settings.json"]
    made = b"".join(bucket.cat(f"photos/out/0000{i}.jsonl") for i in range(3)).decode()
    captions = [json.loads(line)["caption"] for line in made.splitlines()]
    assert captions == [json.loads(line)["caption"] for line in rows_in(tmp_path / "here").values()]
    with pytest.raises(UserError, match="go on with resume=true, or begin anew with overwrite=true"):
        there()
    with pytest.raises(UserError, match=r"s3://nowhere/out: there is no bucket nowhere; check its name"):
        make(shards, "s3://nowhere/out/")


@pytest.mark.parametrize("protocol", ["gs", "hf"])
def test_other_storage_that_fsspec_knows_is_read_and_written(make, shards, monkeypatch, protocol):
    registry, memory = map(pytest.importorskip, ("fsspec.registry", "fsspec.implementations.memory"))

    class Storage(memory.MemoryFileSystem):
        cachable = False
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix(f"{protocol}://").strip("/")

        def find(self, path: str, detail: bool = False, **given):  # names without a stroke before them
            found = super().find(path, detail=detail, **given)
            return found if detail else [one.lstrip("/") for one in found]

        def glob(self, path: str, **given):
            return [one.lstrip("/") for one in super().glob(path, **given)]

    monkeypatch.setitem(registry._registry, protocol, Storage)
    storage = Storage()
    for shard in shards.iterdir():
        storage.pipe(f"{protocol}://b/in/{shard.name}", shard.read_bytes())
    assert make(f"{protocol}://b/in/", f"{protocol}://b/out/").captioned == 15
    assert make(f"{protocol}://b/in/{{00000..00001}}.tar", f"{protocol}://b/one.csv", "resume=true").captioned == 10
    assert sorted(storage.store)[3:] == [
        *("/b/one.csv", "/b/one.csv.settings.json", *(f"/b/out/0000{i}.jsonl" for i in range(3))),
        *("/b/out/_SUCCESS", "/b/out/_manifest.json", "/b/out/_settings.json"),
    ]
    skipped = f"skip_existing={protocol}://b/one.csv"
    assert make(f"{protocol}://b/in/*1.tar", f"{protocol}://b/out/", skipped, "overwrite=true").captioned == 0


def test_names_in_a_bucket_may_hold_what_urls_and_patterns_mean_something_by(make, bucket, shards, tmp_path):
    names = ["50%", "50%25", "a b", "x#1", "ä", "猫?"]
    for name in names:
        bucket.put_file(str(shards / "00000.tar"), f"photos/odd ä/{name}.tar", ACL="public-read")
    given = ("format=csv", "limit=30")
    made = make("s3://photos/odd ä/", "s3://photos/made #1 ä/", *given)
    assert made.captioned == make("s3://photos/odd ä/", "s3://photos/made #1 ä/", *given, "resume=true").captioned == 30
    files = sorted(path.rpartition("/")[2] for path in bucket.ls("photos/made #1 ä", refresh=True, detail=False))
    assert [name for name in files if name.endswith(".csv")] == sorted(f"{name}.csv" for name in names)
    (tmp_path / "list.txt").write_text("s3://photos/odd ä/x#1.tar\ns3://photos/odd ä/50%25.tar\n")
    assert make(tmp_path / "list.txt", "s3://photos/made #1 ä/one #%.jsonl").captioned == 10
    web = os.environ["AWS_ENDPOINT_URL"] + "/photos/odd%20%C3%A4/"
    (tmp_path / "web.txt").write_text(f"{web}x%231.tar\n{web}50%2525.tar\n{web}%E7%8C%AB%3F.tar\n")
    assert make(tmp_path / "web.txt", "web/").captioned == 15
    assert {path.stem for path in (tmp_path / "web").glob("*.jsonl")} == {"x%231", "50%2525", "%E7%8C%AB%3F"}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_one_file_is_made_here_and_put_into_a_bucket_whole(make, bucket, shards, tmp_path, kind):
    def there(*given):
        return make(shards, f"s3://photos/{kind}/one.{kind}", *given)

    def names() -> list[str]:
        bucket.invalidate_cache()
        return [path.rpartition("/")[2] for path in bucket.find(f"photos/{kind}")]

    make(shards, f"here.{kind}")
    add, put = Journal.add, elsewhere.put

    def stops(journal: Journal, record) -> None:
        if record.place == 7:
            raise KeyboardInterrupt
        add(journal, record)

    def put_once(file: Path, url: str) -> None:
        put(file, url)
        raise KeyboardInterrupt

    with mock.patch.object(Journal, "add", stops), pytest.raises(KeyboardInterrupt):
        there()
    assert names() == []
    with mock.patch.object(elsewhere, "put", put_once), pytest.raises(KeyboardInterrupt):
        there("resume=true")
    assert names() == [f"one{'' if kind == 'jsonl' else '.csv'}.settings.json"], "the captions come last"
    with pytest.raises(UserError, match=rf"one\.{kind} was made in .* and not put there; resume=true does that"):
        there()
    with mock.patch.object(Journal, "add", side_effect=AssertionError):
        assert there("resume=true").captioned == 15, "and is put there"
        assert there("resume=true").captioned == 15, "nothing is left to do"
    assert bucket.cat(f"photos/{kind}/one.{kind}") == (tmp_path / f"here.{kind}").read_bytes() and len(names()) == 2
    assert not [*(tmp_path / "cache/outputs").iterdir()]
    with pytest.raises(UserError, match=rf"one\.{kind} exists already; replace it with overwrite=true, or name"):
        there()
    with pytest.raises(UserError, match=r"s3://photos/.* is complete and was made otherwise: .*max_new_tokens was 4"):
        there("resume=true", "decoding.max_new_tokens=5")
    bucket.pipe("photos/x/mine.jsonl", b"dear")
    with pytest.raises(UserError, match=r"mine\.jsonl exists already, without mine\.settings\.json, how it was made"):
        make(shards, "s3://photos/x/mine.jsonl", "resume=true")
    assert there("overwrite=true", "limit=3").captioned == 3 and bucket.cat("photos/x/mine.jsonl") == b"dear"
