"""Candidate and reference strings -> the field's scores, of the corpus and of each picture."""

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pkgutil import resolve_name
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
from tqdm import tqdm

from captioning.errors import UserError
from captioning.evaluation.bleu import ORDERS, Bleu, NgramCounts, bleu, bleu_of_sums
from captioning.evaluation.cider import SIGMA, CiderD
from captioning.evaluation.intervals import Sums, intervals
from captioning.evaluation.java import java_scores
from captioning.evaluation.rouge import rouge_l
from captioning.evaluation.tokenizer import VERSION, tokenize
from captioning.metrics import caption_scores

Id = TypeVar("Id", bound=Hashable)

BLEUS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")


class Figures(NamedTuple):
    """A score of the corpus, and of each picture in order; and as sums over pictures, where it has an interval."""

    corpus: float
    per_picture: list[float]
    sums: Sums | None = None

    @classmethod
    def of(cls, per_picture: list[float]) -> Self:
        """The corpus figure is the mean of the pictures'."""
        return cls(sum(per_picture) / len(per_picture), per_picture, Sums.mean(per_picture))


@dataclass(frozen=True)
class TokenisedCaptions:
    """What scores are computed of: a candidate and the references of each picture, tokens with a space between."""

    candidates: list[str]
    references: list[list[str]]

    @cached_property
    def candidate_ngrams(self) -> list[NgramCounts]:
        """A token may hold U+00A0. The official BLEU and CIDEr split there, its ROUGE-L does not."""
        return [NgramCounts(line.split()) for line in self.candidates]

    @cached_property
    def reference_ngrams(self) -> list[list[NgramCounts]]:
        return [[NgramCounts(line.split()) for line in lines] for lines in self.references]

    @cached_property
    def bleu(self) -> Bleu:
        return bleu(self.candidate_ngrams, self.reference_ngrams)


def bleu_scores(captions: TokenisedCaptions) -> dict[str, Figures]:
    """BLEU-1 to BLEU-4."""
    columns = zip(*captions.bleu.per_picture, strict=True)
    of_corpus = enumerate(zip(BLEUS, captions.bleu.corpus, columns, strict=True))
    return {
        name: Figures(figure, list(column), Sums(captions.bleu.summed, partial(_order, order=order)))
        for order, (name, figure, column) in of_corpus
    }


def _order(sums: np.ndarray, order: int) -> np.ndarray:
    return bleu_of_sums(sums)[..., order]


def rouge_scores(captions: TokenisedCaptions) -> dict[str, Figures]:
    """ROUGE-L."""
    both = zip(captions.candidates, captions.references, strict=True)
    figures = [rouge_l(line.split(" "), [target.split(" ") for target in lines]) for line, lines in both]
    return {"ROUGE_L": Figures.of(figures)}


def cider_scores(captions: TokenisedCaptions) -> dict[str, Figures]:
    """CIDEr-D, its document frequencies those of the references given."""
    cider = CiderD.from_references(captions.reference_ngrams)
    both = zip(captions.candidate_ngrams, captions.reference_ngrams, strict=True)
    figures = [cider.score(candidate, cider.prepare(lines)) for candidate, lines in both]
    return {"CIDEr": Figures.of(figures)}


