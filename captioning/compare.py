"""Runs beside each other: `python -m captioning.compare RUN RUN ... [--curves FILE.png]`.

A table of the overrides in which they differ and of their best scores; where they differ by the seed alone, mean and
spread over seeds. A multirun ends with the same, as `comparison.md` and `comparison.png` beside `multirun.yaml`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from captioning.cli import one_sentence_errors
from captioning.errors import UserError
from captioning.files import write_atomically
from captioning.metrics import METRICS, Metric
from captioning.runs import logged_rows, overrides_of_run

SEED = "seed"
DEFAULT = "(default)"
JUDGED = [metric for metric in METRICS if metric.card or (metric.official and metric.column)]

Table = list[list[str]]  # the first row is the heading


def compared(run_dirs: Sequence[Path]) -> str:
    """The tables as Markdown.

    Raises:
        UserError: if one is no folder of a run with figures.
    """
    given = [overrides(run_dir) for run_dir in run_dirs]
    scores = [best_scores(run_dir) for run_dir in run_dirs]
    keys = differing(given)
    shown = [metric for metric in JUDGED if any(metric.name in of_run for of_run in scores)]
    names = [metric.name for metric in shown]
    table = [["run", *keys, *names]]
    for run_dir, values, of_run in zip(run_dirs, given, scores, strict=True):
        table.append([run_dir.name, *(values.get(key, DEFAULT) for key in keys), *(_figure(of_run, n) for n in names)])
    tables = [markdown(table)]
    if SEED in keys:
        tables.append(markdown(over_seeds(given, scores, [key for key in keys if key != SEED], shown)))
    return "\n".join(tables)


def over_seeds(
    given: Sequence[dict[str, str]],
    scores: Sequence[dict[str, float]],
    keys: Sequence[str],
    metrics: Sequence[Metric],
) -> Table:
    """A row for all runs that differ by the seed alone: mean and sample standard deviation of each metric."""
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for values, of_run in zip(given, scores, strict=True):
        groups.setdefault(tuple(values.get(key, DEFAULT) for key in keys), []).append(of_run)
    table = [[*keys, "seeds", *(metric.name for metric in metrics)]]
    for group, runs in groups.items():
        cells = []
        for metric in metrics:
            figures = [of_run[metric.name] for of_run in runs if metric.name in of_run]
            spread = f" ± {stdev(figures):.2g}" if len(figures) > 1 else ""
            cells.append(f"{mean(figures):.4g}{spread}" if figures else "")
        table.append([*group, str(len(runs)), *cells])
    return table


def overrides(run_dir: Path) -> dict[str, str]:
    """The overrides that a run was started or last resumed with, by their keys.

    Raises:
        UserError: if it has none.
    """
    if not (run_dir / ".hydra" / "overrides.yaml").is_file():
        raise UserError(f"{run_dir} has no .hydra/overrides.yaml; give folders of runs, which train.py printed")
    pairs = (one.lstrip("+").partition("=") for one in overrides_of_run(run_dir))
    return {key: value for key, _, value in pairs}


def best_scores(run_dir: Path) -> dict[str, float]:
    """The best value of each metric that judges a run; raises UserError where nothing was logged."""
    rows = logged_rows(run_dir)
    if not rows:
        raise UserError(f"{run_dir} has no figures in metrics.csv; the run was stopped before its first")
    values = {metric: [float(row[metric.name]) for row in rows if row.get(metric.name)] for metric in JUDGED}
    return {metric.name: metric.best(found) for metric, found in values.items() if found}


def differing(given: Sequence[dict[str, str]]) -> list[str]:
    """The keys whose values are not the same in all; the seed comes last."""
    keys = dict.fromkeys(key for one in given for key in one)
    return sorted((key for key in keys if len({one.get(key) for one in given}) > 1), key=lambda key: key == SEED)


def _figure(scores: dict[str, float], name: str) -> str:
    return f"{scores[name]:.4g}" if name in scores else ""


def markdown(table: Table) -> str:
    """A table whose columns line up as plain text, too.

    >>> print(markdown([["run", "seed"], ["a", "1"]]), end="")
    | run | seed |
    | --- | ---- |
    | a   | 1    |
    """
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class AfterMultirun(Callback):
    """What Hydra does behind the jobs of a multirun, see `conf/train.yaml`."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare the jobs that logged something, if there are two."""
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted((path.parent for path in folder.rglob("metrics.csv")), key=lambda path: (len(path.name), path))
        jobs = [job for job in jobs if (job / ".hydra" / "overrides.yaml").is_file() and logged_rows(job)]
        if len(jobs) < 2:
            return
        table = compared(jobs)
        write_atomically(folder / "comparison.md", table)
        draw(jobs, folder / "comparison.png")
        print(f"\n{table}\ncomparison: {folder / 'comparison.md'}, curves: {folder / 'comparison.png'}", flush=True)


def draw(run_dirs: Sequence[Path], file: Path) -> None:
    """The validation curves of the runs over each other, as a PNG."""
    from captioning.training.curves import write_comparison  # here, since it imports torch, and help is asked for

    given = [overrides(run_dir) for run_dir in run_dirs]
    runs = {}
    for run_dir, values in zip(run_dirs, given, strict=True):
        words = [f"{key}={values[key]}" for key in differing(given) if key in values]
        runs[" ".join([f"{run_dir.name}:", *words])] = logged_rows(run_dir)
    write_comparison(runs, file)


def _with_figures(run_dirs: Sequence[Path]) -> list[Path]:
    """The runs that can be compared; the others of a pattern, such as those that a mistake has ended, are named."""
    found, problems = [], []
    for run_dir in run_dirs:
        try:
            overrides(run_dir), best_scores(run_dir)
            found.append(run_dir)
        except UserError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m captioning.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--curves", metavar="FILE.png", type=Path, help="draw their validation curves, too")
    given = parser.parse_args()
    with one_sentence_errors():
        if given.curves and given.curves.suffix != ".png":
            raise UserError(f"--curves {given.curves} must end in .png")
        runs = _with_figures(given.runs)
        print(f"{compared(runs)}\nEach metric is the best of its own epoch.")
        if given.curves:
            draw(runs, given.curves)
            print(f"curves: {given.curves}")


if __name__ == "__main__":
    main()
