"""Scores COCO results, or the JSONL or CSV of predict.py, against COCO captions; two of them are also compared.

python -m captioning.evaluation RESULTS ANNOTATIONS.json --output scores.json
python -m captioning.evaluation RESULTS OTHER_RESULTS ANNOTATIONS.json --output comparison.json
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from captioning.data.readers.coco import read_references
from captioning.errors import UserError, writing
from captioning.evaluation.intervals import CONFIDENCE, DRAWS, Difference, differences
from captioning.evaluation.scoring import Scores, Seen, check_pictures, score, scores_json, variety_of
from captioning.files import readable, write_atomically
from captioning.prediction.outputs.read_back import Key, of_pictures, read_candidates


def table(scores: Scores) -> str:
    """The corpus figures as people quote them, times 100, with their intervals; and the signs of captions all alike."""
    between = scores.intervals()
    lines = [f"{'':8}{'score':>8}    95% interval"] if between else []
    for name, figure in scores.corpus.items():
        low_high = "".join(f"{100 * end:8.2f}" for end in between.get(name, ()))
        lines.append(f"{name:<8}{100 * figure:8.2f}{low_high}")
    return "\n".join([*lines, _variety(scores.variety)])


def _variety(variety: Mapping[str, float]) -> str:
    novel = f", {variety['novel']:.1%} not among the training captions" if "novel" in variety else ""
    return f"{variety['distinct']:.1%} of the captions differ, in {variety['vocabulary']} words{novel}"


def comparison_table(names: Sequence[str], scores: Sequence[Scores], found: Mapping[str, Difference]) -> str:
    """Both files' figures and their difference, times 100, with its interval, and how likely it is by chance."""
    lines = [f"{'':8}{'first':>8}{'second':>8}{'differ':>8}    95% interval       p"]
    for name, figure in scores[0].corpus.items():
        columns = [figure, scores[1].corpus[name], *(found[name][:3] if name in found else ())]
        p = f"{found[name].p:8.3f}" if name in found else ""
        lines.append(f"{name:<8}" + "".join(f"{100 * column:8.2f}" for column in columns) + p)
    alike = [f"{name}: {_variety(one.variety)}" for name, one in zip(names, scores, strict=True)]
    return "\n".join([*lines, *alike])


def read_both(
    results: Sequence[Path], annotations: Path, only_captioned: bool
) -> tuple[list[dict[Key, str]], dict[Key, list[str]]]:
    """Each file's candidates, and the references of the same pictures.

    Raises:
        UserError: for files that can't be read or don't belong together.
    """
    references = cast(dict[Key, list[str]], read_references(annotations))
    candidates = [of_pictures(read_candidates(path), references, annotations) for path in results]
    if only_captioned:
        if len(candidates) > 1:  # what one of them has alone can't be compared
            both = set.intersection(*(set(of_file) & references.keys() for of_file in candidates))
            candidates = [{one: text for one, text in of_file.items() if one in both} for of_file in candidates]
        references = {one: captions for one, captions in references.items() if one in candidates[0]}
    for path, of_file in zip(results, candidates, strict=True):
        _check(of_file, references, path, annotations)
    return candidates, references


def evaluate(
    results: Sequence[Path],
    annotations: Path,
    output: Path,
    *,
    java: bool,
    only_captioned: bool,
    training: Path | None = None,
    overwrite: bool = False,
) -> list[Scores]:
    """Scores one file, or two that it compares, and writes `output`, which appears whole or not at all.

    Raises:
        UserError: for files that can't be read or don't belong together, and an output that can't be written.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, for example {output / 'scores.json'}")
    read = [*results, annotations, *([training] if training else [])]
    if any(output.exists() and output.samefile(given) for given in read if given.exists()):
        raise UserError(f"--output {output} is one of the files to be scored; name another file")
    candidates, references = read_both(results, annotations, only_captioned)
    seen = None
    if training is not None:
        seen = Seen(text for texts in read_references(training).values() for text in texts)
    if output.exists() and not overwrite:
        raise UserError(f"--output {output} exists already; replace it with --overwrite, or name another file")
    scores = []
    for of_file in candidates:
        in_order = {picture: of_file[picture] for picture in references}
        scored = score(in_order, references, java=java)
        scores.append(replace(scored, variety=variety_of(list(in_order.values()), seen)))
    text = scores_json(scores[0]) if len(scores) == 1 else _comparison_json(results, scores)
    with writing(f"--output {output}", "choose another place"):
        write_atomically(output, text)
    return scores


def _comparison_json(results: Sequence[Path], scores: Sequence[Scores]) -> str:
    files = [
        {"file": str(path), **one.corpus, "intervals": one.intervals(), "variety": one.variety}
        for path, one in zip(results, scores, strict=True)
    ]
    found = {name: one._asdict() for name, one in differences(scores[0].sums, scores[1].sums).items()}
    test = f"approximate randomization over pictures, {DRAWS} draws; intervals of {CONFIDENCE:.0%} by the bootstrap"
    both = {"files": files, "second less first": found, "test": test, "signature": scores[0].signature}
    return json.dumps(both, ensure_ascii=False, indent=2) + "\n"


def _check(
    candidates: Mapping[Key, str], references: Mapping[Key, list[str]], results: Path, annotations: Path
) -> None:
    try:
        check_pictures(candidates, references)
    except UserError as error:
        missing = any(picture not in candidates for picture in references)
        known = all(picture in references for picture in candidates)
        way_out = "; --only-captioned scores the pictures that have a candidate" if missing and known else ""
        raise UserError(f"{results} and {annotations} don't belong together: {error}{way_out}") from error


def main(arguments: list[str] | None = None) -> None:
    """The command line; a user's mistake ends in one sentence and status 1."""
    parser = argparse.ArgumentParser(prog="python -m captioning.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="COCO results, or a .jsonl or .csv of predict.py; two are compared"
    )
    parser.add_argument("annotations", type=Path, help="COCO captions, like captions_val2017.json")
    parser.add_argument("--output", type=Path, help="default: scores.json, of two files comparison.json")
    parser.add_argument("--training", type=Path, help="COCO captions of training: how many candidates are none of them")
    parser.add_argument("--no-java", action="store_true", help="without METEOR and SPICE, in seconds")
    parser.add_argument(
        "--only-captioned", action="store_true", help="leave out pictures with no candidate, instead of refusing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    given = parser.parse_args(arguments)
    results: list[Path] = given.results
    output = given.output or Path("scores.json" if len(results) == 1 else "comparison.json")
    try:
        if len(results) > 2:
            raise UserError(
                f"{len(results)} files of results were named and the annotations; score one, or compare two"
            )
        scores = evaluate(
            results,
            given.annotations,
            output,
            java=not given.no_java,
            only_captioned=given.only_captioned,
            training=given.training,
            overwrite=given.overwrite,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    _say(results, scores, output)


def _say(results: Sequence[Path], scores: Sequence[Scores], output: Path) -> None:
    if len(scores) == 1:
        print(table(scores[0]))
    else:
        print(comparison_table([path.name for path in results], scores, differences(scores[0].sums, scores[1].sums)))
    for one in scores:
        empty = one.signature["empty_candidates"]
        if empty:
            words = "candidates hold no word, and so score nothing; were they captioned?"
            print(f"warning: {empty} {words}", file=sys.stderr)
    for sentence in scores[0].left_out:
        print(sentence, file=sys.stderr)
    own = "; each one's own scores are" if len(scores) == 1 else "; the comparison is"
    print(f"{scores[0].signature['pictures']} pictures, times 100{own} in {readable(output)}")


if __name__ == "__main__":
    main()
