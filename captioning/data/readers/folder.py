"""`data=folder`: pictures and captions of one's own, in whichever of the usual forms they lie.

| layout     | what lies under root, or is named by `data.captions`                                            |
|------------|-------------------------------------------------------------------------------------------------|
| `metadata` | `metadata.jsonl`, `.csv` or `.parquet` in root or in each folder (Hugging Face's ImageFolder)    |
| `table`    | one CSV, TSV, JSON, JSON Lines or Parquet file of pictures and captions, or one for each split   |
| `coco`     | a JSON file with `images` and `annotations`, or one for each split                               |
| `texts`    | `a.txt` or `a.caption` beside `a.jpg`                                                            |

A picture is known by its path under root, whichever form names it, and photographs come in the order of these paths, so
the same pictures and captions are the same data set in every form. What is guessed is said.
"""

import json
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from captioning.data.images import picture_suffixes
from captioning.data.readers.annotations import Gathering, Node, inside, read_json, read_lines, read_text
from captioning.data.readers.tables import DELIMITERS, SUFFIXES, columns_of, nearest, read_table
from captioning.data.records import Photograph
from captioning.errors import UserError
from captioning.files import files_below

log = logging.getLogger(__name__)

METADATA = tuple(f"metadata{suffix}" for suffix in (".jsonl", ".csv", ".parquet"))
TEXT_SUFFIXES = (".caption", ".txt")  # taggers write both, and then tags into the second
LAYOUTS = ("metadata", "table", "coco", "texts")

# What columns are called, the likeliest first, as `nearest` writes it.
PICTURES = (
    *("file_name", "image", "filename", "image_path", "image_file", "image_name", "img_path", "img", "picture"),
    *("photo", "path", "file_path", "filepath", "file", "image_id", "name"),
)
CAPTIONS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "description", "caption_text"),
    *("comment", "comments", "prompt", "title", "alt_text", "alt"),
)
SPLITS = ("split", "subset", "partition", "set")
NUMBERED = re.compile(r"(?:caption|text|sentence|comment|description)_?\d+")  # caption_0 ... caption_4

# As the datasets library reads them.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(SPLIT_WORDS)})(?:[-._ 0-9]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class OwnFolder:
    """A folder, and what the keys of `data=folder` say of it, see `FolderConfig`."""

    root: Path
    layout: str = "auto"
    captions: str | Sequence[str] | None = None
    image_column: str | None = None
    caption_column: str | Sequence[str] | None = None
    split_column: str | None = None
    split_by: str = "auto"
    caption_suffix: str = "auto"
    captions_per_file: str = "one"
    encoding: str = "utf-8"

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> "OwnFolder":
        """From the section `data`."""
        own = {name: keys[name] for name in OWN_KEYS}
        return cls(Path(keys["root"]).expanduser(), keys["layout"], **own)

    @cached_property
    def listing(self) -> "Listing":
        """What lies in it."""
        return Listing(self.root)


OWN_KEYS = tuple(field.name for field in fields(OwnFolder) if field.name not in ("root", "layout"))


