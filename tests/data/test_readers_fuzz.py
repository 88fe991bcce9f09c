"""Annotation files that are damaged, contradictory or hostile: a sentence that names the file, or a right result.

Right means: every photograph lies under root and is in one split, and every caption stands in the files. A result that
lacks what the damage has taken is right; one with something that nobody wrote is not.
"""

import json
import shutil
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from itertools import chain
from pathlib import Path

import pytest
from data_sets import coco, flickr8k, flickr30k, karpathy, write
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.data.datasets import find_photographs
from captioning.data.readers.annotations import tidied
from captioning.data.readers.coco import read_references, read_results
from captioning.data.readers.folder import OwnFolder, read_folder
from captioning.errors import UserError
from captioning.prediction.inputs import find_pictures

NUMBERS = st.one_of(st.integers(-3, 12), st.sampled_from([2**63, -(10**30), 10**400]))
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "a\0b", "\ud800", "a.jpg", "train", "test", " "]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from([float("nan"), float("inf"), 1.5]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
HOSTILE = st.sampled_from(
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[" * 100_000,
        b"\xed\xa0\x80",
        b'"',
        b"\r",
        b"\t",
        b",",
        b"|",
        b"#",
        b"../",
        b"1e999",
    ]
)


def kaggles(root: Path) -> Path:
    """Karpathy's splits of Flickr8k."""
    flickr8k(root, lists=False)
    shutil.rmtree(root / "Flickr8k_text")
    karpathy(root / "dataset_flickr8k.json", {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val", "d.jpg": "test"})
    return root


def own(root: Path) -> Path:
    """A table and lists of one's own."""
    flickr30k(root)
    rows = (f'{name}.jpg,"caption {number} of {name} ."' for name in "abcd" for number in (0, 1))
    write(root / "results.csv", "file_name,caption", *rows)
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        write(root / f"{split}.txt", *names)
    return root


DATA_SETS = {
    "coco": coco,
    "flickr8k": flickr8k,
    "flickr30k": flickr30k,
    "flickr8k as Karpathy divides it": kaggles,
    "folder with a table": own,
    "folder with COCO's format": coco,
}


@pytest.fixture(scope="module", params=DATA_SETS)
def sound(request, tmp_path_factory):
    """A data set, its root, and its annotation files."""
    root = DATA_SETS[request.param](tmp_path_factory.mktemp("sound"))
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".jpg"]
    assert photographs_of(request.param.split()[0], root)
    return request.param.split()[0], root, files


def photographs_of(dataset: str, root: Path):
    return read_folder(OwnFolder(root))[0] if dataset == "folder" else find_photographs(dataset, root)


def read(dataset: str, root: Path, files) -> None:
    """Read, and require what must hold of any result."""
    try:
        photographs = photographs_of(dataset, root)
    except UserError as error:
        assert "\n" not in str(error)
        assert str(root) in str(error) or str(root.name) in str(error), "it names the file, or the folder"
        return
    written = tidied(" ".join(words_of(path) for path in files))
    for photograph in photographs:
        inside = root.resolve()
        assert photograph.path.resolve().is_relative_to(inside), photograph
        assert ".." not in photograph.path.parts
        assert photograph.captions and all(caption in written for caption in photograph.captions)
    ids = [photograph.image_id for photograph in photographs]
    assert len(ids) == len(set(ids)), "and so none is in two splits"


def words_of(path: Path) -> str:
    """All that a file says, as its reader would find it."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig", "replace")
    return " ".join(strings_in(json.loads(text))) if path.suffix == ".json" else text.replace('""', '"')


def strings_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict | list):
        return list(chain.from_iterable(map(strings_in, value.values() if isinstance(value, dict) else value)))
    return []


@settings(max_examples=60)
@given(st.data())
def test_bytes_that_are_damaged(sound, data):
    dataset, root, files = sound
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    start = data.draw(st.integers(0, len(before)))
    end = data.draw(st.integers(start, min(len(before), start + 40)))
    put = data.draw(st.one_of(st.binary(max_size=6), HOSTILE, st.just(before[start:end] * 2)))
    damaged = data.draw(st.sampled_from(["replaced", "cut", "utf-16", "latin-1", "twice"]))
    after = {
        "replaced": before[:start] + put + before[end:],
        "cut": before[:start],
        "utf-16": before.decode().encode("utf-16"),
        "latin-1": before.replace(b"caption", "é".encode("latin-1"), 1),
        "twice": before + before,
    }[damaged]
    try:
        path.write_bytes(after)
        read(dataset, root, files)
    finally:
        path.write_bytes(before)


@settings(max_examples=80)
@given(st.data())
def test_values_that_are_not_what_they_should_be(sound, data):
    dataset, root, files = sound
    documents = [path for path in files if path.suffix == ".json"]
    if not documents:
        pytest.skip("it has no JSON")
    path = data.draw(st.sampled_from(documents))
    before = path.read_text(encoding="utf-8")
    document = json.loads(before)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places_in(document)))
        match data.draw(st.sampled_from(["other", "gone", "doubled"])):
            case "gone":
                del holder[key]
            case "doubled" if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = data.draw(VALUES)
        if not places_in(document):
            break
    try:
        path.write_text(json.dumps(document), encoding="utf-8")
        read(dataset, root, files)
    finally:
        path.write_text(before, encoding="utf-8")


def places_in(value: object) -> list[tuple]:
    """Every (container, key) of a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places_in(value[key])]


ROW = {"image_id": 1, "caption": "a dog"}


@pytest.mark.parametrize("reader", [read_results, read_references])
@settings(max_examples=60)
@given(st.data())
def test_files_of_results_and_references(tmp_path_factory, reader, data):
    path = tmp_path_factory.mktemp("coco") / "file.json"
    document = {
        "rows": [dict(ROW), {**ROW, "image_id": "b"}] if reader is read_results else {"annotations": [dict(ROW)]}
    }
    holder, key = data.draw(st.sampled_from(places_in(document)))
    holder[key] = data.draw(VALUES)
    text = json.dumps(document.get("rows"))
    path.write_bytes(
        data.draw(st.sampled_from([text.encode(), text.encode()[:-2], text.encode("utf-16"), text.encode() * 2]))
    )
    try:
        found = reader(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    captions = chain.from_iterable([value] if isinstance(value, str) else value for value in found.values())
    assert all(isinstance(picture, int | str) and not isinstance(picture, bool) for picture in found)
    assert all(caption in strings_in(document) for caption in captions)


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_lists_of_pictures(tmp_path_factory, content):
    listing = tmp_path_factory.mktemp("lists") / "list.txt"
    listing.write_bytes(content)
    try:
        paths = find_pictures(listing)
    except UserError as error:
        assert str(listing) in str(error)
        return
    lines = [line.strip() for line in content.decode("utf-8-sig", "surrogateescape").split("\n")]
    assert paths and len(paths) <= len([line for line in lines if line])
