"""What captions of a split are worth: its scores and perplexity, and the files that say so."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioning.errors import UserError
from captioning.evaluation.scoring import Scores, score, scores_json
from captioning.prediction.journal import NOTHING, CaptionedPicture, May
from captioning.prediction.outputs.coco import CocoResults
from captioning.prediction.outputs.csv import cell
from captioning.prediction.outputs.files import Sink, check_file, new_file

RESULTS, SCORES, TABLE = "results.json", "scores.json", "pictures.csv"
HEAD = ("image_id", "path", "caption", "log_probability", "references")


def check_score_files(output: Path, overwrite: bool) -> None:
    """Raise UserError unless the files of scores can be written beside `output`."""
    for name in (RESULTS, SCORES, TABLE):
        path = output.with_name(name)
        if path == output:
            raise UserError(f"output={output} is the name of a file that lies beside it; take output=captions.jsonl")
        if path.exists() and not overwrite:
            raise UserError(
                f"output={output}: {path} exists already, and a split has its scores beside it; replace it with "
                "overwrite=true, or name an output in another folder"
            )
        check_file("output", path, overwrite)


class SplitScores(Sink):
    """Scores the captions of a split when it has all, and writes `results.json`, `scores.json` and `pictures.csv`.

    Pictures that could not be read have no caption and count nowhere; `scores.json` says how many they are.

    Args:
        output: the files lie beside it.
        pictures: how many there are.
        java: whether METEOR and SPICE are computed too.
        settings: how the captions are made, for `scores.json`.
        may: what is done with files that exist.

    Attributes:
        loss: nats per token, of the split's own captions; known when it is finished, and so is `scores`.
    """

    scores: Scores[int]  # by place
    loss: float

    def __init__(self, output: Path, pictures: int, java: bool, settings: Mapping[str, object], may: May = NOTHING):
        check_score_files(output, any(may))
        self._output, self._pictures, self._java, self._settings, self._may = output, pictures, java, settings, may
        self._nats, self._tokens = 0.0, 0
        self._captioned: dict[int, CaptionedPicture] = {}

    def add(self, record: CaptionedPicture) -> None:
        """The next picture."""
        if record.caption is not None:
            self._captioned[record.place] = replace(record, thumbnail=None, heat_map=None)

    def add_loss(self, nats: float, tokens: int) -> None:
        """The loss of a batch's own captions."""
        self._nats, self._tokens = self._nats + nats, self._tokens + tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def finish(self) -> None:
        """Compute and write them; raises UserError if no picture could be read, or where the disk objects."""
        if not self._captioned:
            raise UserError("no picture of this split could be read, so there is nothing to score; check data.root")
        candidates = {place: record.caption or "" for place, record in self._captioned.items()}
        references = {place: record.references for place, record in self._captioned.items()}
        self.scores, self.loss = score(candidates, references, java=self._java), self._nats / self._tokens
        with new_file("output", self._output.with_name(RESULTS), self._may) as file:
            results = CocoResults(file)
            for record in self._captioned.values():
                results.add(record)
            results.finish()
        with new_file("output", self._output.with_name(TABLE), self._may) as file:
            file.write("".join(self._table_lines()).encode())
        with new_file("output", self._output.with_name(SCORES), self._may) as file:
            file.write(self._json().encode())

    @property
    def head(self) -> list[str]:
        """The columns of `table`."""
        return [*HEAD, *self.scores.corpus]

    @property
    def table(self) -> list[list[Any]]:
        """A row for each captioned picture, in the order of `head`."""
        return [
            [
                *(record.image_id, record.path, record.caption, round(record.log_probability, 6)),
                "\n".join(record.references),
                *(round(figure, 6) for figure in self.scores.per_picture[place].values()),
            ]
            for place, record in self._captioned.items()
        ]

    def _table_lines(self) -> Iterator[str]:
        """`table` as CSV, safe for spreadsheets, with a byte order mark for Excel."""
        yield "\ufeff" + ",".join(self.head) + "\r\n"
        for row in self.table:
            yield ",".join(cell(value) if isinstance(value, str) else repr(value) for value in row) + "\r\n"

    def _json(self) -> str:
        scores = self.scores
        by_id = {self._captioned[place].image_id: figures for place, figures in scores.per_picture.items()}
        return scores_json(
            Scores(scores.corpus, by_id, scores.signature, scores.left_out, scores.variety, scores.sums),
            perplexity=self.perplexity,
            loss=self.loss,
            unreadable_pictures=self._pictures - len(self._captioned),
            settings=dict(self._settings),
        )
