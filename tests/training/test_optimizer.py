"""AdamW's groups, and the one pass that scales and clips gradients."""

import pytest
import torch
from support import model_config

from captioning.model.build import Vocabulary, new_captioner
from captioning.training.module import build_optimizer, scale_and_clip


@pytest.fixture
def captioner():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "encoder_width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_width": 24}
    return new_captioner(model_config("tiny", **sizes, decoder_layers=2, decoder_heads=2), Vocabulary(50, 0, 0))


def test_the_groups_hold_every_parameter_once(captioner):
    optimizer = build_optimizer(captioner, weight_decay=0.1, betas=(0.9, 0.999), fused=False)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in captioner.parameters())


def test_only_matrices_are_decayed(captioner):
    names = {name: captioner.is_decayed(name, p) for name, p in captioner.network.named_parameters()}
    assert names["decoder.transformer.h.0.mlp.c_fc.weight"]
    assert names["decoder.transformer.wte.weight"]
    assert not names["decoder.transformer.h.0.mlp.c_fc.bias"]
    assert not names["decoder.transformer.h.0.ln_1.weight"]
    assert not names["decoder.transformer.wpe.weight"]
    assert not names["encoder.embeddings.position_embeddings"]
    assert not names["encoder.embeddings.cls_token"]


def test_a_frozen_parameter_gets_no_optimizer_state(captioner):
    optimizer = build_optimizer(captioner, weight_decay=0.1, betas=(0.9, 0.999), fused=True)
    captioner.set_trainable({"cross_attention"})
    for parameter in captioner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = {name: p.clone() for name, p in captioner.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    moved = {name for name, p in captioner.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"network.{name}" for name, _ in captioner.parameters_of("cross_attention")}
    assert len(optimizer.state) == len(moved)


def test_scaling_and_clipping_equals_torchs_own_after_division():
    torch.manual_seed(1)
    ours = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a) * 100
        b.grad = a.grad / 8
    norm = scale_and_clip(ours, 1 / 8, max_norm=1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert norm == pytest.approx(expected.item())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_short_gradients_are_scaled_but_not_clipped():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert scale_and_clip([parameter], 0.1, max_norm=1.0) == pytest.approx(0.5)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.3, 0.4]))
