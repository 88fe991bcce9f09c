"""COCO's own files: annotations, `captions_train2017.json` and `captions_val2017.json`, and results of captioning.

The captions of its test pictures are secret.
"""

from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from pycocotools.coco import COCO

from captioning.data.readers.annotations import Gathering, Node, PictureFolders, inside, read_json
from captioning.data.records import ImageId, Photograph
from captioning.errors import UserError

FILES = {year: (f"captions_train{year}.json", f"captions_val{year}.json") for year in (2017, 2014)}


def read_official(root: Path, files: Mapping[str, Path], year: int = 2017) -> list[Photograph]:
    """The photographs of both files, in their order; the image ids are COCO's numbers.

    Pictures lie in the archives' folders, in `images/`, or all in one folder; names may hold a folder.
    """
    gathering = Gathering(f"COCO {year}")
    for split, name in zip(("train", "val"), FILES[year], strict=True):
        _gather(gathering, root, f"{split}{year}", split, read_json(files[name]))
    return gathering.photographs()


def read_official_2014(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The same of the files of 2014, which hold the pictures of 2017 divided otherwise."""
    return read_official(root, files, 2014)


def _gather(gathering: Gathering, root: Path, folder: str, split: str, file: Node) -> None:
    folders = PictureFolders(root, [folder, f"images/{folder}", "images", ""])
    for image in file.objects("images"):
        path = folders.expected(inside(image.text("file_name"), root, image))
        gathering.add(image.whole("id"), path, split, image)
    index = _index(file)
    for image_id, annotations in index.imgToAnns.items():
        for annotation in annotations:
            gathering.caption(image_id, annotation["caption"], annotation["id"])


def _index(file: Node) -> COCO:
    """pycocotools' index of a file that was read; it would meet malformed files with a KeyError, so they end here."""
    image_ids = {image["id"] for image in file.value["images"]}  # whole numbers: `_gather` met them all
    for annotation in file.objects("annotations"):
        annotation.whole("id")
        annotation.text("caption")
        image_id = annotation.whole("image_id")
        if image_id not in image_ids:
            raise UserError(
                f"{annotation} is a caption of image {image_id}, which is not in the file's list of images; "
                "remove the caption, or fetch the file again"
            )
    index = COCO()
    index.dataset = file.value
    with redirect_stdout(StringIO()):
        index.createIndex()
    return index


def read_results(path: Path) -> dict[ImageId, str]:
    """The candidates of a results file, by picture, in its order; a caption may be empty.

    Raises:
        UserError: if it can't be read, is no list of `{"image_id": ..., "caption": ...}`, or names a picture twice.
    """
    candidates: dict[ImageId, str] = {}
    for row, picture, caption in _captions(path, "", '[{"image_id": 42, "caption": "a dog"}, ...]'):
        if picture in candidates:
            raise UserError(f"{row}: picture {picture} has a candidate already; keep one caption for each picture")
        candidates[picture] = caption
    return candidates


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """The captions of an annotation file, by picture, in its order.

    Raises:
        UserError: if it can't be read, has no `annotations` of `{"image_id": ..., "caption": ...}`, or one is empty.
    """
    references: dict[ImageId, list[str]] = {}
    example = '{"annotations": [{"image_id": 42, "caption": "a dog"}, ...], ...}'
    for row, picture, caption in _captions(path, "annotations", example):
        if not caption.strip():
            raise UserError(f"{row}: the reference of picture {picture} is empty; remove it, or write a caption")
        references.setdefault(picture, []).append(caption)
    return references


def read_file_names(path: Path) -> dict[ImageId, str]:
    """The `file_name` of each picture of an annotation file, as far as it has a list `images`; the file is JSON."""
    content = read_json(path).value
    images = content.get("images") if isinstance(content, dict) else None
    rows = [row for row in images if isinstance(row, dict)] if isinstance(images, list) else []
    names = {row["id"]: row.get("file_name") for row in rows if isinstance(row.get("id"), ImageId)}
    return {picture: name.replace("\\", "/") for picture, name in names.items() if isinstance(name, str)}


def _captions(path: Path, key: str, example: str) -> list[tuple[Node, ImageId, str]]:
    """The objects of the list under `key`, each with its picture and its caption."""
    try:
        rows = read_json(path).objects(key)
        found = [(row, row.text_or_whole("image_id"), row.text("caption")) for row in rows]
        if not found:
            raise UserError(f"{path} holds no captions")
    except UserError as error:
        raise UserError(f"{error}. The file should look like {example}") from error
    return found
