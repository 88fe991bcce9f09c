"""Candidate and reference strings -> the field's scores, of the corpus and of each picture."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tqdm import tqdm

from captioning.errors import UserError
from captioning.evaluation.bleu import Bleu, bleu
from captioning.evaluation.cider import SIGMA, CiderD
from captioning.evaluation.java import java_scores
from captioning.evaluation.ngrams import ORDERS, NgramCounts
from captioning.evaluation.rouge import rouge_l
from captioning.evaluation.tokenizer import VERSION, tokenize

Id = TypeVar("Id", bound=Hashable)

BLEUS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
METRICS = (*BLEUS, "METEOR", "ROUGE_L", "CIDEr", "SPICE")  # the official names, in the official tool's order


@dataclass(frozen=True)
class Scores(Generic[Id]):
    """Scores under the names of METRICS, those that could be computed; from 0 to 1, CIDEr from 0 to 10.

    Attributes:
        corpus: a figure for each metric.
        per_picture: the same for each picture, in the order of the candidates.
        signature: what figures are not comparable without: tokenizer, whether EOS counts, lengths, counts, versions.
        left_out: a sentence on what could not be computed: why, and what to install.
    """

    corpus: dict[str, float]
    per_picture: dict[Id, dict[str, float]]
    signature: dict[str, object]
    left_out: list[str]


def score(candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, java: bool = False) -> Scores[Id]:
    """Scores each picture's candidate against the same picture's references, as the official tool does.

    An empty candidate scores (next to) nothing; the signature says how many there are. CIDEr's document frequencies
    are those of the references given, so it depends on which pictures are scored together.

    Args:
        candidates: a caption for each picture.
        references: at least one caption for each of the same pictures.
        java: METEOR and SPICE too, where their Java parts are there; minutes for thousands of pictures.

    Raises:
        UserError: if a picture has a candidate and no references, or references and no candidate; or there is none.
    """
    check_pictures(candidates, references)
    hypotheses = {picture: tokenize(caption) for picture, caption in candidates.items()}
    targets = {
        picture: [tokenize(caption) for caption in references[picture]]
        for picture in tqdm(candidates, "tokenising", unit="pictures", leave=False, disable=None)
    }
    columns, bleus = _java_free(list(hypotheses.values()), list(targets.values()))
    corpus = {**dict(zip(BLEUS, bleus.corpus, strict=True)), **{name: _mean(columns[name]) for name in columns}}
    columns |= {name: list(column) for name, column in zip(BLEUS, zip(*bleus.per_picture, strict=True), strict=True)}
    left_out: list[str] = []
    if java:
        of_java = java_scores(list(hypotheses.values()), list(targets.values()))
        corpus |= of_java.corpus
        columns |= of_java.per_picture
        left_out = of_java.left_out
    names = [name for name in METRICS if name in corpus]
    return Scores(
        {name: corpus[name] for name in names},
        {picture: {name: columns[name][row] for name in names} for row, picture in enumerate(candidates)},
        _signature(bleus, hypotheses, targets, names) | (of_java.versions if java else {}),
        left_out,
    )


def scores_json(scores: Scores, **more: object) -> str:
    """What `scores.json` holds: each metric's figure under its official name, then what explains it.

    `signature` says what the figures are not comparable without, `left_out` has a sentence on each metric that is
    missing, `per_picture` is a list of `{"image_id": ..., "Bleu_1": ..., ...}`; `more` stands after the figures.
    """
    per_picture = [{"image_id": picture, **row} for picture, row in scores.per_picture.items()]
    # A row a line, so that thousands of pictures stay readable and comparable.
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in per_picture)
    head = {**scores.corpus, **more, "signature": scores.signature, "left_out": scores.left_out}
    return json.dumps(head, ensure_ascii=False, indent=2)[:-2] + f',\n  "per_picture": [\n{rows}\n  ]\n}}\n'


def check_pictures(candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    """Raise UserError unless there are pictures, each with a candidate and at least one reference."""
    if not candidates:
        raise UserError("there are no candidates to score; give a caption for at least one picture")
    unknown = [picture for picture in candidates if not references.get(picture)]
    if unknown:
        raise UserError(
            f"{_named(unknown)} a candidate but no references; give references for the pictures that were captioned, "
            "or leave these candidates out"
        )
    missing = [picture for picture in references if picture not in candidates]
    if missing:
        raise UserError(
            f"{_named(missing)} references but no candidate; caption these pictures too, or leave their references out"
        )


def _named(pictures: Sequence[object]) -> str:
    if len(pictures) == 1:
        return f"picture {pictures[0]} has"
    return f"{len(pictures)} pictures ({', '.join(map(str, pictures[:3]))}{', ...' if len(pictures) > 3 else ''}) have"


def _java_free(hypotheses: list[str], targets: list[list[str]]) -> tuple[dict[str, list[float]], Bleu]:
    """ROUGE-L and CIDEr of each picture, in order; and BLEU.

    A token may hold U+00A0. The official BLEU and CIDEr split there, its ROUGE-L does not.
    """
    candidates = [NgramCounts(line.split()) for line in hypotheses]
    references = [[NgramCounts(line.split()) for line in lines] for lines in targets]
    cider = CiderD.from_counts(references)
    columns = {
        "ROUGE_L": [
            rouge_l(line.split(" "), [target.split(" ") for target in lines])
            for line, lines in zip(hypotheses, targets, strict=True)
        ],
        "CIDEr": [
            cider.score_counts(candidate, cider.prepare_counts(of_picture))
            for candidate, of_picture in zip(candidates, references, strict=True)
        ],
    }
    return columns, bleu(candidates, references)


def _mean(column: Sequence[float]) -> float:
    return sum(column) / len(column)


def _signature(
    bleus: Bleu, hypotheses: Mapping[Id, str], targets: Mapping[Id, Sequence[str]], names: Sequence[str]
) -> dict[str, object]:
    return {
        "metrics": list(names),
        "tokenizer": VERSION,
        "eos": "not counted",
        "cider": f"CIDEr-D, 1- to {ORDERS}-grams, sigma {SIGMA:g}, document frequencies of these references",
        "pictures": len(hypotheses),
        "references": sum(len(lines) for lines in targets.values()),
        "empty_candidates": sum(not line for line in hypotheses.values()),
        "candidate_tokens": bleus.candidate_tokens,
        "reference_tokens": bleus.reference_tokens,  # of each picture's reference of the closest length
        "length_ratio": bleus.candidate_tokens / max(1, bleus.reference_tokens),
    }
