"""Runs beside each other: what differs, best scores, mean and spread over seeds."""

import pytest
from PIL import Image
from small_runs import row, written

from captioning import compare
from captioning.compare import compared, over_seeds
from captioning.errors import UserError
from captioning.metrics import METRICS


def run_of(folder, perplexities, *overrides):
    """A run's folder with a validation of each perplexity and a test of the last."""
    (folder / ".hydra").mkdir(parents=True)
    lines = ["data=shapes", f"run_dir={folder}", *overrides]
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {line}\n" for line in lines))
    rows = [row(10 * n, n, val_perplexity=value, val_cider=1 / value) for n, value in enumerate(perplexities, 1)]
    return written(folder, [*rows, row(90, "", test_perplexity=perplexities[-1] + 1)])


def test_what_differs_stands_beside_the_best_scores(tmp_path):
    runs = [
        run_of(tmp_path / "a", [9.0, 4.0, 5.0], "stage.decay=cosine", "seed=1"),
        run_of(tmp_path / "b", [8.0, 6.0], "stage.decay=cosine", "seed=2"),
        run_of(tmp_path / "c", [7.0], "seed=1"),
    ]
    first, second = compared(runs).split("\n\n")
    assert first.splitlines() == [
        "| run | stage.decay | seed | val/perplexity | val/cider | test/perplexity |",
        "| --- | ----------- | ---- | -------------- | --------- | --------------- |",
        "| a   | cosine      | 1    | 4              | 0.25      | 6               |",
        "| b   | cosine      | 2    | 6              | 0.1667    | 7               |",
        "| c   | (default)   | 1    | 7              | 0.1429    | 8               |",
    ]
    assert [line.split()[1:7] for line in second.splitlines()[2:]] == [
        ["cosine", "|", "2", "|", "5", "±"],
        ["(default)", "|", "1", "|", "7", "|"],
    ]
    assert "5 ± 1.4" in second and "0.2083 ± 0.059" in second


def test_runs_of_one_seed_have_no_spread(tmp_path):
    runs = [run_of(tmp_path / name, [4.0], f"data.batch_size={size}") for name, size in (("a", 4), ("b", 8))]
    assert "\n\n" not in compared(runs) and "data.batch_size" in compared(runs)
    metric = next(metric for metric in METRICS if metric.name == "val/perplexity")
    assert over_seeds([{"seed": "1"}], [{}], [], [metric]) == [["seeds", "val/perplexity"], ["1", ""]]


def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    runs = [run_of(tmp_path / name, [4.0, 3.0], f"seed={seed}") for seed, name in enumerate("ab")]
    monkeypatch.setattr("sys.argv", ["compare", *map(str, runs), "--curves", str(tmp_path / "both.png")])
    compare.main()
    assert "val/perplexity" in capsys.readouterr().out
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.height > 600, "a panel for perplexity and one for CIDEr"


def test_of_a_pattern_what_is_no_run_is_left_out(tmp_path, monkeypatch, capsys):
    run = run_of(tmp_path / "a", [4.0])
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "b"), str(run)])
    compare.main()
    shown = capsys.readouterr()
    assert "| a " in shown.out and shown.err.startswith(f"left out: {tmp_path / 'b'} has no .hydra")
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "b")])
    with pytest.raises(SystemExit):
        compare.main()


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match=r"nowhere has no \.hydra/overrides\.yaml; give folders of runs"):
        compared([tmp_path / "nowhere"])
    run = run_of(tmp_path / "a", [1.0])
    (run / "metrics.csv").unlink()
    with pytest.raises(UserError, match="stopped before its first"):
        compared([run])
