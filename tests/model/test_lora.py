"""Adapters beside frozen halves: what trains, what is saved, and what peft and transformers make of it."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from support import checkpoint_of, model_config, random_pictures, trained_tokenizer
from test_huggingface import VOCABULARY, checkpoints  # noqa: F401  # fixture
from transformers import GPT2LMHeadModel, VisionEncoderDecoderModel, ViTModel

from captioning.config import GROUPS
from captioning.data.batch import CaptionBatch, Row, pack
from captioning.errors import UserError
from captioning.model import lora
from captioning.model.build import Vocabulary, fine_tuned, load_captioner, new_captioner
from captioning.model.captioner import ImageCaptioner, is_adapter
from captioning.training.optimizers import adamw, muon

# ruff: noqa: F811  # fixtures of another file

OPTIMIZERS = {
    "adamw": lambda captioner: adamw(captioner, weight_decay=0.1, betas=(0.9, 0.99)),
    "muon": lambda captioner: muon(captioner, weight_decay=0.1, betas=(0.9, 0.99), momentum=0.9, update_rms=0.2),
}


def model(folder: Path, **keys: object) -> ImageCaptioner:
    wanted = {"rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": ["decoder", "encoder"]} | keys
    halves = {"encoder": str(folder / "vit"), "decoder": str(folder / "gpt2"), "dropout": 0.0}
    return new_captioner(model_config("vit_gpt2", **halves, lora=wanted), Vocabulary(VOCABULARY, 0, 0))


@pytest.fixture(scope="module")
def batch() -> CaptionBatch:
    pictures = random_pictures(2, 32)
    captions = [[[0, 5, 6, 7, 0], [0, 9, 0]], [[0, 11, 12, 13, 14, 0]]]
    return pack([Row(i, pictures[i], [np.array(ids) for ids in some]) for i, some in enumerate(captions)])


def stepped(captioner: ImageCaptioner, batch: CaptionBatch, groups=GROUPS, optimizer: str = "adamw", steps: int = 2):
    captioner.set_trainable(groups)
    made = OPTIMIZERS[optimizer](captioner)
    for group in made.param_groups:
        group["lr"] = 0.05
    for _ in range(steps):
        made.zero_grad()
        captioner.loss(batch).nats.backward()
        made.step()
    return captioner.eval()


@torch.no_grad()
def hidden(captioner: ImageCaptioner, batch: CaptionBatch) -> torch.Tensor:
    return captioner.hidden_states(batch, captioner.attended(batch))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("targets", [["decoder"], ["decoder", "encoder"]])
def test_of_a_half_with_adapters_these_alone_train(checkpoints, batch, optimizer, targets):
    captioner = model(checkpoints, targets=targets)
    before = {name: weight.clone() for name, weight in captioner.network.named_parameters()}
    stepped(captioner, batch, optimizer=optimizer)
    changed = {name for name, weight in captioner.network.named_parameters() if not torch.equal(weight, before[name])}
    halves = tuple(f"{half}." for half in targets)
    of_halves = {name for name in changed if name.startswith(halves) and "cross" not in name}
    assert of_halves == {name for name in before if is_adapter(name)}
    assert any("crossattention" in name for name in changed)
    assert any(name.startswith("encoder.") for name in changed)
    assert len(of_halves) == 2 * sum({"decoder": 4, "encoder": 6}[half] * 2 for half in targets), "layers of 2 blocks"


def test_adapters_train_when_their_half_does(checkpoints, batch):
    captioner = model(checkpoints)
    stepped(captioner, batch, groups=("cross_attention",))
    assert not any(p.requires_grad for name, p in captioner.network.named_parameters() if is_adapter(name))
    assert not any(weight.any() for name, weight in captioner.network.named_parameters() if "lora_B" in name)


def test_merged_and_unmerged_are_equal_and_the_head_stays_tied(checkpoints, batch):
    captioner = stepped(model(checkpoints), batch)
    expected = hidden(captioner, batch)
    plain = lora.merged(deepcopy(captioner))
    assert not any(is_adapter(name) for name, _ in plain.network.named_parameters())
    assert "lora" not in plain.description()
    torch.testing.assert_close(hidden(plain, batch), expected, rtol=1e-5, atol=1e-5)
    decoder = plain.network.decoder
    assert decoder.lm_head.weight is decoder.transformer.wte.weight
    before = model(checkpoints).eval()
    assert (hidden(before, batch) - expected).abs().max() > 0.1, "the adapters do something"
    assert torch.equal(decoder.lm_head.weight, before.network.decoder.lm_head.weight), "and not to the head"


def test_a_checkpoint_is_merged_where_it_is_loaded_and_adapted_anew_where_it_trains(checkpoints, batch, tmp_path):
    captioner = stepped(model(checkpoints), batch)
    torch.save(checkpoint_of(captioner, trained_tokenizer()), tmp_path / "last.ckpt")
    loaded, _ = load_captioner(tmp_path / "last.ckpt")
    torch.testing.assert_close(hidden(loaded, batch), hidden(captioner, batch), rtol=1e-5, atol=1e-5)
    again = {"rank": 2, "alpha": None, "dropout": 0.0, "targets": ["decoder"]}
    anew = fine_tuned(loaded, model_config("tiny", init_from="x", dropout=0.0, lora=again)).eval()
    assert anew.description()["lora"]["rank"] == 2
    torch.testing.assert_close(hidden(anew, batch), hidden(loaded, batch))


def test_peft_adds_the_saved_folder_to_the_halves(checkpoints, batch, tmp_path):
    captioner = stepped(model(checkpoints), batch)
    lora.save_adapter(captioner, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    torch.manual_seed(7)  # of cross-attention, which the folder brings
    encoder = ViTModel.from_pretrained(checkpoints / "vit")
    decoder = GPT2LMHeadModel.from_pretrained(checkpoints / "gpt2", add_cross_attention=True)
    base = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    base.config.decoder_start_token_id = base.config.pad_token_id = 0
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    pixels = (batch.pixel_values.float() / 255 - captioner.pixel_mean) / captioner.pixel_std
    ids = torch.tensor([[0, 5, 6, 7], [0, 11, 12, 13]])
    with torch.no_grad():
        expected = captioner.network(pixel_values=pixels, decoder_input_ids=ids).logits
        torch.testing.assert_close(
            adapted(pixel_values=pixels, decoder_input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4
        )
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(
            merged(pixel_values=pixels, decoder_input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4
        )
    assert merged.decoder.lm_head.weight is merged.decoder.transformer.wte.weight


def test_without_peft_the_way_out_is_named(checkpoints, monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'captioning\[lora\]'"):
        model(checkpoints)
