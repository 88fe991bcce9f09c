"""The packed loss is the library's own loss, and a stage trains what it names and nothing else."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from support import CAPTIONS, encoded_rows, random_pictures, randomise, small_captioner, trained_tokenizer
from torch import Tensor

from captioning.config import GROUPS
from captioning.data.batch import IGNORE, Row, pack
from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.captioner import ImageCaptioner, group_of, same_caption_causal_mask
from captioning.model.generation import Greedy, generate
from captioning.model.loss import summed_cross_entropy

TOLERANCE = 1e-5  # fp32
WIDTHS = [{}, {"encoder_width": 48}]  # the second needs a projection between encoder and decoder


def library_loss(captioner: ImageCaptioner, rows: list[Row]) -> Tensor:
    """`VisionEncoderDecoderModel`'s own loss, () mean nats per token: one caption a row, its picture repeated."""
    pairs = [(row.pixels, torch.from_numpy(ids)) for row in rows for ids in row.captions]
    labels = torch.full((len(pairs), max(len(ids) for _, ids in pairs) - 1), IGNORE)
    for label, (_, ids) in zip(labels, pairs, strict=True):
        label[: len(ids) - 1] = ids[1:]  # the library makes its inputs of them: BOS and all but the last
    pixel_values = torch.stack([pixels for pixels, _ in pairs]).float() / 127.5 - 1  # mean and std 0.5
    return captioner.network(pixel_values=pixel_values, labels=labels).loss


def gradients(captioner: ImageCaptioner, loss: Tensor) -> dict[str, Tensor]:
    captioner.zero_grad()
    loss.backward()
    assert all(p.grad is not None for p in captioner.parameters())
    return {name: p.grad.clone() for name, p in captioner.named_parameters()}


def assert_packing_changes_nothing(captioner: ImageCaptioner, rows: list[Row]) -> None:
    """Loss and gradients agree to 1e-5, each gradient relative to its own norm; measured are 9e-8 and 6e-7 at most."""
    nats, tokens = captioner.loss(pack(rows))
    ours, theirs = nats / tokens, library_loss(captioner, rows)
    assert tokens == sum(len(ids) - 1 for row in rows for ids in row.captions)
    assert ours.item() == pytest.approx(theirs.item(), rel=TOLERANCE)
    our_gradients, their_gradients = gradients(captioner, ours), gradients(captioner, theirs)
    largest = max(gradient.norm() for gradient in their_gradients.values())
    for name, theirs in their_gradients.items():
        error = (our_gradients[name] - theirs).norm()
        if name.endswith("k_proj.bias"):  # moves every score of a softmax alike: its gradient is rounding alone
            assert our_gradients[name].norm() < TOLERANCE * largest
        else:
            assert error <= TOLERANCE * theirs.norm(), name


@pytest.mark.parametrize("widths", WIDTHS)
def test_packed_loss_and_gradients_are_those_of_one_caption_per_row(widths):
    tokenizer = trained_tokenizer()
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, **widths)
    rows = encoded_rows(tokenizer, [CAPTIONS[:5], CAPTIONS[5:6], CAPTIONS[3:8], [CAPTIONS[2], "", CAPTIONS[2]]])
    assert_packing_changes_nothing(captioner, rows)


@pytest.mark.parametrize("widths", WIDTHS)
def test_packed_loss_and_gradients_are_the_librarys_on_real_captions_and_gpt2s_tokens(shared_data: Path, widths):
    annotations = json.loads((shared_data / "coco" / "annotations" / "captions_val2017.json").read_text())
    captions: dict[int, list[str]] = {}
    for annotation in annotations["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    tokenizer = CaptionTokenizer.from_pretrained(str(shared_data / "gpt2-tokenizer"))
    end_of_text = tokenizer.eos_token_id
    captioner = small_captioner(tokenizer.vocab_size, end_of_text=end_of_text, max_positions=64, **widths)
    assert_packing_changes_nothing(captioner, encoded_rows(tokenizer, list(captions.values())[:6]))


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return trained_tokenizer()


@pytest.fixture
def captioner(tokenizer) -> ImageCaptioner:
    return small_captioner(tokenizer.vocab_size, max_positions=96)


def test_a_pictures_loss_is_the_same_whatever_it_is_batched_with(tokenizer, captioner):
    rows = encoded_rows(tokenizer, [CAPTIONS[:5], CAPTIONS[5:6], CAPTIONS[6:8]])
    alone = [captioner.loss(pack([row])) for row in rows]
    for size in (2, 3):
        for mates in combinations(range(3), size):
            together = captioner.loss(pack([rows[i] for i in mates]))
            assert together.nats.item() == pytest.approx(sum(alone[i].nats.item() for i in mates), rel=TOLERANCE)
            assert together.tokens == sum(alone[i].tokens for i in mates)


def test_what_padding_holds_never_contributes(tokenizer, captioner):
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:4], CAPTIONS[5:6]]))
    loss = captioner.loss(batch).nats
    padding = batch.caption_index == 0
    assert padding.any()
    batch.input_ids[padding] = 7
    batch.position_ids[padding] = 11
    assert captioner.loss(batch).nats == loss
    batch.input_ids[~padding] = 7
    assert captioner.loss(batch).nats != loss


