"""Optimizers: their param groups, what they leave alone, and Muon's steps, which are torch's own."""

import copy

import pytest
import torch
from support import model_config

from captioning.model.build import Vocabulary, new_captioner
from captioning.training import optimizers
from captioning.training.optimizers import adamw, by_depth, muon, orthogonalised

ADAMW = {"weight_decay": 0.1, "betas": (0.9, 0.999)}
MUON = {**ADAMW, "momentum": 0.95, "update_rms": 0.2}
BOTH = pytest.mark.parametrize(("make", "keys"), [(adamw, ADAMW), (muon, MUON)], ids=["adamw", "muon"])


@pytest.fixture
def captioner():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "encoder_width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_width": 24}
    return new_captioner(model_config("tiny", **sizes, decoder_layers=2, decoder_heads=2), Vocabulary(50, 0, 0))


def with_gradients(captioner, seed=0):
    """A gradient for each parameter that trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in captioner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def stepped(optimizer, rate=0.1):
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


@BOTH
def test_the_groups_hold_every_parameter_once(captioner, make, keys):
    optimizer = make(captioner, **keys)
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


def test_muon_is_for_matrices_but_not_for_embeddings_of_tokens_and_positions(captioner):
    maps = {name: captioner.maps_in(name) for name, _ in captioner.network.named_parameters()}
    of_decoder = {name.removeprefix("decoder.transformer.h.0."): n for name, n in maps.items() if n}
    assert of_decoder["attn.c_attn.weight"] == 3, "queries, keys and values"
    assert of_decoder["crossattention.c_attn.weight"] == 2, "keys and values"
    assert of_decoder["crossattention.q_attn.weight"] == of_decoder["mlp.c_fc.weight"] == 1
    assert sum(name.startswith("encoder.") for name, n in maps.items() if n) == 6 + 1, "of one layer, and of patches"
    assert not any(n for name, n in maps.items() if "wte" in name or "wpe" in name or "position" in name)


@BOTH
def test_a_frozen_parameter_gets_no_optimizer_state(captioner, make, keys):
    optimizer = make(captioner, **keys, fused=True)
    captioner.set_trainable({"cross_attention"})
    with_gradients(captioner)
    before = {name: p.clone() for name, p in captioner.named_parameters()}
    stepped(optimizer)
    moved = {name for name, p in captioner.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"network.{name}" for name, _ in captioner.parameters_of("cross_attention")}
    assert len(optimizer.state) == len(moved)


@BOTH
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_is_as_without_it(captioner, make, keys):
    ends = []
    for skips in (True, False):
        trained = copy.deepcopy(captioner)
        optimizer = make(trained, **keys, fused=True)
        with_gradients(trained)
        stepped(optimizer)
        if skips:
            before = [p.clone() for p in everything(trained, optimizer)]
            for parameter in trained.parameters():
                parameter.grad.fill_(torch.nan)
            optimizer.found_inf = torch.tensor(1.0)
            stepped(optimizer)
            assert all(map(torch.equal, everything(trained, optimizer), before))
        optimizer.found_inf = torch.tensor(0.0)
        with_gradients(trained, seed=1)
        stepped(optimizer)
        ends.append(everything(trained, optimizer))
    assert all(map(torch.equal, *ends)) and not all(map(torch.equal, ends[0], before))


def everything(captioner, optimizer):
    return [*captioner.parameters(), *(value for state in optimizer.state.values() for value in state.values())]


def test_a_matrix_steps_as_by_torchs_muon_and_the_rest_as_by_adamw(captioner, monkeypatch):
    monkeypatch.setattr(optimizers, "TOWARDS_ONE", 5 * ((3.4445, -4.7750, 2.0315),))

    def maps_of(name, tensor):
        maps = captioner.maps_in(name)
        return tensor.detach().flatten(1).chunk(maps, dim=1) if maps else (tensor.detach(),)

    ours, theirs = muon(captioner, **MUON), {}
    for name, parameter in captioner.network.named_parameters():
        copies = [torch.nn.Parameter(each.clone()) for each in maps_of(name, parameter)]
        decay = MUON["weight_decay"] if captioner.is_decayed(name, parameter) else 0.0
        if captioner.maps_in(name):
            optimizer = torch.optim.Muon(copies, 0.1, decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        else:
            optimizer = torch.optim.AdamW(copies, 0.1, betas=MUON["betas"], weight_decay=decay)
        theirs[name] = (copies, optimizer)
    for seed in range(3):
        with_gradients(captioner, seed)
        stepped(ours)
        for name, parameter in captioner.network.named_parameters():
            copies, optimizer = theirs[name]
            for one, gradient in zip(copies, maps_of(name, parameter.grad), strict=True):
                one.grad = gradient.clone()
            optimizer.step()
    for name, parameter in captioner.network.named_parameters():
        within = 0.02 if captioner.maps_in(name) else 1e-6  # theirs multiplies in bf16
        for one, other in zip(maps_of(name, parameter), theirs[name][0], strict=True):
            torch.testing.assert_close(one, other.detach(), atol=within, rtol=0, msg=name)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_singular_values_become_nearly_one_and_singular_vectors_stay(rank):
    torch.manual_seed(1)
    matrices = torch.randn(4, 8, rank) @ torch.randn(4, rank, 20) * torch.tensor([1e-6, 1, 10, 1e6])[:, None, None]
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalised(matrices) @ v.mT
    values = found.diagonal(dim1=1, dim2=2)[:, :rank]
    assert values.min() > 0.7 and values.max() < 1.3
    assert (found - torch.diag_embed(found.diagonal(dim1=1, dim2=2))).abs().max() < 0.02


@BOTH
def test_rates_fall_from_layer_to_layer_of_the_encoder_and_every_parameter_stays(captioner, make, keys):
    optimizer = make(captioner, **keys)
    before = {id(p): group["name"] for group in optimizer.param_groups for p in group["params"]}
    by_depth(optimizer, captioner, 0.5)
    assert {id(p): group["name"] for group in optimizer.param_groups for p in group["params"]} == before
    scales = {id(p): group["rate_scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: scales[id(p)] for name, p in captioner.network.named_parameters()}
    assert {scale for name, scale in found.items() if not name.startswith("encoder")} == {1.0}
    parts = {"encoder.embeddings": 0.25, "encoder.layers.0": 0.5, "encoder.layernorm": 1.0}
    for part, scale in parts.items():
        assert {found[name] for name in found if name.startswith(f"{part}.")} == {scale}
