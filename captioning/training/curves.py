"""`curves.png` beside `results.md`: loss, perplexity and scores over a run, drawn from its `metrics.csv`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # and no pyplot, which holds every figure

from captioning.config import GROUPS
from captioning.files import atomic_file
from captioning.metrics import EACH_EPOCH, EACH_STEP, PERPLEXITY, SCORES, in_reading_order
from captioning.runs import logged_rows

log = logging.getLogger(__name__)

Row = Mapping[str, str]
Curve = tuple[list[float], list[float]]  # optimizer steps, values

FLATTEST, SMALLEST_SCORES = 1e-3, 1e-3  # the least that an axis shows: of its values, and of scores, which go from 0 up
PAUSE_SECONDS = 20.0  # at least, before and between drawings of a run, of which one takes a sixth of a second
TRAIN, VAL, FLOOR, SWITCH = "#8a8f98", "#1f5fbf", "#2e8b57", "#b36b00"
ABOVE, LINE = 1.1, 0.06  # of a panel's height: where switches are named, over the legend, and a line of text


class Curves(L.Callback):
    """Keeps `curves.png` up to date in the run folder."""

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self._drawn_at = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and time.monotonic() - self._drawn_at > PAUSE_SECONDS:
            self._draw()
            self._drawn_at = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw()

    def _draw(self) -> None:
        try:
            write_curves(self._run_dir)
        except OSError as error:  # all of it is in metrics.csv: no reason to end a run
            log.warning("curves.png could not be written: %s", error.strerror or error)


def write_curves(run_dir: Path) -> None:
    """Draw `curves.png` from `metrics.csv`, both in `run_dir`; where nothing was logged yet, nothing is drawn."""
    rows = logged_rows(run_dir)
    panels = panels_in(rows)
    if not panels:
        return
    height = 3.3 * len(panels) + 1.1  # in inches, as the margins: "constrained" finds them by drawing everything twice
    figure = Figure(figsize=(9, height), dpi=110)
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    figure.subplots_adjust(left=0.8 / 9, right=1 - 0.2 / 9, bottom=0.5 / height, top=1 - 0.9 / height, hspace=0.16)
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        draw_panel(ax, title, curves, [step for step, _ in switches(rows)], legend=OVER)
    before: list[str] = []
    for line, (step, groups) in enumerate(switches(rows)):
        at = axes[0].get_xaxis_transform()  # data across, 0..1 upwards
        axes[0].text(step, ABOVE + line * LINE, _switched(before, groups), transform=at, color=SWITCH, fontsize=8)
        before = groups
    axes[-1].set_xlabel("optimizer step")
    with atomic_file(run_dir / "curves.png") as file:
        figure.savefig(file, format="png")


def write_comparison(runs: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Draw the validation curves of several runs, by their labels, over each other: a panel for each metric."""
    panels: dict[str, dict[str, Curve]] = {}
    for run, rows in runs.items():
        for title, curves in panels_in(rows).items():
            for label, curve in curves.items():
                if label == "val" or title == SCORES:
                    panels.setdefault(title if label == "val" else label, {})[run] = curve
    if not panels:
        return
    figure = Figure(figsize=(9, 3 * len(panels) + 0.5), dpi=110, layout="constrained")
    for ax, (title, curves) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        draw_panel(ax, title, curves)
    ax.set_xlabel("optimizer step")
    with atomic_file(file) as opened:
        figure.savefig(opened, format="png")


def switches(rows: Sequence[Row]) -> list[tuple[int, list[str]]]:
    """The stages of a run: the step after which each began, and the groups that it trains, in the order of `GROUPS`.

    A group trains in an epoch if it has a learning rate above 0 in any of the epoch's rows.
    """
    found: list[tuple[int, list[str]]] = []
    last_step = 0
    for epoch in sorted({int(row["epoch"]) for row in rows if row.get("epoch")}):
        of_epoch = [row for row in rows if row.get("epoch") == str(epoch)]
        training = [group for group in GROUPS if any(_value(row, f"lr/{group}") for row in of_epoch)]
        if training and (not found or found[-1][1] != training):
            found.append((last_step, training))
        last_step = max(int(row["step"]) for row in of_epoch)
    return found


