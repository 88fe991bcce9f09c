"""Every family of encoders goes the whole way, from a small checkpoint of transformers and beside its own model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import CAPTIONS, encoded_rows, model_config, random_pictures, randomise, trained_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel
from worked_examples import EXAMPLES

from captioning.config import GROUPS
from captioning.data.batch import pack
from captioning.errors import UserError
from captioning.model.attention import cross_attention
from captioning.model.build import Vocabulary, fine_tuned, from_description, new_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import with_int8_weights
from captioning.model.encoders import ENCODERS, EncoderFamily
from captioning.model.generation import Beam, Greedy, generate
from captioning.model.huggingface import load_model, save_model
from captioning.training.optimizers import adamw
from captioning.weights import HuggingFaceModel

exec(EXAMPLES["captioning/model/encoders.py"], example := {"EncoderFamily": EncoderFamily, "ENCODERS": {}})
EXAMPLE: EncoderFamily = example["MSN"]
TOKENIZER = trained_tokenizer()
LENGTH = 8
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = SIZES | {"intermediate_size": 64}
CROPS = ("BitImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}})


@dataclass(frozen=True)
class Case:
    """A family's small checkpoint."""

    model: str  # transformers' class
    config: dict[str, Any] = field(default_factory=lambda: WIDE)
    processor: tuple[str, dict[str, Any]] = ("ViTImageProcessor", {"size": {"height": 32, "width": 32}})
    prefix: int = 1
    grid: tuple[int, int] = (4, 4)
    joint: str | None = None  # the class that is saved, of which `model` is the tower


SQUEEZES = ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}})
SIGLIP = Case("SiglipVisionModel", processor=SQUEEZES, prefix=0)
CLIP = Case("CLIPVisionModel", processor=("CLIPImageProcessor", CROPS[1]))
CASES = {
    "vit": Case("ViTModel"),
    "deit": Case(
        "DeiTModel",
        processor=(
            "DeiTImageProcessor",
            {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
        ),
        prefix=2,
    ),
    "beit": Case("BeitModel", WIDE | {"use_relative_position_bias": True, "use_mask_token": True}),
    "beit shared": Case("BeitModel", WIDE | {"use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    "dinov2": Case("Dinov2Model", SIZES | {"image_size": 56}, CROPS),
    "registers": Case("Dinov2WithRegistersModel", SIZES | {"image_size": 56}, CROPS, prefix=5),
    "dinov3": Case(
        "DINOv3ViTModel",
        WIDE | {"num_register_tokens": 4},
        ("DINOv3ViTImageProcessor", SQUEEZES[1]),
        prefix=5,
    ),
    "clip": CLIP,
    "clip joint": replace(CLIP, joint="CLIPModel"),
    "siglip": SIGLIP,
    "siglip joint": replace(SIGLIP, joint="SiglipModel"),
    "swin": Case(
        "SwinModel",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4},
        prefix=0,
    ),
    "example": Case("ViTMSNModel"),
}


def saved(case: Case, folder: Path) -> None:
    kind = getattr(transformers, case.model)
    config = kind.config_class(**case.config)
    model = kind(config)
    if case.joint:
        joint = getattr(transformers, case.joint)
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        text |= {"vocab_size": 20, "projection_dim": 16, "max_position_embeddings": 8}
        model = joint(joint.config_class(vision_config=config.to_dict(), text_config=text))
    randomise(model, 0.15)
    model.save_pretrained(folder)
    name, settings = case.processor
    getattr(transformers, name)(image_mean=[0.4] * 3, image_std=[0.5] * 3, **settings).save_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=TOKENIZER.vocab_size, n_embd=24, n_layer=3, n_head=3, n_inner=40, n_positions=48, bos_token_id=0
    )
    decoder = GPT2LMHeadModel(config)
    randomise(decoder, 0.3)
    decoder.save_pretrained(folder)
    return folder


@dataclass
class Pair:
    """Ours, and transformers' own model with the same weights."""

    case: Case
    folder: Path
    gpt2: Path
    ours: ImageCaptioner
    theirs: Any

    def build(self, image_size: int | None = None) -> ImageCaptioner:
        return built(self.folder, self.gpt2, image_size)

    def normalised(self, pictures: Tensor) -> Tensor:
        return (pictures.float() / 255 - 0.4) / 0.5


def built(encoder: Path, decoder: Path, image_size: int | None = None) -> ImageCaptioner:
    halves = {"encoder": str(encoder), "decoder": str(decoder)}
    return new_captioner(
        model_config("vit_gpt2", **halves, image_size=image_size, dropout=0.0), Vocabulary.of(TOKENIZER)
    )


def of_transformers(case: Case, folder: Path, ours: ImageCaptioner) -> Any:
    """Its own classes alone read the encoder; the decoder's weights are ours, since cross-attention is new."""
    if case.joint:
        kind = getattr(transformers, case.joint).from_pretrained(folder)
        encoder = getattr(transformers, case.model)(kind.config.vision_config)
        encoder.load_state_dict(kind.vision_model.state_dict())
    else:
        encoder = getattr(transformers, case.model).from_pretrained(folder)
    theirs: Any = VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(ours.network.decoder.config))
    theirs.decoder.load_state_dict(ours.network.decoder.state_dict())
    theirs.enc_to_dec_proj.load_state_dict(ours.network.enc_to_dec_proj.state_dict())
    for part in (theirs.config, theirs.generation_config):
        part.decoder_start_token_id, part.eos_token_id, part.pad_token_id = *TOKENIZER_ENDS, TOKENIZER_ENDS[1]
    return theirs.eval()


