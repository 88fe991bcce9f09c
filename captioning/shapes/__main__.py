"""Draws a folder of pictures, with or without captions, and judges the captions that a model gave them.

python -m captioning.shapes draw FOLDER --split test --count 64 --seed 42 --image-size 48
python -m captioning.shapes draw FOLDER/train --split train --count 4000 --captions
python -m captioning.shapes judge captions.jsonl
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from PIL import Image

from captioning.errors import UserError, writing
from captioning.files import readable, write_atomically
from captioning.shapes.grammar import captions_of
from captioning.shapes.judge import is_true
from captioning.shapes.scenes import SPLIT_STARTS, draw, scene_of, split_indices

# A picture's name alone says which scene it shows.
_NAME = re.compile(r"shapes-(?:train|val|test)-seed(?P<seed>\d+)-(?P<index>\d+)\.png")


def draw_folder(folder: Path, split: str, count: int, seed: int, image_size: int, captions: bool = False) -> None:
    """Writes `count` square pictures, `image_size` pixels a side, named after split, seed and index.

    With `captions`, `metadata.jsonl` has a line for each caption, so that data=folder can be trained on.

    Raises:
        UserError: if the folder can't be written, or a number is out of range.
    """
    indices = split_indices(split, count)
    if seed < 0:
        raise UserError(f"--seed is {seed}; give 0 or more")
    if image_size < 1:
        raise UserError(f"--image-size is {image_size} pixels; give at least 1")
    with writing(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index in indices:
            name = f"shapes-{split}-seed{seed}-{index:07d}.png"
            Image.fromarray(draw(scene_of(seed, index), image_size)).save(folder / name)
            rows += [{"file_name": name, "caption": caption} for caption in captions_of(seed, index)]
        if captions:
            write_atomically(folder / "metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def judged_lines(file: Path) -> Iterator[tuple[str, str, bool]]:
    """Path, caption and whether it is true, for each line (`{"path": ..., "caption": ...}`) of a JSONL file.

    Raises:
        UserError: if the file can't be read, or a line is no prediction for a drawn picture; file and line are named.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read as UTF-8 text ({error}); give a file that predict.py wrote") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, caption = _prediction(line, f"{file}:{number}")
        name = _NAME.fullmatch(PurePath(path).name)
        if not name:
            raise UserError(f"{file}:{number}: {path} is not named like a picture that `draw` writes; judge only those")
        yield path, caption, is_true(caption, scene_of(int(name["seed"]), int(name["index"])))


def _prediction(line: str, place: str) -> tuple[str, str]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: this is not JSON ({error.msg}); give a file that predict.py wrote") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ("path", "caption")):
        raise UserError(f"{place}: {line[:80]} has no path and caption; give a file that predict.py wrote")
    return content["path"], content["caption"]


def print_verdict(file: Path) -> None:
    """Prints how many captions of the file are true, then the false ones."""
    verdicts = list(judged_lines(file))
    if not verdicts:
        raise UserError(f"{file} holds no predictions; give a file that predict.py wrote")
    true = sum(verdict for _, _, verdict in verdicts)
    print(f"{true} of {len(verdicts)} captions are true ({true / len(verdicts):.1%})")
    for path, caption, verdict in verdicts:
        if not verdict:
            print(f"false: {path}: {caption}")


def main(arguments: list[str] | None = None) -> None:
    """The command line; a user's mistake ends in one sentence and status 1."""
    parser = argparse.ArgumentParser(prog="python -m captioning.shapes", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="write pictures as PNG files")
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--split", default="test", choices=tuple(SPLIT_STARTS))
    drawing.add_argument("--count", type=int, default=64, help="pictures (default 64)")
    drawing.add_argument("--seed", type=int, default=42, help="of the data set (default 42)")
    drawing.add_argument("--image-size", type=int, default=48, help="pixels a side (default 48)")
    drawing.add_argument("--captions", action="store_true", help="write metadata.jsonl too, to train on by data=folder")
    judging = commands.add_parser("judge", help="count the true captions of a predictions file")
    judging.add_argument("captions", type=Path, help='JSON lines of {"path": ..., "caption": ...}')
    given = parser.parse_args(arguments)
    try:
        if given.command == "draw":
            sizes = given.split, given.count, given.seed, given.image_size
            draw_folder(given.folder, *sizes, captions=given.captions)
            print(f"{given.count} pictures of the {given.split} split, seed {given.seed}: {readable(given.folder)}")
        else:
            print_verdict(given.captions)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
