"""The one list of metrics: where each is computed, and how it is shown wherever a run shows numbers.

`metrics.csv` and loggers get whatever is logged; the progress bar, `results.md`, `curves.png`, `scores.json`, the model
card, W&B's summaries and the choice of the best checkpoint read this list. A new score of captions is one entry with
the function that computes it (`docs/extending.md`). Imports nothing heavy, so that mistakes are answered at once.
"""

import math
from dataclasses import dataclass
from typing import Any

STEP = "captioning.training.module.CaptioningModule.training_metrics"
EVALUATION = "captioning.training.module.CaptioningModule.evaluation_metrics"
SCORING = "captioning.evaluation.scoring"
JAVA = "captioning.evaluation.java.java_scores"
REWARD = "captioning.training.scst.SelfCriticalModule.training_metrics"
ROWS = "captioning.training.reports.MetricRows"
FLOOR = "captioning.shapes.grammar.perplexity_floor"
VARIETY = f"{SCORING}.variety_of"
GUESSING = "captioning.training.verdict.Guessing.of"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a run.

    Attributes:
        name: as it is logged, in `metrics.csv` and everywhere.
        computed_by: the full name of the function; that of a score takes `scoring.TokenisedCaptions`.
        larger_is_better: which way is up, for the best checkpoint and the best of a run.
        official: of a score of captions, the field's name for it, in `scores.json`.
        needs_java: whether it takes a Java program and minutes; it is then never computed while training.
        chooses: whether `stage.best_by` may name it; each score that is computed while training may be named, too.
        bar: its short name on the progress bar, and decimals.
        column: its heading in `results.md`; what has no curve or is a score is there where it was logged.
        decimals: of the column.
        curve: its panel and label in `curves.png`.
        card: its label on the model card, for the best value in `metrics.csv`; scores have their official name.
        last_words: whether a run ends with it.
    """

    name: str
    computed_by: str
    larger_is_better: bool = False
    official: str | None = None
    needs_java: bool = False
    chooses: bool = False
    bar: tuple[str, int] | None = None
    column: str | None = None
    decimals: int = 4
    curve: tuple[str, str] | None = None
    card: str | None = None
    last_words: bool = False

    def best(self, values: list[float]) -> float:
        """The best of the values."""
        return max(values) if self.larger_is_better else min(values)


def score_of_captions(official: str, computed_by: str, **shown: Any) -> Metric:
    """A score under the field's name, and logged after each validation as `val/` with that name in small letters."""
    return Metric(
        name=f"val/{official.lower()}", computed_by=computed_by, larger_is_better=True, official=official, **shown
    )


LOSS, PERPLEXITY, SCORES = "loss (nats per token)", "perplexity", "val scores"  # panels
EACH_STEP, EACH_EPOCH = "train, each logged step", "train, epoch"

METRICS = [
    Metric(name="train/loss", computed_by=STEP, bar=("loss", 3), curve=(LOSS, EACH_STEP)),
    Metric(name="train/perplexity", computed_by=STEP, bar=("perplexity", 2), curve=(PERPLEXITY, EACH_STEP)),
    Metric(name="train/loss_epoch", computed_by=STEP, column="Train Loss", curve=(LOSS, EACH_EPOCH)),
    Metric(name="train/perplexity_epoch", computed_by=STEP, column="Train Perplexity", curve=(PERPLEXITY, EACH_EPOCH)),
    Metric(name="train/reward", computed_by=REWARD, larger_is_better=True, bar=("reward", 3)),
    Metric(name="captions_per_second", computed_by=ROWS, larger_is_better=True, bar=("captions/s", 0)),
    Metric(name="val/loss", computed_by=EVALUATION, column="Val Loss", curve=(LOSS, "val")),
    Metric(
        name="val/perplexity",
        computed_by=EVALUATION,
        chooses=True,
        bar=("val_perplexity", 2),
        column="Val Perplexity",
        curve=(PERPLEXITY, "val"),
        card="lowest validation perplexity of the run",
    ),
    Metric(name="val/perplexity_floor", computed_by=FLOOR, curve=(PERPLEXITY, "floor"), last_words=True),
    Metric(name="val/perplexity_unigram", computed_by=GUESSING, curve=(PERPLEXITY, "guessed by frequency")),
    Metric(name="val/perplexity_uniform", computed_by=GUESSING, curve=(PERPLEXITY, "guessed evenly")),
    # Scores, in the official tool's order.
    *(score_of_captions(f"Bleu_{n}", f"{SCORING}.bleu_scores") for n in (1, 2, 3)),
    score_of_captions("Bleu_4", f"{SCORING}.bleu_scores", column="Val BLEU-4", curve=(SCORES, "BLEU-4")),
    score_of_captions("METEOR", JAVA, needs_java=True),
    score_of_captions("ROUGE_L", f"{SCORING}.rouge_scores", column="Val ROUGE-L", curve=(SCORES, "ROUGE-L")),
    score_of_captions(
        "CIDEr", f"{SCORING}.cider_scores", bar=("val_cider", 3), column="Val CIDEr", curve=(SCORES, "CIDEr")
    ),
    score_of_captions("SPICE", JAVA, needs_java=True),
    *(
        Metric(
            name=f"val/{name.lower()}",
            computed_by=VARIETY,
            larger_is_better=True,
            column=f"Val {name}",
            decimals=decimals,
        )
        for name, decimals in (("Distinct", 4), ("Vocabulary", 0), ("Novel", 4))
    ),
    Metric(
        name="test/perplexity",
        computed_by=EVALUATION,
        bar=("test_perplexity", 2),
        card="test perplexity",
        last_words=True,
    ),
]


def caption_scores(*, with_java: bool = True) -> dict[str, Metric]:
    """The scores of captions by their official names, in the official tool's order."""
    return {metric.official: metric for metric in METRICS if metric.official and (with_java or not metric.needs_java)}


def in_reading_order() -> list[Metric]:
    """All, as tables and pictures have them: scores behind what has curves, and of them those on the bar first."""
    return sorted(METRICS, key=_reading_place)


def _reading_place(metric: Metric) -> int:
    if metric.official:
        return 1 if metric.bar else 2
    return 0 if metric.curve else 3


def choosable() -> dict[str, Metric]:
    """By name those that `stage.best_by` may name."""
    scores = caption_scores(with_java=False).values()
    return {metric.name: metric for metric in [*(one for one in METRICS if one.chooses), *scores]}


def perplexity(loss: float) -> float:
    """e^loss, of nats per token; infinite where that overflows."""
    return math.exp(loss) if loss < 700 or math.isnan(loss) else math.inf
