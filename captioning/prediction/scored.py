"""What captions of a split are worth: its scores and perplexity, and the files that say so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.errors import UserError
from captioning.evaluation.scoring import Scores, score, scores_json
from captioning.files import write_atomically
from captioning.prediction.describing import Described
from captioning.prediction.formats import CocoResults, Row, cell
from captioning.prediction.score_files import RESULTS, SCORES, TABLE
from captioning.prediction.splits import CaptionedSplit


@dataclass(frozen=True)
class Result:
    """A split's captions scored."""

    scores: Scores[int]  # by place
    loss: float  # nats per token, of the split's own captions
    perplexity: float


class ScoredSplit:
    """Takes the captions of a split batch by batch; at the end scores them and writes the files.

    Pictures that could not be read have no caption and count nowhere; `scores.json` says how many they are.

    Args:
        split: what is captioned.
    """

    def __init__(self, split: CaptionedSplit):
        self._split = split
        self._nats, self._tokens = 0.0, 0
        self.candidates: dict[int, str] = {}
        self._log_probabilities: dict[int, float] = {}

    def add(self, described: Described, texts: list[str]) -> None:
        """A batch's captions, and the loss of the split's own captions of its pictures."""
        batch, captions, (nats, tokens) = described
        self._nats, self._tokens = self._nats + nats, self._tokens + tokens
        self.candidates |= dict(zip(batch.indices, texts, strict=True))
        for place, caption in zip(batch.indices, captions, strict=True):
            self._log_probabilities[place] = caption.log_probability

    def result(self, java: bool) -> Result:
        """All scores and the perplexity; raises UserError if no picture could be read."""
        if not self.candidates:
            raise UserError("no picture of this split could be read, so there is nothing to score; check data.root")
        references = {place: self._split.captions[place] for place in self.candidates}
        scores = score(dict(sorted(self.candidates.items())), references, java=java)
        loss = self._nats / self._tokens
        return Result(scores, loss, math.exp(loss))

    def write(self, result: Result, output: Path, settings: Mapping[str, Any]) -> None:
        """`results.json`, `scores.json` and `pictures.csv` beside `output`, each whole or not there."""
        ids, split = self._split.image_ids, self._split
        results = CocoResults(output.with_name(RESULTS))
        rows = [
            results.row(Row(str(split.paths[place]), text, image_id=ids[place]))
            for place, text in sorted(self.candidates.items())
        ]
        by_id = Scores(
            result.scores.corpus,
            {ids[place]: figures for place, figures in result.scores.per_picture.items()},
            result.scores.signature,
            result.scores.left_out,
        )
        more = {
            "perplexity": result.perplexity,
            "loss": result.loss,
            "unreadable_pictures": len(split) - len(self.candidates),
            "settings": dict(settings),
        }
        try:
            write_atomically(output.with_name(RESULTS), "".join(rows) + results.end())
            write_atomically(output.with_name(TABLE), self.table(result))
            write_atomically(output.with_name(SCORES), scores_json(by_id, **more))
        except OSError as error:
            raise UserError(
                f"the scores beside output={output} can't be written: {error.strerror}; make room, or choose another"
            ) from error

    HEAD = ("image_id", "path", "caption", "log_probability", "references")

    def rows(self, result: Result) -> list[list[Any]]:
        """A row for each captioned picture: `HEAD`, then its scores in the order of the corpus's."""
        split = self._split
        return [
            [
                split.image_ids[place],
                str(split.paths[place]),
                self.candidates[place],
                round(self._log_probabilities[place], 6),
                "\n".join(split.captions[place]),
                *(round(figure, 6) for figure in figures.values()),
            ]
            for place, figures in result.scores.per_picture.items()
        ]

    def table(self, result: Result) -> str:
        """`rows` as CSV, safe for spreadsheets, with a byte order mark for Excel."""
        lines = [[*self.HEAD, *result.scores.corpus]]
        for row in self.rows(result):
            lines.append([cell(value) if isinstance(value, str) else repr(value) for value in row])
        return "\ufeff" + "".join(",".join(line) + "\r\n" for line in lines)