def test_a_captions_loss_does_not_depend_on_its_row_mates(tokenizer, captioner):
    (row,) = encoded_rows(tokenizer, [CAPTIONS[:5]])
    batch = pack([row])
    for number, ids in enumerate(row.captions, start=1):
        batch.labelled = (batch.caption_index == number).flatten().nonzero().squeeze(1)
        among_mates, alone = captioner.loss(batch).nats, captioner.loss(pack([row._replace(captions=[ids])])).nats
        assert among_mates.item() == pytest.approx(alone.item(), rel=TOLERANCE)


def test_the_order_of_a_rows_captions_does_not_matter(tokenizer, captioner):
    (row,) = encoded_rows(tokenizer, [CAPTIONS[:5]])
    there, back = (captioner.loss(pack([row._replace(captions=c)])).nats for c in (row.captions, row.captions[::-1]))
    assert there.item() == pytest.approx(back.item(), rel=TOLERANCE)


def test_the_mask_lets_a_token_see_its_own_captions_past_alone():
    mask = same_caption_causal_mask(torch.tensor([[1, 1, 2, 2, 0]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_picture_is_encoded_once_and_only_labelled_positions_meet_the_vocabulary(tokenizer, captioner, monkeypatch):
    encoded, projected = [], []
    captioner.network.encoder.layers[0].register_forward_hook(lambda _, args, out: encoded.append(len(args[0])))

    def recorded(hidden, *arguments):
        projected.append(hidden.shape)
        return summed_cross_entropy(hidden, *arguments)

    monkeypatch.setattr("captioning.model.captioner.summed_cross_entropy", recorded)
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:5], CAPTIONS[5:6]]))
    tokens = captioner.loss(batch).tokens
    assert encoded == [2]
    assert projected == [(tokens, 32)]


def test_the_loss_depends_on_the_picture(tokenizer, captioner):
    rows = encoded_rows(tokenizer, [CAPTIONS[:2], CAPTIONS[:2]])
    first, second = (captioner.loss(pack([row])).nats for row in rows)
    assert abs(first - second) > 1e-2


def test_the_loss_of_accumulated_batches_adds_up(tokenizer, captioner):
    rows = encoded_rows(tokenizer, [CAPTIONS[:5], CAPTIONS[5:6], CAPTIONS[6:8], CAPTIONS[2:3]])
    whole, parts = captioner.loss(pack(rows)), [captioner.loss(pack(part)) for part in (rows[:2], rows[2:])]
    assert sum(part.nats.item() for part in parts) == pytest.approx(whole.nats.item(), rel=TOLERANCE)
    assert sum(part.tokens for part in parts) == whole.tokens


@pytest.mark.parametrize("widths", WIDTHS)
def test_pictures_encoded_before_give_the_loss_of_pictures_encoded_now(tokenizer, widths):
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, **widths)
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3], CAPTIONS[3:5]]))
    states = captioner.encoder_states(batch.pixel_values)
    assert states.shape[1:] == captioner.encoder_shape()
    before = replace(batch, pixel_values=None, encoder_hidden_states=states)
    assert captioner.loss(before).nats == captioner.loss(batch).nats
    other = replace(before, encoder_hidden_states=states.flip(0))
    assert captioner.loss(other).nats != captioner.loss(batch).nats


@pytest.mark.parametrize("training", [True, False], ids=["training", "scoring"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_under_autocast_the_loss_stays_near(tokenizer, widths, training):
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, **widths)
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3], CAPTIONS[3:5]]))
    exact = captioner.loss(batch).nats.item()
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        attended = captioner.attended(batch)
        nats = captioner.loss_from(attended, batch).nats
    assert nats.dtype == torch.float32 and nats.item() == pytest.approx(exact, rel=0.01)
    assert nats.item() != exact


def test_the_encoders_fingerprint_tells_its_weights_and_architecture_and_nothing_else(tokenizer):
    def fingerprint(change=lambda captioner: None, **architecture):
        captioner = small_captioner(tokenizer.vocab_size, **architecture)
        change(captioner)
        return captioner.encoder_fingerprint()

    def nudge(captioner):
        captioner.network.encoder.layernorm.bias.data[3] += 1e-6

    assert fingerprint() == fingerprint(decoder_layers=1)
    assert len({fingerprint(), fingerprint(nudge), fingerprint(encoder_heads=2), fingerprint(encoder_width=48)}) == 4


def test_normalisation_follows_the_picture_format(tokenizer, captioner):
    seen = []
    captioner.network.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    captioner.pixel_mean.copy_(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    captioner.pixel_std.copy_(torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1))
    captioner.encode(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.8, 3.2, 3.5])