TOKENIZER_ENDS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory, gpt2):
    case, folder = CASES[request.param], tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, EXAMPLE.model_type, EXAMPLE)
        saved(case, folder)
        ours = built(folder, gpt2)
        for part in (ours.network.decoder, ours.network.enc_to_dec_proj):
            randomise(part, 0.4, seed=1)
        yield Pair(case, folder, gpt2, ours.eval(), of_transformers(case, folder, ours))


def test_its_loss_and_gradients_are_those_of_transformers(pair):
    texts = [CAPTIONS[:2], CAPTIONS[2:4]]
    rows = encoded_rows(TOKENIZER, texts, size=32)
    ours, theirs = pair.ours, pair.theirs
    ours.set_trainable(GROUPS)
    ours.eval()
    loss = ours.loss(pack(rows)).nats
    loss.backward()
    expected = torch.zeros(())
    theirs.zero_grad()
    for row in rows:
        for ids in row.captions:
            tokens = torch.from_numpy(ids)[None]
            logits = theirs(
                pixel_values=pair.normalised(row.pixels[None]), decoder_input_ids=tokens[:, :-1].long()
            ).logits
            expected = expected + torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:].long(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    of_theirs = dict(theirs.named_parameters())
    greatest = max(float(p.grad.abs().max()) for p in of_theirs.values() if p.grad is not None)
    for name, parameter in ours.network.named_parameters():
        assert parameter.grad is not None, f"DDP would wait for {name}"
        if parameter.shape == of_theirs[name].shape:  # positions may be interpolated
            torch.testing.assert_close(
                parameter.grad,
                of_theirs[name].grad,
                rtol=1e-3,
                atol=1e-5 * greatest,
                msg=lambda text, name=name: f"{name}: {text}",
            )
    left_out = {name for name, p in of_theirs.items() if p.grad is not None} - dict(
        ours.network.named_parameters()
    ).keys()
    assert not left_out, "what captions need"


def test_its_captions_are_those_of_transformers(pair):
    pictures = random_pictures(6, 32)
    searches = (
        (Greedy(LENGTH), {}),
        (Beam(LENGTH, 3, 1.0, False, no_repeat_ngram_size=0, min_new_tokens=0, n_best=1), {"num_beams": 3}),
    )
    for decoding, settings in searches:
        found = [TOKENIZER.decode(c.token_ids) for c in generate(pair.ours, pictures, decoding)]
        with torch.no_grad():
            tokens = pair.theirs.generate(
                pair.normalised(pictures), max_new_tokens=LENGTH, do_sample=False, early_stopping=False, **settings
            )
        expected = [_until_the_end(row.tolist()) for row in tokens]
        assert found == expected and len(set(found)) > 1


def _until_the_end(tokens: list[int]) -> str:
    said = tokens[1:]
    return TOKENIZER.decode(said[: said.index(TOKENIZER_ENDS[1])] if TOKENIZER_ENDS[1] in said else said)


def test_its_states_are_as_many_as_its_grid_and_prefix_say_and_make_the_same_loss_when_kept(pair):
    rows = encoded_rows(TOKENIZER, [CAPTIONS[:2], CAPTIONS[2:3]], size=32)
    batch, ours = pack(rows), pair.ours
    with torch.no_grad():
        states = ours.encoder_states(batch.pixel_values)
        assert states.shape[1:] == ours.encoder_shape()
        kept = replace(batch, pixel_values=None, encoder_hidden_states=states)
        torch.testing.assert_close(ours.loss(kept).nats, ours.loss(batch).nats)
        rows_and_columns = ours.patch_grid(ours.picture_format.size)
        assert (ours.prefix_tokens, rows_and_columns) == (pair.case.prefix, pair.case.grid)
        maps = cross_attention(ours, random_pictures(1, 32), [7, 3, 0])
        assert maps.shape == (3, *pair.case.grid)
        assert (maps.sum((1, 2)) < 1 - 1e-4).any() == bool(pair.case.prefix)
        if torch.backends.mkldnn.is_available():
            near = with_int8_weights(ours).encoder_states(batch.pixel_values)
            assert torch.cosine_similarity(near.flatten(), states.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("way", ["pretrained", "fine-tuned"])
def test_its_pictures_may_have_another_size(pair, way):
    size = 48

    def change() -> ImageCaptioner:
        return (
            pair.build(size)
            if way == "pretrained"
            else fine_tuned(pair.ours, model_config("vit_gpt2", image_size=size))
        )

    if pair.case.model == "BeitModel":
        with pytest.raises(UserError, match=r"model\.image_size=48 is not for a BEiT, whose .* pictures of 32 x 32"):
            change()
        return
    larger, pictures = change().eval(), random_pictures(2, size)
    takes = larger.patch_grid(larger.picture_format.size)
    assert takes == tuple(side * size // 32 for side in pair.case.grid) and larger.picture_format.size == (size, size)
    asks = (
        {}
        if pair.case.model in ("Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel", "SwinModel")
        else {"interpolate_pos_encoding": True}
    )
    with torch.no_grad():
        states, exact = (
            larger.encoder_states(pictures),
            way == "pretrained" or pair.ours.picture_format.size == (56, 56),
        )
        theirs = pair.theirs.encoder
        if pair.case.model == "SwinModel":  # which decides on its windows when it is made
            theirs = transformers.SwinModel.from_pretrained(pair.folder, image_size=size).eval()
        expected = theirs(pair.normalised(pictures), **asks).last_hidden_state
    assert states.shape[1:] == larger.encoder_shape()
    if exact or "Dinov2" not in pair.case.model:  # whose positions were interpolated once already
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"model\.image_size=50 must be a multiple of the patch size 8"):
        pair.build(50)


def test_it_comes_back_from_a_description_and_from_transformers_with_its_captions(pair, tmp_path):
    ours, pictures = pair.ours, random_pictures(6, 32)
    captions = [c.token_ids for c in generate(ours, pictures, Greedy(LENGTH))]
    again = from_description(ours.description())
    again.load_state_dict(ours.state_dict())
    assert [c.token_ids for c in generate(again.eval(), pictures, Greedy(LENGTH))] == captions
    save_model(ours, tmp_path, {})
    theirs, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        states = theirs.eval().encoder(pair.normalised(pictures)).last_hidden_state
        torch.testing.assert_close(states, ours.encoder_states(pictures), rtol=1e-4, atol=1e-5)
    again = load_model(HuggingFaceModel(str(tmp_path), "checkpoint"))
    assert again.picture_format == ours.picture_format
    assert [c.token_ids for c in generate(again, pictures, Greedy(LENGTH))] == captions


def test_its_own_numbers_are_not_decayed_and_a_step_trains_it(pair):
    captioner = pair.build()
    captioner.set_trainable(GROUPS)
    optimizer = adamw(captioner, weight_decay=0.1, betas=(0.9, 0.999), fused=False)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    batch = pack(encoded_rows(TOKENIZER, [CAPTIONS[:2], CAPTIONS[5:6]], size=32))
    before = captioner.eval().loss(batch).nats
    before.backward()
    optimizer.step()
    assert captioner.loss(batch).nats < before
    tables = ("position", "token", "class_embedding", "relative")
    for name, weight in captioner.parameters_of("encoder"):
        if any(word in name for word in tables):
            assert not captioner.is_decayed(name, weight), name


def test_as_it_trains_nothing_in_it_is_left_to_chance(pair):
    pair.ours.set_trainable(GROUPS)
    pictures = random_pictures(2, 32)
    if getattr(pair.ours.network.encoder.config, "drop_path_rate", 0.0):
        return  # the checkpoint's own stochastic depth
    with torch.no_grad():
        assert torch.equal(pair.ours.encoder_states(pictures), pair.ours.encoder_states(pictures))
    pair.ours.eval()


def test_what_is_compiled_is_every_layer_that_torch_compiles_in_seconds(pair):
    compiled = fine_tuned(pair.ours, model_config("vit_gpt2", compile=True))
    halves = {
        name.split(".")[0]
        for name, module in compiled.network.named_modules()
        if module._compiled_call_impl is not None
    }
    assert halves == ({"decoder"} if pair.case.model == "SwinModel" else {"encoder", "decoder"})


def test_gradients_are_the_same_with_checkpointing(pair):
    batch = pack(encoded_rows(TOKENIZER, [CAPTIONS[:2], CAPTIONS[5:6]], size=32))
    found = []
    for frugal in (False, True):
        captioner = fine_tuned(pair.ours, model_config("vit_gpt2", dropout=0.0, gradient_checkpointing=frugal))
        captioner.set_trainable(GROUPS)
        torch.manual_seed(0)
        captioner.loss(batch).nats.backward()
        found.append([p.grad for p in captioner.parameters()])
    for exact, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, exact)
