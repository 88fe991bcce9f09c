"""Which data sets there are, in which layouts each comes, and which of these lies under a root.

A data set of photographs is one entry of `SOURCES`; each of its layouts names its annotation files, and the reader that
makes photographs of them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from captioning.config import Built, FolderConfig, HubConfig, PhotographsConfig, ShardsConfig
from captioning.data.arrow import require_hub
from captioning.data.download import Archive, fetch, unpack
from captioning.data.readers import coco, flickr, folder, karpathy
from captioning.data.readers.annotations import names_in
from captioning.data.records import Photograph
from captioning.data.remote import is_remote
from captioning.data.shards import shard_names
from captioning.errors import UserError, writing
from captioning.files import locked, unlocked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set comes: the files that are all needed, and where under root each may lie."""

    name: str
    files: tuple[str, ...]
    folders: tuple[str, ...]  # "" is root itself
    read: Callable[[Path, Mapping[str, Path]], list[Photograph]]
    lists: Mapping[str, str] = field(default_factory=dict)  # split -> file that lists its photographs, where there
    has_splits: bool = False  # without any lists

    def find(self, root: Path) -> dict[str, Path]:
        """File name -> path, for those of the needed files and the lists that are there."""
        names = (*self.files, *self.lists.values())
        places = ((name, root / folder / name) for name in names for folder in reversed(self.folders))
        return {name: path for name, path in places if _is_file(path)}

    def fits(self, root: Path) -> bool:
        """Whether all the needed files are there."""
        return self.find(root).keys() >= set(self.files)

    def splits(self, root: Path) -> bool:
        """Whether what is there says which split a photograph is in."""
        return self.has_splits or not self.find(root).keys().isdisjoint(self.lists.values())

    @property
    def wanted(self) -> str:
        """What is looked for, in words."""
        return " and ".join(str(Path(self.folders[0], name)) for name in self.files)


@dataclass(frozen=True)
class Source:
    """A data set: its layouts, the official release first, and where to get it."""

    title: str
    layouts: tuple[Layout, ...]
    download: str
    published: str = ""  # what is reached on it, with the source
    archives: tuple[Archive, ...] = ()  # that `prepare.py download=...` fetches; the official layout
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # split -> photographs, captions in them


COCO = "http://images.cocodataset.org"  # its certificate is of another name, so no https
FLICKR8K = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"

TEXT_8K = ("", "Flickr8k_text", "Flickr8k_text/Flickr8k_text")
TEXT_30K = ("", "flickr30k_images", "flickr30k_images/flickr30k_images", "flickr30k_entities")
JSON = ("", "annotations", "caption_datasets")
KARPATHY = "Karpathy's JSON from cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"