def every_choice_of_groups() -> list[tuple[str, ...]]:
    return [chosen for size in range(4) for chosen in combinations(GROUPS, size)]


@pytest.mark.parametrize("groups", every_choice_of_groups(), ids="+".join)
def test_exactly_the_named_groups_train_and_the_rest_is_in_eval_mode(tokenizer, groups):
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, encoder_width=48, dropout=0.1)
    captioner.set_trainable(GROUPS)
    captioner.loss(pack(encoded_rows(tokenizer, [CAPTIONS[:3]]))).nats.backward()
    captioner.set_trainable(groups)
    for group in GROUPS:
        for name, parameter in captioner.parameters_of(group):
            assert parameter.requires_grad == (group in groups), name
            assert (parameter.grad is not None) == (group in groups), name
    for name, module in captioner.network.named_modules():
        if not list(module.children()):  # dropouts, norms and projections
            tied = name == "decoder.lm_head"
            assert module.training == ((group_of(name) if not tied else "decoder") in groups), name
    assert captioner.trainable_count() == sum(p.numel() for g in groups for _, p in captioner.parameters_of(g))


def test_the_groups_hold_every_parameter_once(tokenizer):
    captioner = small_captioner(tokenizer.vocab_size, encoder_width=48)
    grouped = [parameter for group in GROUPS for _, parameter in captioner.parameters_of(group)]
    assert len(grouped) == len(set(map(id, grouped)))
    assert set(map(id, grouped)) == set(map(id, captioner.parameters()))


def test_the_groups_are_what_their_names_say(tokenizer):
    captioner = small_captioner(tokenizer.vocab_size, encoder_width=48, decoder_layers=1, encoder_layers=1)
    names = {group: [name for name, _ in captioner.parameters_of(group)] for group in GROUPS}
    block = "decoder.transformer.h.0"
    attention = [f"{block}.crossattention.{part}" for part in ("c_attn", "q_attn", "c_proj")]
    assert set(names["cross_attention"]) == {
        f"{module}.{kind}"
        for module in (*attention, f"{block}.ln_cross_attn", "enc_to_dec_proj")
        for kind in ("weight", "bias")
    }
    inside = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    assert set(names["decoder"]) == {
        *(f"{block}.{module}.{kind}" for module in inside for kind in ("weight", "bias")),
        "decoder.transformer.wte.weight",  # lm_head's too
        "decoder.transformer.wpe.weight",
        "decoder.transformer.ln_f.weight",
        "decoder.transformer.ln_f.bias",
    }
    assert all(name.startswith("encoder.") for name in names["encoder"])


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_frozen_encoder_keeps_no_autograd_graph(tokenizer, widths):
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, **widths)
    outputs = []
    captioner.network.encoder.register_forward_hook(lambda _, args, out: outputs.append(out.last_hidden_state))
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3]]))
    captioner.set_trainable(["cross_attention", "decoder"])
    captioner.loss(batch).nats.backward()
    captioner.set_trainable(GROUPS)
    captioner.loss(batch).nats.backward()
    assert [states.requires_grad for states in outputs] == [False, True]


def test_a_frozen_groups_dropout_is_off(tokenizer):
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, dropout=0.5)
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3]]))
    captioner.set_trainable(["encoder"])
    assert captioner.loss(batch).nats == captioner.loss(batch).nats
    captioner.set_trainable(["decoder"])
    assert captioner.loss(batch).nats != captioner.loss(batch).nats


@pytest.mark.parametrize("groups", [GROUPS, ("cross_attention",), ("cross_attention", "decoder")], ids="+".join)
def test_gradient_checkpointing_changes_no_gradient(tokenizer, groups):
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:5], CAPTIONS[5:6]]))
    found, calls = [], []
    for checkpointing in (False, True):
        captioner = small_captioner(tokenizer.vocab_size, max_positions=96, gradient_checkpointing=checkpointing)
        captioner.set_trainable(groups)
        count = [0]
        captioner.network.decoder.transformer.h[0].ln_1.register_forward_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        captioner.loss(batch).nats.backward()
        found.append({name: p.grad for name, p in captioner.named_parameters() if p.requires_grad})
        calls.append(count[0])
    assert calls == [1, 2]  # it does recompute
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_golden_numbers(tokenizer, captioner):
    """Weights from one seed: any change of these is a change of what the model computes."""
    nats, tokens = captioner.loss(pack(encoded_rows(tokenizer, [CAPTIONS[:2], CAPTIONS[2:5]])))
    assert sum(p.numel() for p in captioner.parameters()) == 78_560
    assert (tokens.item(), nats.item()) == (119, pytest.approx(724.5798, rel=1e-5))
    randomise(captioner, 0.5)  # at 0.15 it says the same token over and over
    (caption,) = generate(captioner, random_pictures(1), Greedy(8))
    assert caption.token_ids == [47, 47, 299, 299, 299, 47, 299, 299]
    assert caption.log_probability == pytest.approx(-1.09004, rel=1e-4)
