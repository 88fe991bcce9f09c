"""What is used of Lightning behind its public interface is there, and does what this project takes it to do."""

import ast
import os

import lightning as L
import pytest
import torch
from conftest import ROOT
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import WandbLogger

from captioning.training import lightning_internals as internals


def trainer_of(tmp_path, *callbacks, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    few = {"max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 1, "num_sanity_val_steps": 0, "devices": 1}
    checkpoints = {"enable_checkpointing": any(isinstance(one, internals.BestOnly) for one in callbacks)}
    return L.Trainer(default_root_dir=tmp_path, callbacks=[*callbacks], **quiet | few | checkpoints | arguments)


class Sees(L.Callback):
    """Notes behind each training batch what `look` makes of the trainer, and the order of batches and validations."""

    def __init__(self, look=lambda trainer: None):
        self.look, self.seen, self.order = look, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.order.append(batch_idx)
        self.seen.append(self.look(trainer))

    def on_validation_start(self, trainer, module):
        self.order.append("validation")


def test_it_is_known_whether_a_validation_or_more_batches_of_a_step_come_next(tmp_path):
    sees = Sees(lambda trainer: (internals.validation_is_next(trainer), internals.gradients_wait(trainer)))
    trainer_of(tmp_path, sees, val_check_interval=2, accumulate_grad_batches=3).fit(BoringModel())
    assert [validates for validates, _ in sees.seen] == [False, True] * 3
    assert [waits for _, waits in sees.seen] == [True, True, False] * 2
    assert sees.order == [0, 1, "validation", 2, 3, "validation", 4, 5, "validation"]


def test_it_is_known_behind_which_batch_a_fit_ends(tmp_path):
    sees = Sees(internals.ends_here)
    trainer_of(tmp_path, sees, max_steps=2).fit(BoringModel())
    assert sees.seen == [False, True]

    def asked_to_stop(trainer):
        trainer.should_stop = trainer.global_step > 1
        return internals.ends_here(trainer)

    for least, seen in ((None, [False, True]), (1, [False] * 6)):
        sees = Sees(asked_to_stop)
        trainer_of(tmp_path, sees, min_epochs=least).fit(BoringModel())
        assert sees.seen == seen


@pytest.mark.parametrize("due", [True, False])
def test_a_dumped_checkpoint_is_whole_and_its_settled_loops_resume_where_they_say(tmp_path, due):
    def dump(trainer):
        dumped = internals.dumped(trainer)
        internals.settle_loops(dumped["loops"]["fit_loop"], due)
        return dumped

    sees, module = Sees(dump), BoringModel()
    trainer_of(tmp_path, sees, val_check_interval=2).fit(module)
    dumped = sees.seen[1]
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step"} <= dumped.keys()
    assert (dumped["epoch"], dumped["global_step"], internals.unfinished_epoch(dumped)) == (0, 2, 2)
    torch.save(dumped, tmp_path / "a.ckpt")
    resumed = Sees()
    trainer_of(tmp_path, resumed, val_check_interval=2).fit(BoringModel(), ckpt_path=tmp_path / "a.ckpt")
    begins = ["validation"] if due else []
    assert resumed.order == [*begins, 2, 3, "validation", 4, 5, "validation"]


def test_an_epoch_that_ended_is_not_unfinished(tmp_path):
    class AtTheEnd(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            self.dumped = internals.dumped(trainer)
            internals.settle_loops(self.dumped["loops"]["fit_loop"], False)

    end = AtTheEnd()
    trainer_of(tmp_path, end).fit(BoringModel())
    assert internals.unfinished_epoch(end.dumped) is None


@pytest.mark.parametrize("written", [True, False])
def test_only_what_was_written_is_remembered_as_the_best(tmp_path, written):
    asked = []

    class Best(internals.BestOnly):
        def save(self, trainer, path):
            asked.append(path)
            return written

    class Module(BoringModel):
        def validation_step(self, batch, batch_idx):
            self.log("loss", 1.0)

    best = Best(dirpath=tmp_path, filename="best", monitor="loss")
    trainer_of(tmp_path, best).fit(Module())
    assert asked == [tmp_path / "best.ckpt"] and list(tmp_path.iterdir()) == [], "nothing else writes"
    assert (best.best_model_path, best.best_model_score) == ((str(asked[0]), 1.0) if written else ("", None))


def test_the_environment_and_the_launchers_processes_are_found(tmp_path):
    environment = SLURMEnvironment(auto_requeue=False)
    trainer = trainer_of(tmp_path, plugins=[environment])
    assert internals.cluster_environment(trainer) is environment
    assert internals.started_processes(trainer) == []
    two = trainer_of(tmp_path, strategy="ddp", devices=2)
    two.strategy.launcher.procs.append("rank 1")
    assert internals.started_processes(two) == ["rank 1"]


def test_ddp_is_wrapped_anew(tmp_path):
    class Wraps(L.Callback):
        def on_train_start(self, trainer, module):
            self.before = trainer.strategy.model
            internals.wrap_anew(trainer.strategy, module)
            self.after, self.module = trainer.strategy.model, module

    wraps, variables = Wraps(), dict(os.environ)
    try:
        trainer_of(tmp_path, wraps, strategy="ddp").fit(BoringModel())
    finally:
        torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(variables)  # Lightning's launcher leaves its own
    assert wraps.before is not wraps.after and wraps.before.module is wraps.after.module is wraps.module


def test_bars_are_closed(tmp_path):
    class Bar(TQDMProgressBar):
        def on_train_batch_end(self, trainer, *arguments):
            super().on_train_batch_end(trainer, *arguments)
            internals.close_bars(self)
            self.closed = self.train_progress_bar.disable

    bar = Bar()
    trainer_of(tmp_path, bar, enable_progress_bar=True).fit(BoringModel())
    assert bar.closed


def test_wandb_is_not_given_what_it_warns_of(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert "anonymous" in logger._wandb_init, "else this needs no doing"
    assert "anonymous" not in internals.without_anonymous(logger)._wandb_init


NOT_LIGHTNINGS = {"_foreach_mul_", "_foreach_lerp_", "_foreach_copy_", "_exit", "_target_"}


def test_no_other_file_uses_private_members():
    found = []
    for path in (ROOT / "captioning" / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[:2] != "__":
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                found += [] if own or node.attr in NOT_LIGHTNINGS else [(path.name, node.attr)]
    assert {name for name, _ in found} == {"lightning_internals.py"}
