"""Scores COCO results, or the JSONL or CSV of predict.py, against COCO captions.

python -m captioning.evaluation RESULTS ANNOTATIONS.json --output scores.json
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from captioning.data.readers.coco import read_references
from captioning.errors import UserError, writing
from captioning.evaluation.scoring import Scores, check_pictures, score, scores_json
from captioning.files import readable, write_atomically
from captioning.prediction.outputs.read_back import Key, of_pictures, read_candidates


def table(scores: Scores) -> str:
    """The corpus figures as people quote them: times 100."""
    return "\n".join(f"{name:<8}{100 * figure:8.2f}" for name, figure in scores.corpus.items())


def evaluate(
    results: Path, annotations: Path, output: Path, *, java: bool, only_captioned: bool, overwrite: bool = False
) -> Scores:
    """Scores the files and writes `output`, which appears whole or not at all.

    Raises:
        UserError: for files that can't be read or don't belong together, and an output that can't be written.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, for example {output / 'scores.json'}")
    if any(output.exists() and output.samefile(given) for given in (results, annotations) if given.exists()):
        raise UserError(f"--output {output} is one of the files to be scored; name another file")
    references = cast(dict[Key, list[str]], read_references(annotations))
    candidates = of_pictures(read_candidates(results), references, annotations)
    if only_captioned:
        references = {picture: captions for picture, captions in references.items() if picture in candidates}
    _check(candidates, references, results, annotations)
    if output.exists() and not overwrite:
        raise UserError(f"--output {output} exists already; replace it with --overwrite, or name another file")
    scores = score(candidates, references, java=java)
    with writing(f"--output {output}", "choose another place"):
        write_atomically(output, scores_json(scores))
    return scores


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
    parser.add_argument("results", type=Path, help="COCO results, or a .jsonl or .csv of predict.py")
    parser.add_argument("annotations", type=Path, help="COCO captions, like captions_val2017.json")
    parser.add_argument("--output", type=Path, default=Path("scores.json"), help="default: scores.json")
    parser.add_argument("--no-java", action="store_true", help="without METEOR and SPICE, in seconds")
    parser.add_argument(
        "--only-captioned", action="store_true", help="leave out pictures with no candidate, instead of refusing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    given = parser.parse_args(arguments)
    try:
        scores = evaluate(
            given.results,
            given.annotations,
            given.output,
            java=not given.no_java,
            only_captioned=given.only_captioned,
            overwrite=given.overwrite,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(table(scores))
    empty = scores.signature["empty_candidates"]
    if empty:
        print(f"warning: {empty} candidates hold no word, and so score nothing; were they captioned?", file=sys.stderr)
    for sentence in scores.left_out:
        print(sentence, file=sys.stderr)
    print(f"{scores.signature['pictures']} pictures, times 100; each one's own scores are in {readable(given.output)}")


if __name__ == "__main__":
    main()