class Listing:
    """The files below a folder, by their paths from there."""

    def __init__(self, root: Path):
        if not root.is_dir():
            what = "is a file: name its folder, and the file with data.captions" if root.exists() else "does not exist"
            raise UserError(f"data.root={root} {what}; set data.root=FOLDER, where pictures and captions lie")
        self.root = root
        suffixes = picture_suffixes()
        self.pictures: dict[str, None] = {}
        self.others: list[str] = []
        before = "" if root == Path() else f"{root.as_posix().rstrip('/')}/"  # text alone: there may be 100,000 files
        for path in sorted(path.as_posix().removeprefix(before) for path in files_below(root, _refuse)):
            if posixpath.splitext(path)[1].lower() in suffixes:
                self.pictures[path] = None
            else:
                self.others.append(path)

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """Pictures by their paths without the suffix."""
        found = defaultdict(list)
        for path in self.pictures:
            found[posixpath.splitext(path)[0]].append(path)
        return dict(found)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Pictures by their names alone, with the suffix and without."""
        found = defaultdict(list)
        for path in self.pictures:
            name = posixpath.basename(path)
            found[name].append(path)
            found[posixpath.splitext(name)[0]].append(path)
        return dict(found)

    def beside(self, file: Path) -> str:
        """The folder of a file, from root; root's own where it lies elsewhere."""
        return file.parent.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else ""

    def picture(self, name: str, folder: str, place: object) -> str:
        """The picture that a row calls `name`, or the path at which it should lie.

        It is looked for from the folder of the file that names it, from root, and then by as much of the end of its
        path as there is.

        Raises:
            UserError: it may be several pictures, or lies outside of root, or is no file.
        """
        if "://" in name:
            raise UserError(
                f"{place}: {name[:60]} is not a file; fetch the pictures first, or pack them with img2dataset for "
                "data=shards"
            )
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            for start in dict.fromkeys((folder, "")):
                path = posixpath.normpath(posixpath.join(start, spelled.removeprefix(f"{self.root}/")))
                if path in self.pictures:
                    return path
                if len(same := self.stems.get(path, [])) == 1:
                    return same[0]
        parts = name.replace("\\", "/").split("/")
        ends = [(_common_end(path, parts), path) for path in self._names.get(parts[-1], ())]
        nearest = [path for length, path in ends if length == max(ends)[0]]
        if len(nearest) > 1:
            raise UserError(f"{place}: {name} may be {' or '.join(nearest[:3])}; write its path from {self.root}")
        return nearest[0] if nearest else posixpath.normpath(posixpath.join(folder, inside(name, self.root, place)))

    def is_beside_a_picture(self, path: str) -> bool:
        """Whether it is a picture's own file, such as `a.txt` of `a.jpg`."""
        return posixpath.splitext(path)[0] in self.stems


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}; change its permissions, or move it away")


def _common_end(path: str, parts: Sequence[str]) -> int:
    """How many of the last parts are a path's."""
    pairs = zip(reversed(path.split("/")[:-1]), reversed(parts[:-1]), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(path.count("/"), len(parts) - 1))


@dataclass(frozen=True)
class Found:
    """The form in which captions lie there, the files that hold them, and what else might."""

    layout: str
    files: tuple[Path, ...]
    also: tuple[str, ...] = ()


def recognise(own: OwnFolder) -> Found:
    """Where the captions are.

    Raises:
        UserError: there are none, or it can't be said which are meant.
    """
    if own.captions is not None:
        files = tuple(_named(own, [own.captions] if isinstance(own.captions, str) else own.captions))
        layout, *others = sorted({_kind(own, file) or "table" for file in files})
        if others:
            raise UserError(f"data.captions names files of two kinds, {layout} and {others[0]}; name one kind")
        if own.layout not in ("auto", layout, "metadata" if layout == "table" else layout):
            raise UserError(f"data.layout={own.layout}, but data.captions={files[0]} is a {layout}; leave one out")
        return Found(layout, files)
    tables, flaws = _tables(own)
    kinds = {
        "metadata": _metadata(own),
        "table": tables.get("table", []),
        "coco": tables.get("coco", []),
        "texts": [own.root] * bool(_suffix_of_texts(own)),
    }
    there = [name for name in LAYOUTS if kinds[name]]
    fitting = [name for name in there if own.layout in ("auto", name)]
    if not fitting:
        raise UserError(_nothing(own, there, flaws))
    layout = fitting[0]
    files = () if layout == "texts" else tuple(kinds[layout])
    if layout != "metadata" and len(files) > max(1, len(set(_splits_of_files(own, files).values()))):
        names = ", ".join(_from_root(own, file) for file in files[:5])
        raise UserError(
            f"data.root={own.root} holds several files of captions: {names}; name the one with data.captions, or one "
            "for each split, with train, val and test in their names"
        )
    return Found(layout, files, tuple(name for name in there if name != layout))


def may_be_one(root: Path) -> bool:
    """Whether root itself, as far as its first names tell, holds a table or texts beside pictures."""
    try:
        names = {path.name for path in islice(root.iterdir(), 1000)}
    except OSError:
        return False
    stems = {posixpath.splitext(name)[0] for name in names if name.lower().endswith(tuple(picture_suffixes()))}
    texts = (posixpath.splitext(name) for name in names)
    return any(name.lower().endswith(SUFFIXES) for name in names) or any(
        suffix in TEXT_SUFFIXES and stem in stems for stem, suffix in texts
    )