@dataclass(frozen=True)
class Scores(Generic[Id]):
    """Scores under their official names, those that could be computed; from 0 to 1, CIDEr from 0 to 10.

    Attributes:
        corpus: a figure for each metric.
        per_picture: the same for each picture, in the order of the candidates.
        signature: what figures are not comparable without: tokenizer, whether EOS counts, lengths, counts, versions.
        left_out: a sentence on what could not be computed: why, and what to install.
        variety: of the candidates, see `variety_of`.
        sums: of those figures that are a function of sums over pictures, which is all but METEOR, those.
    """

    corpus: dict[str, float]
    per_picture: dict[Id, dict[str, float]]
    signature: dict[str, object]
    left_out: list[str]
    variety: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict, repr=False, compare=False)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% interval of each figure over the choice of pictures; none of a single picture."""
        return intervals(self.sums) if len(self.per_picture) > 1 else {}


def words_of(caption: str) -> str:
    """What of a caption is compared with others: its words, in small letters.

    >>> words_of("A dog  isn't here.")
    "a dog isn't here"
    """
    return " ".join(re.findall(r"\w+(?:['\u2019]\w+)*", caption.lower()))


def variety_of(captions: Sequence[str], seen: "Seen | None" = None) -> dict[str, float]:
    """The cheap signs of a model that writes the same for every picture.

    `distinct` is the share of captions that differ, `vocabulary` how many words all of them have, and `novel` the share
    that no training caption equals in its words, where those are given.

    >>> variety_of(["a dog", "a dog", "A cat."], Seen(["the cat", "a cat"]))
    {'distinct': 0.6666666666666666, 'vocabulary': 3, 'novel': 0.6666666666666666}
    """
    texts = [words_of(caption) for caption in captions]
    words = {word for text in texts for word in text.split()}
    found = {"distinct": len(set(captions)) / len(captions), "vocabulary": len(words)}
    return found if seen is None else found | {"novel": sum(text not in seen for text in texts) / len(texts)}


class Seen:
    """Which captions there are in training, as 8 bytes for each different one."""

    MOST_PICTURES = 2_000_000  # a run looks through no more: 80 MB, and some 20 seconds once

    def __init__(self, captions: Iterable[str]):
        self._hashes = np.unique(np.fromiter((hash(words_of(caption)) for caption in captions), np.int64))

    def __contains__(self, text: str) -> bool:
        place = np.searchsorted(self._hashes, hash(text))
        return bool(place < len(self._hashes) and self._hashes[place] == hash(text))


ONE_PICTURE = "CIDEr of a single picture is 0, as in the official tool: its words are in all references there are"


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
    captions = TokenisedCaptions(list(hypotheses.values()), list(targets.values()))
    figures: dict[str, Figures] = {}
    for function in dict.fromkeys(metric.computed_by for metric in caption_scores(with_java=False).values()):
        figures |= resolve_name(function)(captions)
    left_out: list[str] = []
    versions: dict[str, object] = {}
    if java:
        of_java = java_scores(captions.candidates, captions.references)
        for name, per_picture in of_java.per_picture.items():
            sums = Sums.mean(per_picture) if name == "SPICE" else None  # METEOR's is a mean of nothing
            figures[name] = Figures(of_java.corpus[name], per_picture, sums)
        left_out, versions = of_java.left_out, of_java.versions
    if len(candidates) == 1:
        left_out = [*left_out, ONE_PICTURE]
    names = [name for name in caption_scores() if name in figures]
    return Scores(
        {name: figures[name].corpus for name in names},
        {picture: {name: figures[name].per_picture[row] for name in names} for row, picture in enumerate(candidates)},
        _signature(captions, names) | versions,
        left_out,
        variety_of(list(candidates.values())),
        {name: sums for name in names if (sums := figures[name].sums) is not None},
    )


def scores_json(scores: Scores, **more: object) -> str:
    """What `scores.json` holds: each metric's figure under its official name, then what explains it.

    `intervals` has 95% intervals over the choice of pictures, `variety` the signs of captions that are all alike,
    `signature` says what the figures are not comparable without, `left_out` has a sentence on each metric that is
    missing, `per_picture` is a list of `{"image_id": ..., "Bleu_1": ..., ...}`; `more` stands after the figures.
    """
    per_picture = [{"image_id": picture, **row} for picture, row in scores.per_picture.items()]
    # A row a line, so that thousands of pictures stay readable and comparable.
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in per_picture)
    said = {"intervals": scores.intervals(), "variety": scores.variety, "signature": scores.signature}
    head = {**scores.corpus, **more, **said, "left_out": scores.left_out}
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


def _signature(captions: TokenisedCaptions, names: Sequence[str]) -> dict[str, object]:
    lengths = captions.bleu
    return {
        "metrics": list(names),
        "tokenizer": VERSION,
        "eos": "not counted",
        "cider": f"CIDEr-D, 1- to {ORDERS}-grams, sigma {SIGMA:g}, document frequencies of these references",
        "pictures": len(captions.candidates),
        "references": sum(len(lines) for lines in captions.references),
        "empty_candidates": sum(not line for line in captions.candidates),
        "candidate_tokens": lengths.candidate_tokens,
        "reference_tokens": lengths.reference_tokens,  # of each picture's reference of the closest length
        "length_ratio": lengths.candidate_tokens / max(1, lengths.reference_tokens),
    }
