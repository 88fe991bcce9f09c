"""Karpathy's `dataset_{coco,flickr30k,flickr8k}.json`: every photograph with its captions and its split."""

from collections.abc import Callable, Mapping
from pathlib import Path

from captioning.data.readers.annotations import Gathering, Node, PictureFolders, inside, read_json
from captioning.data.readers.flickr import FLICKR8K_FOLDERS, FLICKR30K_FOLDERS
from captioning.data.records import Photograph
from captioning.errors import UserError

SPLITS = ("train", "restval", "val", "test")
COCO_FOLDERS = tuple(
    f"{place}{split}{year}" for place in ("", "images/") for year in (2014, 2017) for split in ("train", "val")
)


def read_coco(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The image ids are COCO's numbers. The file names pictures of 2014; those of 2017 are the same, named by id."""
    folders = PictureFolders(root, COCO_FOLDERS)
    here = PictureFolders(root, ["", "images"])

    def locate(image: Node) -> tuple[int, Path]:
        image_id = image.whole("cocoid")
        folder = image.text("filepath") if "filepath" in image.value else ""
        alone = inside(image.text("filename"), root, image)
        name = inside(f"{folder}/{alone}", root, image) if folder else alone
        number = f"{image_id:012d}.jpg"
        return image_id, here.find(name) or folders.find(number) or here.find(alone) or here.find(number) or root / name

    return _read(files["dataset_coco.json"], locate)


def read_flickr8k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The image ids are the file names."""
    return _read(files["dataset_flickr8k.json"], _by_name(root, FLICKR8K_FOLDERS))


def read_flickr30k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The image ids are the file names."""
    return _read(files["dataset_flickr30k.json"], _by_name(root, FLICKR30K_FOLDERS))


def _by_name(root: Path, places: tuple[str, ...]) -> Callable[[Node], tuple[str, Path]]:
    folders = PictureFolders(root, places)

    def locate(image: Node) -> tuple[str, Path]:
        name = image.text("filename").strip()
        return name, folders.expected(inside(name, root, image))

    return locate


def _read(path: Path, locate: Callable[[Node], tuple[int | str, Path]]) -> list[Photograph]:
    gathering = Gathering(path.name)
    for image in read_json(path).objects("images"):
        split = image.text("split")
        if split not in SPLITS:
            raise UserError(f"{image}.split is {split!r}, not one of {', '.join(SPLITS)}")
        image_id, file = locate(image)
        gathering.add(image_id, file, split, image)
        for sentence in image.objects("sentences"):
            number = sentence.whole("sentid") if "sentid" in sentence.value else None
            gathering.caption(image_id, sentence.text("raw"), number)
    return gathering.photographs()
