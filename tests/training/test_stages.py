"""The stage schedule: what trains when and how fast, as a pure function."""

import pytest

from captioning.config import StageConfig
from captioning.training.stages import Position, StageSchedule

PHASES = [
    {"from_epoch": 0, "train": ["cross_attention"]},
    {"from_epoch": 1, "train": ["cross_attention", "decoder"]},
    {"from_epoch": 2, "train": ["cross_attention", "decoder", "encoder"]},
]
RATES = {"cross_attention": 1.0, "decoder": 0.5, "encoder": 0.1}


def schedule(**changes):
    keys = {"warmup_steps": 4, "decay": "none", "best_by": "val/perplexity", "self_critical": None}
    return StageSchedule(StageConfig(**{"phases": PHASES, "learning_rates": RATES, **keys, **changes}))


def at(step, steps_per_epoch=10, total_steps=50):
    return Position(step, steps_per_epoch, total_steps)


def test_each_phase_trains_exactly_its_groups():
    trained = [schedule().trainable(epoch) for epoch in range(4)]
    assert trained == [
        ("cross_attention",),
        ("cross_attention", "decoder"),
        ("cross_attention", "decoder", "encoder"),
        ("cross_attention", "decoder", "encoder"),
    ]


def test_a_frozen_group_has_no_learning_rate():
    assert schedule().learning_rate("encoder", at(step=19)) == 0
    assert schedule().learning_rate("encoder", at(step=20)) > 0


def test_warm_up_starts_where_the_group_starts_to_train():
    stages = schedule()
    assert [stages.learning_rate("decoder", at(10 + step)) for step in range(5)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )
    assert stages.learning_rate("cross_attention", at(10)) == 1.0, (
        "a group that goes on training is not warmed up again"
    )


def test_a_group_that_was_frozen_in_between_is_warmed_up_again():
    phases = [
        {"from_epoch": 0, "train": ["decoder"]},
        {"from_epoch": 1, "train": ["encoder"]},
        {"from_epoch": 2, "train": ["decoder"]},
    ]
    assert schedule(phases=phases).learning_rate("decoder", at(20)) == pytest.approx(0.5 / 5)


@pytest.mark.parametrize(("decay", "halfway"), [("cosine", 0.5), ("linear", 0.5), ("none", 1.0)])
def test_rates_decay_over_the_whole_run(decay, halfway):
    stages = schedule(decay=decay, warmup_steps=0)
    assert stages.learning_rate("cross_attention", at(0)) == 1.0
    assert stages.learning_rate("cross_attention", at(25)) == pytest.approx(halfway)
    assert stages.learning_rate("cross_attention", at(50)) == pytest.approx(1.0 if decay == "none" else 0.0)


def test_a_warm_up_is_a_tenth_of_the_run_at_most():
    stages = schedule(warmup_steps=500)
    assert stages.learning_rate("cross_attention", at(4, total_steps=50)) == pytest.approx(5 / 6)
    assert stages.learning_rate("cross_attention", at(5, total_steps=50)) == 1.0
    assert stages.remarks(10, 50)[0] == ["stage.warmup_steps=500 is 5 in this run: a tenth of its 50 steps"]
    assert schedule(warmup_steps=5).remarks(10, 50) == ([], [])


def test_a_phase_that_comes_too_late_is_named():
    late = "encoder would train from epoch 2, counted from 0: the run ends before"
    assert schedule().remarks(10, 20)[1][0].startswith(late)
    _, (said,) = schedule(decay="cosine").remarks(10, 25)
    assert said.startswith("encoder trains from epoch 2 of 3, where warm-up and decay leave it 4.1e-03 of")
    assert "of stage.learning_rates.encoder=1.0e-01 at most; give the run more epochs" in said