def _switched(before: list[str], groups: list[str]) -> str:
    """What a switch changed, in few words: all that trains, or what was added."""
    added = [group for group in groups if group not in before]
    return f"+ {' + '.join(added)}" if before and set(before) < set(groups) else f"trains {' + '.join(groups)}"


def panels_in(rows: Sequence[Row]) -> dict[str, dict[str, Curve]]:
    """By its title, the curves of each panel that has any; by its label, each curve that has any point."""
    wanted: dict[str, dict[str, str]] = {}
    for metric in in_reading_order():
        if metric.curve:
            title, label = metric.curve
            wanted.setdefault(title, {})[label] = metric.name
    curves = {title: {label: _curve(rows, name) for label, name in names.items()} for title, names in wanted.items()}
    drawn = {title: {label: curve for label, curve in of.items() if curve[0]} for title, of in curves.items()}
    return {title: of for title, of in drawn.items() if of}


def _curve(rows: Sequence[Row], name: str) -> Curve:
    points = [(float(row["step"]), value) for row in rows if (value := _value(row, name)) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _value(row: Row, name: str) -> float | None:
    """A finite number, or None: a loss may have been none."""
    text = row.get(name)
    return float(text) if text and math.isfinite(float(text)) else None


WITHIN: dict = {"fontsize": 7}
OVER: dict = {"fontsize": 8, "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderpad": 0}


def draw_panel(
    ax: Axes, title: str, curves: Mapping[str, Curve], switched_at: Sequence[int] = (), legend: dict = WITHIN
) -> None:
    """The curves of one panel, with a line at each step after which a stage began."""
    styles = {
        EACH_STEP: {"color": TRAIN, "linewidth": 0.8, "alpha": 0.45},
        EACH_EPOCH: {"color": TRAIN, "linewidth": 1.8},
        "val": {"color": VAL, "linewidth": 1.8, "marker": "o", "markersize": 3},
        "floor": {"color": FLOOR, "linewidth": 1.2, "linestyle": "--"},
        "guessed by frequency": {"color": SWITCH, "linewidth": 1.2, "linestyle": "--"},
        "guessed evenly": {"color": SWITCH, "linewidth": 1, "linestyle": "-."},
    }
    for label, (steps, values) in curves.items():
        style: dict = styles.get(label, {"linewidth": 1.8, "marker": "o", "markersize": 3})
        last = f"{label} ({values[-1]:.4g})"
        ax.plot(steps, values, label=label if label == EACH_STEP else last, **style)
    for step in switched_at:
        ax.axvline(step, color=SWITCH, linewidth=1, linestyle=":")
    if title == PERPLEXITY:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(_tick)
        ax.yaxis.set_minor_formatter(_tick if _close(curves) else "")
    ax.set_ylabel(title)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    _no_flatter(ax, SMALLEST_SCORES if title == SCORES else 0.0)
    ax.legend(frameon=False, **legend)


def _no_flatter(ax: Axes, least: float) -> None:
    """Let the axis show a thousandth of its values at least: less would draw the last digits' noise as a mountain."""
    low, high = ax.get_ylim()
    least = max(least, FLATTEST * max(abs(low), abs(high)))
    if high - low < least:
        middle = (low + high) / 2
        ax.set_ylim(max(middle - least / 2, 0), max(middle - least / 2, 0) + least)


def _tick(value: float, _: float) -> str:
    """In digits, which `g` leaves from 1,000 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _close(curves: Mapping[str, Curve]) -> bool:
    """Whether all values lie within a decade, where powers of ten alone would leave the axis bare."""
    values = [value for _, of in curves.values() for value in of]
    return min(values) > 0 and max(values) / min(values) < 10