def _named(own: OwnFolder, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        path = Path(name).expanduser()
        path = path if path.is_file() else own.root / path
        if not path.is_file():
            raise UserError(f"data.captions={name} is no file, seen from {Path.cwd()} or from data.root={own.root}")
        yield path


def _metadata(own: OwnFolder) -> list[Path]:
    found = [path for path in own.listing.others if posixpath.basename(path) in METADATA]
    for path in found:
        same = [other for other in found if posixpath.dirname(other) == posixpath.dirname(path)]
        if len(same) > 1 and own.layout in ("auto", "metadata"):
            raise UserError(f"{own.root} holds {' and '.join(same)}; name the one that is meant with data.captions")
    return [own.root / path for path in found]


def _tables(own: OwnFolder) -> tuple[dict[str, list[Path]], list[str]]:
    """The other tables in root and in folders directly below, by kind; and why others are none."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    flaws = []
    for path in own.listing.others:
        is_table = path.lower().endswith(SUFFIXES) and not own.listing.is_beside_a_picture(path)
        if is_table and path.count("/") < 2 and posixpath.basename(path) not in METADATA:
            try:
                if kind := _kind(own, own.root / path):
                    kinds[kind].append(own.root / path)
            except UserError as error:
                flaws.append(str(error))
    return kinds, flaws


def _kind(own: OwnFolder, file: Path) -> str | None:
    """`coco`, or `table` where the columns of picture and caption are known; raises UserError where they are not."""
    if file.suffix.lower() == ".json" and (whole := read_json(file, own.encoding).value):
        if isinstance(whole, dict) and isinstance(whole.get("images"), list) and "annotations" in whole:
            return "coco"
        if isinstance(whole, dict) and not any(isinstance(value, list) for value in whole.values()):
            return None
    columns = columns_of(file, own.encoding)
    if columns:
        Columns.of(own, file, columns)
    return "table" if columns else None


def _suffix_of_texts(own: OwnFolder) -> str | None:
    """Of the files beside pictures that hold their captions; None where there are none."""
    known = TEXT_SUFFIXES if own.caption_suffix == "auto" else (own.caption_suffix,)
    beside = {posixpath.splitext(path)[1] for path in own.listing.others if own.listing.is_beside_a_picture(path)}
    return next((suffix for suffix in known if suffix in beside), None)


def _nothing(own: OwnFolder, there: Sequence[str], flaws: Sequence[str]) -> str:
    if there:
        return f"no captions of layout {own.layout} in data.root={own.root}; did you mean data.layout={there[0]}?"
    if flaws:
        return flaws[0]
    pictures, others = len(own.listing.pictures), len(own.listing.others)
    return (
        f"no captions in data.root={own.root}, which holds {pictures} pictures and {others} other files: looked for "
        f"{', '.join(METADATA)}, for a table of pictures and captions ({', '.join(SUFFIXES)}), and for a.txt or "
        "a.caption beside a.jpg; data.captions=FILE names one that lies elsewhere"
    )


def _from_root(own: OwnFolder, file: Path) -> str:
    return file.relative_to(own.root).as_posix() if file.is_relative_to(own.root) else str(file)


# ----------------------------------------------------------------------------------------------------------- to records


def read_folder(own: OwnFolder) -> tuple[list[Photograph], list[Path]]:
    """The photographs, by their paths, and the files that name them.

    Raises:
        UserError: no captions are there, or a file of them is not what it claims.
    """
    found = recognise(own)
    names = ", ".join(_from_root(own, file) for file in found.files[:5]) + ", ..." * (len(found.files) > 5)
    also = f"; there too: {', '.join(found.also)}, which data.layout=NAME chooses" if found.also else ""
    log.info("%s, %s layout: reading %s%s", own.root, found.layout, names or "files beside pictures", also)
    gathering = Gathering(str(own.root))
    read = {"coco": _read_coco, "texts": _read_texts}.get(found.layout, _read_tables)
    divided_by = read(own, found.files, gathering)
    photographs = gathering.photographs()
    if unnamed := len(own.listing.pictures) - sum(_from_root(own, p.path) in own.listing.pictures for p in photographs):
        log.info("%d pictures in %s have no caption and are left out", unnamed, own.root)
    in_order = sorted(photographs, key=lambda photograph: photograph.path.as_posix())
    photographs = _divided(own, in_order, divided_by if own.split_by == "auto" else own.split_by)
    return photographs, list(found.files)


def _read_tables(own: OwnFolder, files: Sequence[Path], gathering: Gathering) -> str:
    """Fill `gathering`; what says the splits, where anything does."""
    columns = {file: Columns.of(own, file, columns_of(file, own.encoding)) for file in files}
    for said in dict.fromkeys(map(str, columns.values())):
        log.info("columns: %s", said)
    paths: dict[str, Path] = {}
    for file in files:
        folder, of_file = own.listing.beside(file), _splits_of_files(own, files).get(file, "")
        for place, row in read_table(file, own.encoding, columns[file].spills):
            name, captions, split = columns[file].cells(place, row)
            path = own.listing.picture(name, folder, place)
            if path not in paths:  # of each, one that all its rows share
                paths[path] = own.root / path
            gathering.add(path, paths[path], _split(own, split, path, of_file, place), place)
            for caption in captions:
                gathering.caption(path, caption)
    return "column" if any(of_file.split for of_file in columns.values()) else "folder"


def _read_coco(own: OwnFolder, files: Sequence[Path], gathering: Gathering) -> str:
    """The image ids are the files' own; where two files have one id for two pictures, the paths."""
    wholes = [read_json(file, own.encoding) for file in files]
    names: dict[tuple[int, str | int], tuple[str, Node]] = {}
    for number, whole in enumerate(wholes):
        folder = own.listing.beside(files[number])
        for image in whole.objects("images"):
            of_file = number, image.text_or_whole("id")
            path = own.listing.picture(image.text("file_name"), folder, image)
            if of_file in names and names[of_file][0] != path:
                raise UserError(
                    f"{image} has the id {of_file[1]}, as {names[of_file][1]} has; an id stands for one picture"
                )
            names[of_file] = path, image
    by_id: dict[str | int, set[str]] = defaultdict(set)
    for (_, image_id), (path, _) in names.items():
        by_id[image_id].add(path)
    if is_unique := all(len(paths) == 1 for paths in by_id.values()):
        is_unique = len({path for path, _ in names.values()}) == len(by_id)
    if not is_unique:
        log.info("ids are not unique in %s, so pictures go by their paths", ", ".join(map(str, files)))
    key: str | int
    of_files = _splits_of_files(own, files)
    for (number, image_id), (path, image) in names.items():
        split = _split(own, "", path, of_files.get(files[number], ""), image)
        gathering.add(image_id if is_unique else path, own.root / path, split, image)
    for number, whole in enumerate(wholes):
        for annotation in whole.objects("annotations"):
            image_id = annotation.text_or_whole("image_id")
            if (number, image_id) not in names:
                raise UserError(f"{annotation} is a caption of image {image_id}, which is not in the list of images")
            key = image_id if is_unique else names[number, image_id][0]
            gathering.caption(key, annotation.text("caption"))
    return "folder"


def _read_texts(own: OwnFolder, files: Sequence[Path], gathering: Gathering) -> str:
    suffix = _suffix_of_texts(own)
    others = [other for other in TEXT_SUFFIXES if own.caption_suffix == "auto" and other != suffix]
    lines = own.captions_per_file == "lines"
    log.info("captions: %s beside pictures, %s a file", suffix, "each line of" if lines else "one")
    for path in own.listing.others:
        stem, this = posixpath.splitext(path)
        if this not in (suffix, *others) or stem not in own.listing.stems:
            continue
        if this != suffix:
            gathering.count(f"{this} files beside pictures unread, which data.caption_suffix={this} reads")
            continue
        file, pictures = own.root / path, own.listing.stems[stem]
        if len(pictures) > 1:
            raise UserError(f"{file} may be of {' or '.join(pictures)}; rename one of them, and write its own text")
        gathering.add(pictures[0], own.root / pictures[0], _split(own, "", pictures[0], "", file), file)
        text = read_text(file, own.encoding)
        for caption in text.splitlines() if lines else [text]:
            gathering.caption(pictures[0], caption)
    return "folder"


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what."""

    image: str
    captions: tuple[str, ...]
    split: str | None
    spills: str | None  # which may hold delimiters without being quoted

    def __str__(self) -> str:
        of_split = f", {self.split} is the split" if self.split else ""
        return f"{self.image} is the picture, {' and '.join(self.captions)} the caption{of_split}"

    @classmethod
    def of(cls, own: OwnFolder, file: Path, names: Sequence[str]) -> "Columns":
        """Those that the keys name, or that have the usual names; raises UserError where there are none."""
        known = nearest(names)
        of_file = [known[key] for key in known if key.endswith("_file_name")]
        image = _chosen(own.image_column, "image_column", names, file)
        image = image or next((known[name] for name in PICTURES if name in known), None)
        image = image or (of_file[0] if len(of_file) == 1 else None)
        asked = [own.caption_column] if isinstance(own.caption_column, str) else own.caption_column or ()
        captions = [name for one in asked if (name := _chosen(one, "caption_column", names, file))]
        captions = captions or [known[name] for name in CAPTIONS if name in known and known[name] != image][:1]
        captions = captions or [known[name] for name in known if NUMBERED.fullmatch(name)]
        missing = {"picture": ("image_column", image), "caption": ("caption_column", captions)}
        for what, (key, value) in missing.items():
            if not value:
                raise UserError(
                    f"{file} names its columns {', '.join(names)}; which one holds the {what}? say data.{key}=NAME"
                    + ("" if len(names) > 1 else ", and let its first line name all")
                )
        split = _chosen(own.split_column, "split_column", names, file)
        if own.split_by in ("auto", "column"):
            split = split or next((known[name] for name in SPLITS if name in known), None)
        if own.split_by == "column" and split is None:
            raise UserError(f"data.split_by=column, but {file} has no column {SPLITS[0]}; say data.split_column=NAME")
        last = captions[0] if len(captions) == 1 and file.suffix.lower() in DELIMITERS else None
        return cls(str(image), tuple(captions), split if own.split_by in ("auto", "column") else None, last)

    def cells(self, place: object, row: Mapping[str, Any]) -> tuple[str, list[str], str]:
        """The picture's name, the captions and the split of a row."""
        name, split = row.get(self.image), row.get(self.split or "")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            hint = "; pictures' bytes in Parquet are read by data=shards" if isinstance(name, dict | bytes) else ""
            raise UserError(f"{place}: {self.image} is {_shown(name)}, not a picture's name{hint}")
        captions = [text for column in self.captions for text in self._texts(place, column, row.get(column))]
        return name.strip(), captions, _known_split(split, f"{place}: {self.split}") if self.split else ""

    def _texts(self, place: object, column: str, value: object) -> list[str]:
        """The captions of a cell: a text, a list of them, or such a list written as JSON."""
        if isinstance(value, str) and value.startswith('["') and value.endswith('"]'):
            with suppress(ValueError):
                value = json.loads(value)
        values: list[Any] = value if isinstance(value, list) else [value]
        for one in values:
            if not isinstance(one, str | None):
                raise UserError(f"{place}: {column} is {_shown(value)}, not a text or a list of texts")
        return [one or "" for one in values]


def _chosen(asked: str | None, key: str, names: Sequence[str], file: Path) -> str | None:
    if asked is not None and asked not in names:
        raise UserError(f"data.{key}={asked} is none of the columns of {file}: {', '.join(names)}")
    return asked


def _shown(value: object) -> str:
    shown = repr(value) if value is not None else "empty"
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


# --------------------------------------------------------------------------------------------------------------- splits


@lru_cache(4096)  # folders are few
def _split_in(path: str) -> str:
    """The split that a folder of a path says, or its file's name; the outermost where several do.

    >>> _split_in("images/val2017/a.jpg"), _split_in("train-00001.csv"), _split_in("trains/a.jpg")
    ('val', 'train', '')
    """
    words = (SPLIT_WORD.search(part) for part in path.split("/"))
    return next((SPLIT_WORDS[word[1].lower()] for word in words if word), "")


def _splits_of_files(own: OwnFolder, files: Sequence[Path]) -> dict[Path, str]:
    """What the names of files of captions, and their folders under root, say; nothing where there is but one split."""
    splits = {file: _split_in(_from_root(own, file) if file.is_relative_to(own.root) else file.name) for file in files}
    return splits if len(set(splits.values())) > 1 else {}


def _split(own: OwnFolder, stated: str, picture: str, of_file: str, place: object) -> str:
    """A picture's split by its row, by the file that names it, or by its folder."""
    by_column = stated if own.split_by in ("auto", "column") else ""
    by_folder = (of_file or _split_in(posixpath.dirname(picture))) if own.split_by in ("auto", "folder") else ""
    said = {"restval": "train"}.get(by_column, by_column)
    if said and by_folder and said != by_folder:
        raise UserError(
            f"{place} puts {picture} in {by_column}, and its folder in {by_folder}; data.split_by=column or folder "
            "says which counts"
        )
    return by_column or by_folder


def _known_split(value: object, place: str) -> str:
    word = str(value).strip().lower() if value is not None else ""
    if word in ("", "restval") or word in SPLIT_WORDS:
        return SPLIT_WORDS.get(word, word)
    raise UserError(
        f"{place} is {_shown(value)}, not a split such as train, val or test; data.split_column names another column, "
        "and data.split_by=seed divides the pictures"
    )


def _divided(own: OwnFolder, photographs: list[Photograph], by: str) -> list[Photograph]:
    """With what lists say, where neither a column nor folders say it; says what divides them.

    Raises:
        UserError: what shall divide them is not there, or leaves train or val empty.
    """
    if not any(photograph.split for photograph in photographs):
        lists = _lists(own) if own.split_by in ("auto", "lists") else {}
        if not lists and own.split_by in ("auto", "seed"):
            return photographs
        by_path = _listed(own, lists)
        photographs = [replace(one, split=by_path.get(_from_root(own, one.path), "")) for one in photographs]
        by = ", ".join(path.name for path in lists.values()) or by
    counts = Counter(photograph.split for photograph in photographs)
    log.info("splits: by %s", by)
    if missing := [split for split in ("train", "val") if not counts[split]]:
        said = ", ".join(f"{split or 'in none'} {count}" for split, count in sorted(counts.items()))
        raise UserError(
            f"no photographs for {' and '.join(missing)} in data.root={own.root} by {by} (there are {said}); add them, "
            "or let data.split_by=seed divide all photographs"
        )
    if counts[""]:
        log.warning("%d of %d photographs are in no split, and are left out", counts[""], len(photographs))
    return photographs


def _lists(own: OwnFolder) -> dict[str, Path]:
    """Split -> the list of its pictures: `train.txt` and the like, in root."""
    found: dict[str, Path] = {}
    for path in own.listing.others:
        is_list = path.endswith(".txt") and "/" not in path and not own.listing.is_beside_a_picture(path)
        if is_list and (split := _split_in(path)):
            if split in found:
                raise UserError(f"{own.root / path} and {found[split]} both list {split}; remove one")
            found[split] = own.root / path
    return found


def _listed(own: OwnFolder, lists: Mapping[str, Path]) -> dict[str, str]:
    """Picture -> split."""
    places: dict[str, tuple[str, str]] = {}
    for split, path in lists.items():
        for line, name in read_lines(path, own.encoding):
            picture = own.listing.picture(name, "", f"{path}:{line}")
            other, place = places.setdefault(picture, (split, f"{path}:{line}"))
            if other != split:
                raise UserError(
                    f"{picture} is in {other} ({place}) and in {split} ({path}:{line}); remove it from one of the "
                    "lists, or a model is judged by what it has seen"
                )
    return {picture: split for picture, (split, _) in places.items()}
