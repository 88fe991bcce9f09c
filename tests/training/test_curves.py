"""The picture of a run's curves, from its metrics.csv."""

import logging

import pytest
from PIL import Image
from small_runs import TINY, row, written

from captioning.training import curves
from captioning.training.curves import Curves, switches, write_curves

RUN = [
    row(5, 0, train_loss=4.0, train_perplexity=54.6, lr_cross_attention=1e-4, lr_decoder=0.0, lr_encoder=0.0),
    row(10, 0, train_loss_epoch=3.5, val_loss=3.0, val_perplexity=20.1, val_perplexity_floor=1.5),
    row(15, 1, train_loss=2.0, train_perplexity=7.4, lr_cross_attention=1e-4, lr_decoder=1e-5, lr_encoder=0.0),
    row(20, 1, train_loss_epoch=1.9, val_loss="nan", val_perplexity="inf", val_perplexity_floor=1.5),
    row(25, 2, train_loss=1.5, train_perplexity=4.5, lr_cross_attention=1e-4, lr_decoder=1e-5, lr_encoder=0.0),
    row(30, "", test_loss=1.0),
]

pytestmark = pytest.mark.usefixtures("draw_curves")


@pytest.fixture
def drawn(monkeypatch):
    """What a picture shows: by the title of each panel, its curves by label; and all texts of the first."""
    from matplotlib.figure import Figure

    shown: dict = {}

    def save(figure, *_, **__):
        for ax in figure.axes:
            lines = [line for line in ax.lines if not line.get_label().startswith("_")]
            points = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
            shown[ax.get_ylabel()] = dict(zip((line.get_label() for line in lines), points, strict=True))
        shown["texts"] = [text.get_text().strip() for text in figure.axes[0].texts]
        shown["lines"] = [line.get_xdata()[0] for line in figure.axes[-1].lines if line.get_label().startswith("_")]

    monkeypatch.setattr(Figure, "savefig", save)
    return shown


def test_curves_switches_and_the_floor_are_drawn(tmp_path, drawn):
    write_curves(written(tmp_path, RUN))
    assert drawn["loss (nats per token)"] == {
        "train, each logged step": ([5, 15, 25], [4.0, 2.0, 1.5]),
        "train, epoch (1.9)": ([10, 20], [3.5, 1.9]),
        "val (3)": ([10], [3.0]),  # an epoch without a finite loss has no point
    }
    assert drawn["perplexity"]["floor (1.5)"] == ([10, 20], [1.5, 1.5])
    assert drawn["texts"] == ["trains cross_attention", "+ decoder"] and drawn["lines"] == [0, 10]
    assert "val scores" not in drawn


def test_scores_have_a_panel_where_they_were_logged(tmp_path, drawn):
    write_curves(written(tmp_path, [*RUN, row(30, 2, val_cider=0.8), row(40, 3, val_cider=0.9)]))
    assert drawn["val scores"] == {"CIDEr (0.9)": ([30, 40], [0.8, 0.9])}


def test_an_axis_shows_no_noise_as_a_mountain(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    limits = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: limits.update({a.get_ylabel(): a.get_ylim() for a in figure.axes})
    )
    write_curves(written(tmp_path, [row(n, n, val_bleu_4=n * 1e-18, val_loss=3 + n * 1e-6) for n in (1, 2)]))
    low, high = limits["val scores"]
    assert low >= 0 and high - low == pytest.approx(1e-3)
    low, high = limits["loss (nats per token)"]
    assert high - low == pytest.approx(3e-3, rel=0.01) and low < 3.000001 < 3.000002 < high


def test_large_perplexities_are_written_out():
    assert [curves._tick(value, 0) for value in (1.5, 20.0, 1000.0, 50257.0)] == ["1.5", "20", "1,000", "50,257"]


def test_what_is_switched_off_again_is_named_whole():
    rows = [
        row(5, 0, lr_cross_attention=1e-4, lr_decoder=1e-4),
        row(10, 0),
        row(15, 1, lr_cross_attention=0.0, lr_decoder=1e-4),
        row(20, 1),
        row(25, 2, lr_cross_attention=1e-4, lr_decoder=1e-4),
    ]
    both = ["cross_attention", "decoder"]
    assert switches(rows) == [(0, both), (10, ["decoder"]), (20, both)]
    assert curves._switched(both, ["decoder"]) == "trains decoder"


@pytest.mark.parametrize("rows", [None, [], [row(5)], [row(5, 0, val_loss="nan")]])
def test_where_nothing_was_logged_nothing_is_drawn(tmp_path, rows):
    write_curves(tmp_path if rows is None else written(tmp_path, rows))
    assert not (tmp_path / "curves.png").exists()


def test_the_picture_is_a_png_and_whole(tmp_path):
    write_curves(written(tmp_path, RUN[:2]))
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width == 990
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "metrics.csv"}


class Trainer:
    is_global_zero = True


def test_short_epochs_are_not_spent_on_drawing_and_the_end_is_drawn(tmp_path, monkeypatch):
    drawings, clock = [], [100.0]
    monkeypatch.setattr(curves, "write_curves", drawings.append)
    monkeypatch.setattr(curves.time, "monotonic", lambda: clock[-1])
    callback = Curves(tmp_path)
    drawn_after = []
    for seconds in (105.0, 115.0, 121.0, 130.0, 142.0):
        clock.append(seconds)
        callback.on_train_epoch_end(Trainer(), None)
        drawn_after.append(len(drawings))
    assert drawn_after == [0, 0, 1, 1, 2]
    callback.on_fit_end(Trainer(), None)
    assert len(drawings) == 3


def test_matplotlib_says_nothing_of_its_fonts(command, tmp_path, monkeypatch):
    def drawn(run_dir):
        logging.getLogger("matplotlib.font_manager").info("generated new fontManager")

    monkeypatch.setattr(curves, "write_curves", drawn)
    status, output = command("train.py", *TINY, "trainer.max_epochs=1", f"run_dir={tmp_path}")
    assert status == 0 and "fontManager" not in output + (tmp_path / "train.log").read_text()
