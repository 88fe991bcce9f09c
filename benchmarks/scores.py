"""How long do the scores take, ours and the official tool's, and are they the same?

python benchmarks/scores.py [--small] [--annotations captions_val2017.json]

Made-up captions in the manner of COCO's, a candidate and five references a picture: 5,000 pictures, or 500 with
--small. With --annotations real ones instead, each picture's first caption the candidate against the others. Ours
tokenises and computes BLEU-1 to 4, ROUGE-L and CIDEr in one process on one core; the official tool, `pycocoevalcap`,
runs Stanford's tokenizer in Java and its own Python scorers on as many cores as it likes. Without Java or the package,
ours is measured alone.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measuring import Ratio, at_most, publish, ratio_table, setting, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from captioning.evaluation.scoring import score
from captioning.evaluation.tokenizer import _piece_tokens

BOUND_SECONDS = 5  # for 5,000 pictures; fewer are not held against it
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
ADJECTIVES = ["small", "large", "red", "white", "black", "young", "old", "wooden", "parked", "smiling"]
NOUNS = (
    *("man", "woman", "dog", "cat", "bus", "train", "kitchen", "pizza", "surfboard"),
    *("giraffe", "clock", "bench", "umbrella", "street", "field"),
)
VERBS = ["sits", "stands", "rides", "holds", "eats", "runs", "looks", "waits"]
PLACES = ("on the beach", "in front of a building", "next to a tree", "at night", "near Main St.", "by the dog's bowl")
SIGNS = ('that says "STOP"', "(seen from above)", "at 5:30 p.m.", "isn't there", "that's 3 1/2 feet tall", "")


def caption(draw: random.Random) -> str:
    """A sentence of about eleven words; one in six with something that the tokenizer must think about."""
    words = [draw.choice(ADJECTIVES), draw.choice(NOUNS), draw.choice(VERBS), draw.choice(PLACES)]
    words += ["with a", draw.choice(ADJECTIVES), draw.choice(NOUNS)]
    if draw.random() < 1 / 6:
        words.append(draw.choice(SIGNS))
    return f"A {' '.join(words)}."


def made_up(pictures: int) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Candidates and five references each."""
    draw = random.Random(0)
    references = {picture: [caption(draw) for _ in range(5)] for picture in range(pictures)}
    return {picture: caption(draw) for picture in references}, references


def real(annotations: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Each picture's first caption as the candidate, the others as its references."""
    references: dict[int, list[str]] = {}
    for row in json.loads(annotations.read_text(encoding="utf-8"))["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    return {picture: lines.pop(0) for picture, lines in references.items()}, references


def official(candidates: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    """The same scores by `pycocoevalcap`, Java tokenizer and all."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({key: [{"caption": line} for line in lines] for key, lines in references.items()})
    res = tokenizer.tokenize({key: [{"caption": line}] for key, line in candidates.items()})
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    return dict(
        zip(NAMES, [*bleu, Rouge().compute_score(gts, res)[0], Cider().compute_score(gts, res)[0]], strict=True)
    )


def ours(candidates: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    """Everything from strings, with no word remembered from before."""
    _piece_tokens.cache_clear()
    return score(candidates, references).corpus


def seconds(compute: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Wall-clock seconds and the result."""
    start = time.perf_counter()
    result = compute()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="500 pictures")
    parser.add_argument("--annotations", type=Path, help="a COCO captions file, instead of made-up captions")
    arguments = parser.parse_args()
    made = made_up(500 if arguments.small else 5000)
    candidates, references = real(arguments.annotations) if arguments.annotations else made
    pictures = len(candidates)
    captions = pictures + sum(map(len, references.values()))
    print(f"{setting()}; {pictures} pictures, {captions} captions\n")

    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    our_seconds, our_scores = seconds(lambda: ours(candidates, references))
    if cores:
        os.sched_setaffinity(0, cores)
    shown, what, ratios = f"{our_seconds:.2f} s, one core", f"scores of {pictures} pictures", []
    if pictures >= 5000:
        ratios.append(at_most(what, shown, f"{BOUND_SECONDS} s", our_seconds / BOUND_SECONDS, 1))
    rows = [["ours", *(f"{our_scores[name]:.6f}" for name in NAMES)]]
    if importlib.util.find_spec("pycocoevalcap") and shutil.which("java"):
        their_seconds, their_scores = seconds(lambda: official(candidates, references))
        ratios.append(Ratio(what, shown, f"official tool {their_seconds:.2f} s", their_seconds / our_seconds))
        rows.append(["pycocoevalcap", *(f"{their_scores[name]:.6f}" for name in NAMES)])
        apart = max(abs(our_scores[name] - their_scores[name]) for name in NAMES)
        print(f"largest difference of a figure: {apart:.1e}")
    else:
        print("pycocoevalcap or java is not there, so there is nothing to compare with")
    print(table(["", *NAMES], rows), "\n")
    print(ratio_table(ratios))
    sys.exit(publish(ratios))


if __name__ == "__main__":
    main()
