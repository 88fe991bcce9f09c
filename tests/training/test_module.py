"""The LightningModule: gradients exact to the token, whatever way the batch comes."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from captioning.config import GROUPS, StageConfig
from captioning.data.batch import pack
from captioning.model.captioner import ImageCaptioner
from captioning.training.module import CaptioningModule, in_eval_mode, scale_and_clip
from captioning.training.optimizers import adamw, muon
from captioning.training.reports import MetricRows
from captioning.training.stages import ApplyStages, StageSchedule


class Recording(CaptioningModule):
    """Keeps the gradients with which each step was taken."""

    overflow: tuple[int, ...] = ()

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)
        return loss * float("inf") if batch_index in self.overflow else loss

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        divided_by = getattr(optimizer, "grad_scale", 1)  # as a fused optimizer steps
        gradients = [p.grad / divided_by for p in self.parameters() if p.grad is not None]
        self.steps = [*getattr(self, "steps", []), gradients]


def fitted(batches, tmp_path, accumulate=1, precision="32-true", max_norm=None, rate=1e-3, overflow=(), **trainer):
    """A module after one epoch over `batches`, all groups training; losses of batches in `overflow` are infinite."""
    tokenizer = trained_tokenizer()
    module = Recording(
        small_captioner(tokenizer.vocab_size, spread=0.05),
        optimizer=partial(adamw, weight_decay=0.0, betas=(0.9, 0.999)),
        checkpoint_extras={},
    )
    module.overflow = tuple(overflow)
    stage = StageConfig(
        phases=[{"from_epoch": 0, "train": list(GROUPS)}],
        learning_rates=dict.fromkeys(GROUPS, rate),
        warmup_steps=0,
        decay="none",
        best_by="val/perplexity",
        self_critical=None,
    )
    schedule = StageSchedule(stage)
    scaled = precision == "16-mixed"  # which Lightning would take for bf16-mixed on a CPU
    loop = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        precision=None if scaled else precision,
        plugins=[MixedPrecision("16-mixed", "cpu")] if scaled else [],
        gradient_clip_val=max_norm,
        callbacks=[ApplyStages(schedule), MetricRows()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **trainer,
    )
    batches = DataLoader(batches, batch_size=None)
    loop.fit(module.train(), batches, batches)
    return module, loop


def gradient_of_the_mean(rows):
    captioner = small_captioner(trained_tokenizer().vocab_size, spread=0.05)
    nats, tokens = captioner.loss(pack(rows))
    (nats / tokens).backward()
    return [p.grad for p in captioner.parameters()]


def global_norm(gradients):
    return torch.stack([g.norm() for g in gradients]).norm().item()


@pytest.fixture(scope="module")
def rows():
    """Rows of very different numbers of tokens."""
    return encoded_rows(trained_tokenizer(), [CAPTIONS[:5], CAPTIONS[2:3], CAPTIONS[5:7], CAPTIONS[2:4], CAPTIONS[6:7]])


def test_accumulated_batches_give_the_gradient_of_one_batch_of_all_their_tokens(rows, tmp_path):
    whole, _ = fitted([pack(rows)], tmp_path)
    parts, _ = fitted([pack(rows[:1]), pack(rows[1:3]), pack(rows[3:])], tmp_path, accumulate=3)
    assert len(whole.steps) == len(parts.steps) == 1
    for one, other in zip(whole.steps[0], parts.steps[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_last_window_of_fewer_batches_is_averaged_over_its_own_tokens(rows, tmp_path):
    batches = [pack(rows[:1]), pack(rows[1:3]), pack(rows[3:])]
    parts, _ = fitted(batches, tmp_path, accumulate=2, rate=1e-30)  # the weights stay as they are
    whole, _ = fitted(batches[2:], tmp_path)
    assert len(parts.steps) == 2
    for one, other in zip(whole.steps[0], parts.steps[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_loss(rows, tmp_path):
    trained, _ = fitted([pack(rows)], tmp_path)
    for one, other in zip(trained.steps[0], gradient_of_the_mean(rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_after_the_division(rows, tmp_path):
    module, _ = fitted([pack(rows)], tmp_path, max_norm=0.01)
    assert module.gradient_norm > 0.01
    assert global_norm(module.steps[0]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("max_norm", [None, 0, 0.0, -1.0, 1e9])
def test_without_clipping_the_gradient_is_still_divided_by_the_tokens(rows, tmp_path, max_norm):
    module, _ = fitted([pack(rows)], tmp_path, max_norm=max_norm)
    assert module.gradient_norm.item() == pytest.approx(global_norm(gradient_of_the_mean(rows)), rel=1e-4)
    assert global_norm(module.steps[0]) == pytest.approx(module.gradient_norm.item(), rel=1e-5)


@pytest.mark.parametrize(("precision", "within"), [("16-mixed", 0.02), ("bf16-mixed", 0.1)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_precision_gives_nearly_the_exact_gradient(rows, tmp_path, precision, within, accumulate):
    batches = [pack(rows[:1]), pack(rows[1:3]), pack(rows[3:])] if accumulate == 3 else [pack(rows)]
    module, _ = fitted(batches, tmp_path, precision=precision, accumulate=accumulate)
    exact, _ = fitted([pack(rows)], tmp_path)
    difference = [a - b for a, b in zip(module.steps[0], exact.steps[0], strict=True)]
    assert global_norm(difference) < within * global_norm(exact.steps[0])
    assert {g.dtype for g in module.steps[0]} == {torch.float32}


def test_an_overflow_under_16_mixed_skips_its_step_and_nothing_else(rows, tmp_path):
    batches = [pack(rows[:2]), pack(rows[2:])]
    module, loop = fitted(batches, tmp_path, precision="16-mixed", overflow=(0,))
    scaler = loop.precision_plugin.scaler
    assert not all(g.isfinite().all() for g in module.steps[0])
    assert scaler.get_scale() == 2.0**15, "halved once"
    alone, _ = fitted(batches[1:], tmp_path, precision="16-mixed")
    for (name, one), other in zip(module.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert module.gradient_norm.isfinite()
    assert len(module.steps) == 2
    assert module.skipped_steps == 0, "so the scaler finds its scale"


def test_under_16_mixed_a_loss_that_is_not_finite_is_counted_and_so_is_a_gradient_that_no_scale_can_hold(
    rows, tmp_path, monkeypatch
):
    batches = [pack(rows[:2]), pack(rows[2:])]
    monkeypatch.setattr(GradScaler, "get_scale", lambda scaler: 0.5)
    module, _ = fitted(batches, tmp_path, precision="16-mixed", overflow=(0,))
    assert module.skipped_steps == 1
    monkeypatch.undo()
    loss = ImageCaptioner.loss
    monkeypatch.setattr(ImageCaptioner, "loss", lambda self, batch, *smoothing: _infinite(loss(self, batch)))
    module, _ = fitted(batches, tmp_path, precision="16-mixed")
    before = small_captioner(trained_tokenizer().vocab_size, spread=0.05)
    assert module.skipped_steps == 2
    assert all(map(torch.equal, module.captioner.parameters(), before.parameters()))


def _infinite(loss):
    """A sum of infinitely many nats whose gradient is finite, as that of cross-entropy can be."""
    return loss._replace(nats=loss.nats + math.inf)


def test_the_epochs_training_loss_is_exact_to_the_token(rows, tmp_path):
    batches = [pack(rows[:1]), pack(rows[1:3]), pack(rows[3:])]
    _, loop = fitted(batches, tmp_path, accumulate=3)  # one step at the end: all losses are those of the first weights
    reference = small_captioner(trained_tokenizer().vocab_size, spread=0.05)
    with torch.no_grad():
        sums = [reference.loss(batch) for batch in batches]
    expected = sum(s.nats for s in sums) / sum(s.tokens for s in sums)
    assert loop.callback_metrics["train/loss_epoch"] == pytest.approx(expected.item(), rel=1e-6)
    assert loop.callback_metrics["train/perplexity_epoch"] == pytest.approx(expected.exp().item(), rel=1e-5)


def test_the_mode_of_every_part_is_as_it_was():
    captioner = small_captioner(60)
    captioner.set_trainable(["decoder"])
    modes = [part.training for part in captioner.modules()]
    assert len(set(modes)) == 2
    with in_eval_mode(captioner):
        assert not any(part.training for part in captioner.modules())
    assert [part.training for part in captioner.modules()] == modes


def test_scaling_and_clipping_equals_torchs_own_after_division():
    torch.manual_seed(1)
    ours = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a) * 100
        b.grad = a.grad / 8
    norm = scale_and_clip(torch.optim.SGD(ours), 1 / 8, max_norm=1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert norm == pytest.approx(expected.item())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("make", [adamw, partial(muon, momentum=0.9, update_rms=0.4)], ids=["adamw", "muon"])
def test_a_fused_optimizer_that_scales_as_it_steps_changes_the_weights_as_one_of_scaled_gradients(make):
    captioners = [small_captioner(40) for _ in range(2)]
    for captioner, fused in zip(captioners, (True, False), strict=True):
        optimizer = make(captioner, weight_decay=0.1, betas=(0.9, 0.99), fused=fused)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for step in range(2):
            torch.manual_seed(step)
            for parameter in captioner.parameters():
                parameter.grad = torch.randn_like(parameter)
            scale_and_clip(optimizer, 1 / 8, max_norm=1.0 / (1 + step))
            optimizer.step()
    for ours, theirs in zip(*(captioner.parameters() for captioner in captioners), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_norm_of_a_large_gradient_is_exact():
    parameter = torch.nn.Parameter(torch.zeros(4096, 1024))
    parameter.grad = torch.full_like(parameter, 0.1).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    norm = scale_and_clip(torch.optim.SGD([parameter]), 1.0, None)
    assert norm == pytest.approx(parameter.grad.double().norm().item(), rel=1e-6)


def test_short_gradients_are_scaled_but_not_clipped():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert scale_and_clip(torch.optim.SGD([parameter]), 0.1, max_norm=1.0) == pytest.approx(0.5)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.3, 0.4]))
