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
from captioning.data.arrow import needed
from captioning.data.readers import coco, flickr, folder, karpathy
from captioning.data.records import Photograph
from captioning.data.remote import is_remote
from captioning.data.shards import shard_names
from captioning.errors import UserError

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
        needed("datasets", "hub")
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
    return (
        f"{met}; get {source.download} (and if you like {KARPATHY}), unpack them into one folder and set data.root to "
        f"that folder{without}"
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


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, few enough to look into."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())[:100]
    except OSError:
        return []