SOURCES = {
    "coco": Source(
        "COCO",
        (
            Layout("official", coco.FILES[2017], ("annotations", ""), coco.read_official, has_splits=True),
            Layout("official2014", coco.FILES[2014], ("annotations", ""), coco.read_official_2014, has_splits=True),
            Layout("karpathy", ("dataset_coco.json",), JSON, karpathy.read_coco, has_splits=True),
        ),
        "train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org",
        "Published on COCO's 5,000 test pictures of Karpathy's split: BLEU-4 0.250 (Xu et al. 2015, hard attention), "
        "0.362 and CIDEr 1.135 (Anderson et al. 2018, cross-entropy), 0.397 and 1.333 (Li et al. 2022, BLIP).",
        archives=(
            Archive(
                f"{COCO}/annotations/annotations_trainval2017.zip",
                "f4bbac642086de4f52a3fdda2de5fa2c",
                252_907_541,
                only=r"annotations/captions_.*",
            ),
            Archive(f"{COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            Archive(f"{COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
        ),
        counts={"train": (118_287, 591_753), "val": (5_000, 25_014)},
    ),
    "flickr8k": Source(
        "Flickr8k",
        (
            Layout("official", (flickr.TOKENS_8K,), TEXT_8K, flickr.read_official_8k, flickr.LISTS_8K),
            Layout("karpathy", ("dataset_flickr8k.json",), JSON, karpathy.read_flickr8k, has_splits=True),
            Layout("kaggle", (flickr.KAGGLE_8K,), TEXT_8K, flickr.read_kaggle_8k, flickr.LISTS_8K),
        ),
        "Flickr8k_Dataset.zip and Flickr8k_text.zip from the University of Illinois (forms.illinois.edu/sec/1713398), "
        "or adityajn105/flickr8k from Kaggle",
        "Published on Flickr8k's 1,000 test pictures: BLEU-4 0.213 (Xu et al. 2015, hard attention).",
        archives=(
            Archive(f"{FLICKR8K}/Flickr8k_text.zip", "bf6c1abcb8e4a833b7f922104de18627", folder="Flickr8k_text"),
            Archive(f"{FLICKR8K}/Flickr8k_Dataset.zip", "f18a1e2920de5bd84dae7cf08ec78978"),
        ),
        counts={"train": (6_000, 30_000), "val": (1_000, 5_000), "test": (1_000, 5_000)},
    ),
    "flickr30k": Source(
        "Flickr30k",
        (
            Layout("official", (flickr.TOKENS_30K,), TEXT_30K, flickr.read_official_30k, flickr.LISTS_30K),
            Layout("karpathy", ("dataset_flickr30k.json",), JSON, karpathy.read_flickr30k, has_splits=True),
            Layout("kaggle", (flickr.KAGGLE_30K,), TEXT_30K, flickr.read_kaggle_30k, flickr.LISTS_30K),
        ),
        "flickr30k-images.tar and flickr30k.tar.gz from the University of Illinois "
        "(shannon.cs.illinois.edu/DenotationGraph), or hsankesara/flickr-image-dataset from Kaggle",
        "Published on Flickr30k's 1,000 test pictures of Karpathy's split: BLEU-4 0.199 (Xu et al. 2015, hard "
        "attention), 0.301 and CIDEr 0.674 (Zhou et al. 2020).",
    ),
}


def find_photographs(dataset: str, root: Path, layout: str = "auto") -> list[Photograph]:
    """The captioned photographs of a data set, by the annotation files that lie under `root`.

    Args:
        dataset: `coco`, `flickr30k` or `flickr8k`.
        root: its folder.
        layout: `official`, `karpathy` or `kaggle`; `auto` takes one that comes with splits before one that doesn't,
            and then the official release before Karpathy's JSON.

    Raises:
        UserError: nothing is there, the named layout is not, or a file of it is malformed.
    """
    chosen = recognise(dataset, root, layout)
    source, files = SOURCES[dataset], chosen.find(root)
    read = ", ".join(str(path.relative_to(root)) for path in files.values())
    others = [f"{other.name} ({other.wanted})" for other in source.layouts if other is not chosen and other.fits(root)]
    also = f"; there too: {', '.join(others)}, which data.layout=NAME chooses" if others else ""
    log.info("%s, %s layout: reading %s%s", source.title, chosen.name, read, also)
    photographs = chosen.read(root, files)
    _refuse_caption_folder(root, chosen, photographs)
    return photographs


def annotation_files(dataset: str, root: Path, layout: str = "auto") -> list[Path]:
    """The files that `find_photographs` reads."""
    return list(recognise(dataset, root, layout).find(root).values())


def require_data(data: Built, without: str = "") -> None:
    """Raise UserError where `data` names photographs that are not there; it ends with what can be done `without`."""
    if isinstance(data, FolderConfig):
        folder.recognise(folder.OwnFolder.of(data.plain()))
    elif isinstance(data, ShardsConfig):
        require_shards(data)
    elif isinstance(data, HubConfig):
        require_hub(data.name)
    elif isinstance(data, PhotographsConfig):
        recognise(data.dataset, Path(data.root).expanduser(), data.layout, without)


def require_shards(data: ShardsConfig) -> None:
    """Raise UserError where shards of this machine are missing; the network is not asked."""
    for key, named in (("root", data.root), ("val_root", data.val_root), ("test_root", data.test_root)):
        patterns = [named] if isinstance(named, str) else named or []
        if here := [pattern for pattern in patterns if not is_remote(pattern)]:
            shard_names(here, f"data.{key}")


def recognise(dataset: str, root: Path, layout: str = "auto", without: str = "") -> Layout:
    """The layout that `find_photographs` reads, or its UserError; no file is opened, so this takes no time."""
    if dataset not in SOURCES:
        raise UserError(f"data.dataset={dataset} is none of {', '.join(SOURCES)}")
    source = SOURCES[dataset]
    known = {one.name: one for one in source.layouts}
    if layout != "auto" and layout not in known:
        raise UserError(f"data.layout={layout} is none of auto, {', '.join(known)}, the layouts of {source.title}")
    candidates = source.layouts if layout == "auto" else (known[layout],)
    fitting = [one for one in candidates if one.fits(root)]
    if not fitting:
        raise UserError(_nothing_fits(dataset, source, root, candidates, without))
    return min(fitting, key=lambda one: not one.splits(root))


WITH_AN_ACCOUNT = """\
Flickr30k is given to those who ask, so it cannot be fetched by a command. Either fill in the form at
https://shannon.cs.illinois.edu/DenotationGraph/, and unpack flickr30k-images.tar and flickr30k.tar.gz, whose links it \
sends, into {root}; or take Kaggle's copy with an account there:
  pip install kagglehub
  python -c "import kagglehub; kagglehub.login(); print(kagglehub.dataset_download('hsankesara/flickr-image-dataset'))"
and name the folder that it prints: data=flickr30k data.root=FOLDER"""


def download(dataset: str, root: Path) -> None:
    """Fetch a data set and unpack it under root, in its official layout; the archives are deleted when all is there.

    Raises:
        UserError: it cannot be fetched, or what was fetched has other numbers of photographs and captions.
    """
    source = SOURCES[dataset]
    if not source.archives:
        raise UserError(WITH_AN_ACCOUNT.format(root=root))
    if (lacking := _lacking(dataset, root)) is None:
        log.info("%s is complete in %s", source.title, root)
        return
    with writing(root, "choose another folder with data.root=PATH"):
        root.mkdir(parents=True, exist_ok=True)
    if (lock := locked(root / ".download.lock")) is None:
        raise UserError(f"another process is fetching into data.root={root}; wait for it, or end it")
    try:
        paths = {archive: fetch(archive, root) for archive in source.archives}
        for archive, path in paths.items():
            unpack(archive, path, root)
        if lacking := _lacking(dataset, root):
            raise UserError(f"all of {source.title} is unpacked in {root}, but {lacking}; move what else is there away")
        for path in paths.values():
            path.unlink()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    finally:
        unlocked(lock)
    log.info("python train.py data=%s data.root=%s trains on it", dataset, root)


def _lacking(dataset: str, root: Path) -> str | None:
    """What a data set lacks of its photographs and captions; None where all are there."""
    source = SOURCES[dataset]
    if not source.layouts[0].fits(root):
        return "its captions are missing"
    photographs = find_photographs(dataset, root, source.layouts[0].name)
    listings = {folder: names_in(folder) for folder in {photograph.path.parent for photograph in photographs}}
    there = [photograph for photograph in photographs if photograph.path.name in listings[photograph.path.parent]]
    for split, wanted in source.counts.items():
        mine = [photograph for photograph in there if photograph.split == split]
        met = len(mine), sum(len(photograph.captions) for photograph in mine)
        if met != wanted:
            return f"{split} has {met[0]:,} photographs with {met[1]:,} captions, not {wanted[0]:,} with {wanted[1]:,}"
        log.info("%s: %s photographs, %s captions, as published", split, f"{met[0]:,}", f"{met[1]:,}")
    return None


def _refuse_caption_folder(root: Path, layout: Layout, photographs: Sequence[Photograph]) -> None:
    """Raise UserError where root is the folder of the captions, and the pictures lie beside it."""
    parent = root.resolve().parent
    if any(_is_file(photograph.path) for photograph in islice(photographs, 100)) or not layout.fits(parent):
        return
    if any(_is_file(photograph.path) for photograph in islice(layout.read(parent, layout.find(parent)), 100)):
        raise UserError(f"data.root={root} holds captions, but not their pictures; did you mean data.root={parent}?")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that is closed to the user, such as lost+found
        return False


def _nothing_fits(dataset: str, source: Source, root: Path, layouts: Sequence[Layout], without: str) -> str:
    met = _met(source, root, layouts)
    if hint := next(_neighbours(dataset, source, root, layouts), None):
        return f"{met}; did you mean {hint}?"
    by_command = f"python prepare.py download={dataset} data.root={root} fetches them; or " if source.archives else ""
    return (
        f"{met}; {by_command}get {source.download} (and if you like {KARPATHY}), unpack them into one folder and set "
        f"data.root to that folder{without}"
    )


def _met(source: Source, root: Path, layouts: Sequence[Layout]) -> str:
    if not root.exists():
        return f"data.root={root} does not exist"
    if not root.is_dir():
        return f"data.root={root} is a file, not the folder of {source.title}"
    for layout in layouts:
        if found := [name for name in layout.files if name in layout.find(root)]:
            missing = [name for name in layout.files if name not in found]
            return f"{' and '.join(found)} is in data.root={root}, but {' and '.join(missing)} is not"
    wanted = ", or ".join(f"{layout.wanted} ({layout.name} layout)" for layout in layouts)
    return f"no captions of {source.title} in data.root={root}: looked for {wanted}"


def _neighbours(dataset: str, source: Source, root: Path, layouts: Sequence[Layout]) -> Iterator[str]:
    """What the user may have meant: another layout here, a folder near by, or another data set here."""
    for layout in source.layouts:
        if layout.fits(root):  # so it is none of `layouts`
            yield f"data.layout={layout.name}"
    near = [*_folders(root), root.parent] if root.is_dir() else _folders(root.parent)
    for place in near:
        if any(layout.fits(place) for layout in layouts):
            yield f"data.root={place}"
    for other, its in SOURCES.items():
        if other != dataset and any(layout.fits(root) for layout in its.layouts):
            yield f"data={other}"
    if folder.may_be_one(root):
        yield "data=folder, which takes pictures and captions of one's own"


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, few enough to look into."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())[:100]
    except OSError:
        return []
