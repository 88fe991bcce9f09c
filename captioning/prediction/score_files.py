"""The files that lie beside the captions of a split; known without torch, so that they can be refused at once."""

from pathlib import Path

from captioning.errors import UserError
from captioning.prediction.outputs import check_file

RESULTS, SCORES, TABLE = "results.json", "scores.json", "pictures.csv"


def check_files(output: Path, overwrite: bool) -> None:
    """Raise UserError unless they can be written beside `output`."""
    for name in (RESULTS, SCORES, TABLE):
        beside = output.with_name(name)
        if beside == output:
            raise UserError(f"output={output} is the name of a file that lies beside it; take output=captions.jsonl")
        check_file("output", beside, overwrite, "captions.jsonl")
