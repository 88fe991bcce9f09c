"""Weights come in whole, in every form that the hub holds, or are refused in one sentence; and go out the same.

transformers' own loading, logits and captions are the reference.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import (
    Touches,
    model_config,
    noise_pictures,
    random_pictures,
    randomise,
    saved_model,
    small_captioner,
    transformers_captions,
)
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from captioning.data.batch import PictureFormat
from captioning.data.images import read_picture
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.model.build import Vocabulary, load_captioner, new_captioner
from captioning.model.captioner import ImageCaptioner, group_of
from captioning.model.encoders import processor_of
from captioning.model.generation import Beam, Greedy, generate
from captioning.model.huggingface import (
    load_encoder_config,
    load_model,
    load_picture_format,
    own_generation,
    save_model,
)
from captioning.weights import HuggingFaceModel, stamp_of

LENGTH = 12
VOCABULARY = 40
VIT = ViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
    pooler_output_size=32,
)
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=20, bos_token_id=0, eos_token_id=0)


def random_vit(config: ViTConfig = VIT) -> ViTModel:
    vit = ViTModel(config)
    randomise(vit, 0.3, seed=1)
    return vit.eval()


def random_gpt2() -> GPT2LMHeadModel:
    gpt2 = GPT2LMHeadModel(GPT2)
    randomise(gpt2, 0.3, seed=2)
    return gpt2.eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with `vit` and `gpt2` as the library saves them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    random_vit().save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    random_gpt2().save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture
def copied(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the checkpoints, to be spoiled."""

    def copy(name: str) -> Path:
        return shutil.copytree(checkpoints / name, tmp_path / name)

    return copy


@pytest.fixture
def load(checkpoints: Path) -> Callable[..., ImageCaptioner]:
    """`from_pretrained` on the two checkpoints, save what is given."""

    def load(*, vocab_size: int = VOCABULARY, added_tokens: int = 0, **changed: object) -> ImageCaptioner:
        keys = {"encoder": str(checkpoints / "vit"), "decoder": str(checkpoints / "gpt2")}
        keys |= {key: str(value) if isinstance(value, Path) else value for key, value in changed.items()}
        return new_captioner(model_config("vit_gpt2", **keys), Vocabulary(vocab_size, 0, 0, added_tokens))

    return load


def assert_all_loaded(captioner: ImageCaptioner) -> None:
    """Every weight is the checkpoints' own, save those of cross-attention."""
    pretrained = {f"encoder.{k}": v for k, v in random_vit().named_parameters()}
    pretrained |= {f"decoder.{k}": v for k, v in random_gpt2().named_parameters()}
    new = set()
    for name, weight in captioner.network.named_parameters():
        if name in pretrained:
            assert torch.equal(weight, pretrained[name]), name
        else:
            new.add(name)
    assert new == {name for name, _ in captioner.parameters_of("cross_attention")}
    assert pretrained.keys() - dict(captioner.network.named_parameters()).keys() == {
        "encoder.pooler.dense.weight",
        "encoder.pooler.dense.bias",
    }
    assert captioner.network.decoder.lm_head.weight is captioner.network.decoder.transformer.wte.weight
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in captioner.parameters())


def hub_vit(prefix: str) -> dict[str, Tensor]:
    """The weights of `random_vit` under the names that the hub's ViT files use."""
    old_names = {
        r"^layers\.(\d+)\.attention\.([qkv])_proj": lambda m: (
            f"encoder.layer.{m[1]}.attention.attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[2]] }"
        ),
        r"^layers\.(\d+)\.attention\.o_proj": r"encoder.layer.\1.attention.output.dense",
        r"^layers\.(\d+)\.mlp\.fc1": r"encoder.layer.\1.intermediate.dense",
        r"^layers\.(\d+)\.mlp\.fc2": r"encoder.layer.\1.output.dense",
        r"^layers\.(\d+)\.layernorm": r"encoder.layer.\1.layernorm",
    }
    weights = {}
    for name, weight in random_vit().state_dict().items():
        for pattern, old in old_names.items():
            name = re.sub(pattern, old, name)
        weights[prefix + name] = weight.contiguous()
    return weights


def hub_gpt2() -> dict[str, Tensor]:
    """The weights of `random_gpt2` as the hub's gpt2 holds them: no prefix, no head, and masks as buffers."""
    weights = {k: v.contiguous() for k, v in random_gpt2().transformer.state_dict().items()}
    mask = torch.ones(20, 20).tril().view(1, 1, 20, 20)
    return weights | {f"h.{layer}.attn.bias": mask.clone() for layer in range(GPT2.n_layer)}


def rewrite(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_every_weight_is_loaded_and_only_cross_attention_is_new(load):
    assert_all_loaded(load())


def test_the_hubs_names_of_a_vit_are_understood(load, copied):
    weights = hub_vit(prefix="")
    assert "encoder.layer.1.attention.attention.query.weight" in weights
    assert "encoder.layer.0.layernorm_before.bias" in weights and "pooler.dense.weight" in weights
    assert_all_loaded(load(encoder=rewrite(copied("vit"), weights)))


def test_a_classifiers_vit_is_understood(load, copied):
    weights = {k: v for k, v in hub_vit(prefix="vit.").items() if "pooler" not in k}
    folder = rewrite(
        copied("vit"), weights | {"classifier.weight": torch.ones(10, 32), "classifier.bias": torch.ones(10)}
    )
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["ViTForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert_all_loaded(load(encoder=folder))


def test_the_hubs_names_of_gpt2_are_understood(load, copied):
    weights = hub_gpt2()
    assert {"wte.weight", "h.0.attn.bias", "h.1.mlp.c_fc.weight", "ln_f.bias"} <= weights.keys()
    assert_all_loaded(load(decoder=rewrite(copied("gpt2"), weights)))


def test_weights_in_pytorchs_own_format_are_read_where_that_is_allowed(load, copied):
    folder = copied("gpt2")
    (folder / "model.safetensors").unlink()
    torch.save(hub_gpt2(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"={folder} has no model\.safetensors;.* with allow_pickle=true"):
        load(decoder=folder)
    assert_all_loaded(load(decoder=folder, allow_pickle=True))


def test_half_precision_checkpoints_are_trained_in_single_precision(load, copied):
    folder = copied("gpt2")
    random_gpt2().half().save_pretrained(folder)
    captioner = load(decoder=folder)
    assert {p.dtype for p in captioner.parameters()} == {torch.float32}
    wte = captioner.network.decoder.transformer.wte.weight
    torch.testing.assert_close(wte, random_gpt2().transformer.wte.weight, atol=1e-3, rtol=1e-3)


def test_other_widths_add_a_projection(load, tmp_path):
    wide = ViTConfig(**VIT.to_dict() | {"hidden_size": 48, "pooler_output_size": 48})
    random_vit(wide).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    captioner = load(encoder=tmp_path)
    assert captioner.network.enc_to_dec_proj.weight.shape == (32, 48)
    assert group_of("enc_to_dec_proj.weight") == "cross_attention"
    assert captioner.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 17, 32)


def test_what_is_new_and_what_is_not_used_is_logged(load, caplog):
    caplog.set_level("INFO", "captioning")
    load()
    (line,) = [record.message for record in caplog.records if record.message.startswith("new, in no checkpoint: ")]
    new = line.partition(": ")[2].split(", ")
    assert len(new) == 8  # 4 modules x (weight, bias), the layers of each together
    assert "decoder.transformer.h.*.ln_cross_attn.bias (2 layers)" in new
    assert re.search(r"not used from \S+: pooler\.dense\.bias, pooler\.dense\.weight", caplog.text)


def test_dropout_is_the_configs(load):
    blocks = load(dropout=0.25, attention_dropout=0.5).network.decoder.transformer.h
    assert {(b.attn.attn_dropout.p, b.crossattention.attn_dropout.p, b.mlp.dropout.p) for b in blocks} == {
        (0.5, 0.5, 0.25)
    }


@pytest.mark.parametrize("image_size", [16, 48, 64])
def test_another_image_size_interpolates_position_embeddings_as_the_library_does(load, image_size):
    captioner = load(image_size=image_size).eval()
    pictures = torch.randint(0, 256, (2, 3, image_size, image_size), dtype=torch.uint8)
    with torch.no_grad():
        expected = random_vit()(pixel_values=pictures.float() / 127.5 - 1, interpolate_pos_encoding=True)
        torch.testing.assert_close(captioner.encode(pictures), expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert captioner.picture_format.size == (image_size, image_size)
    assert captioner.description()["network"]["encoder"]["image_size"] == image_size


def test_an_image_size_that_patches_do_not_tile_is_refused(load):
    with pytest.raises(UserError, match=r"model\.image_size=36 must be a multiple of the patch size 8"):
        load(image_size=36)


def write_processor(folder: Path, **settings: object) -> str:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def picture_format(folder: str) -> PictureFormat:
    source = HuggingFaceModel(folder, "model.encoder")
    return load_picture_format(source, load_encoder_config(source))


def test_a_processor_that_squeezes_gives_its_statistics_and_filter(copied):
    folder = copied("vit")
    ViTImageProcessor(
        size={"height": 24, "width": 40}, resample=3, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    expected = PictureFormat((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert picture_format(str(folder)) == expected


def test_the_hubs_old_way_to_write_a_size_is_understood(copied):
    folder = write_processor(
        copied("vit"),
        do_normalize=True,
        do_resize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=2,
        size=32,
        feature_extractor_type="ViTFeatureExtractor",
    )
    assert picture_format(folder) == PictureFormat((32, 32))


def test_a_processor_that_crops_gives_both_sizes(copied):
    folder = copied("vit")
    CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    found = picture_format(str(folder))
    assert (found.size, found.resize_shortest, found.resample) == ((32, 32), 36, "bicubic")
    assert found.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


def test_a_processor_that_does_not_normalise_leaves_values_in_0_to_1(copied):
    folder = copied("vit")
    ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(folder)
    assert picture_format(str(folder)) == PictureFormat((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_pictures_come_at_the_encoders_size_whatever_the_processor_says(load, copied):
    folder = write_processor(copied("vit"), image_processor_type="ViTImageProcessor", size={"height": 48, "width": 48})
    assert load(encoder=folder).picture_format.size == (32, 32)


def test_another_image_size_crops_the_same_part_of_the_picture(load, copied):
    folder = copied("vit")
    CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    found = load(encoder=folder, image_size=64).picture_format
    assert (found.size, found.resize_shortest) == ((64, 64), 72)


SIDES = {"height": 32, "width": 32}
USUAL = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
USUAL |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (
            "DeiTImageProcessor",
            {"size": {"height": 40, "width": 36}, "crop_size": SIDES, "resample": 3},
            {"resize_whole": (40, 36), "resample": "bicubic"},
        ),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": SIDES}, {"resize_shortest": 40}),
        ("CLIPImageProcessor", {"size": SIDES, "crop_size": SIDES}, {}),
        ("CLIPImageProcessor", {"size": {"height": 48, "width": 40}, "crop_size": SIDES}, {"resize_whole": (48, 40)}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, {"resize_shortest": 36}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, {}),
        ("CLIPImageProcessor", {"do_resize": False, "do_center_crop": True, "crop_size": SIDES}, {"resizes": False}),
        ("ViTImageProcessor", {"size": SIDES, "resample": 1}, {"resample": "lanczos"}),
        ("SiglipImageProcessor", {"size": SIDES}, {}),
        (None, {"size": SIDES}, {}),
    ],
)
def test_what_a_processor_does_is_represented_and_held_against_its_own_pixels(copied, kind, settings, expected):
    folder = copied("vit")
    common = {"resample": 2, **USUAL}
    write_processor(folder, **common | settings | ({} if kind is None else {"image_processor_type": kind}))
    if settings.get("size") == {"shortest_edge": 384}:
        change_encoder(folder, image_size=384)
    found = picture_format(str(folder))
    plain = PictureFormat((found.size[0],) * 2, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), resample=found.resample)
    assert found == replace(plain, **expected)
    source = HuggingFaceModel(str(processor_of(found).save_pretrained(folder) and folder), "model.encoder")
    assert load_picture_format(source, load_encoder_config(source)) == found, "what is exported does the same"


def change_encoder(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_one_mean_for_all_channels_is_understood(copied):
    folder = write_processor(
        copied("vit"),
        **USUAL | {"image_processor_type": "ViTImageProcessor", "size": SIDES, "image_mean": 0.4, "image_std": 0.3},
    )
    found = picture_format(folder)
    assert (found.mean, found.std) == ((0.4,) * 3, (0.3,) * 3)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 40}, "do_center_crop": False},
            r"makes \(3, 40, 63\) .* ours \(3, 40, 40\)",
        ),
        (
            "DonutImageProcessor",
            {"size": SIDES, "do_thumbnail": True, "do_pad": True},
            "with do_pad=true, which is not taken here",
        ),
        (
            "DonutImageProcessor",
            {"size": SIDES, "do_thumbnail": True, "do_pad": False},
            "with do_thumbnail=true, which",
        ),
        (
            "DetrImageProcessor",
            {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_pad": False},
            r"with size=\{.*longest",
        ),
        (
            "EfficientNetImageProcessor",
            {"size": SIDES, "rescale_offset": True},
            "pixels differ by up to [0-9]+ levels of 255",
        ),
        ("ViTImageProcessor", {"size": SIDES, "do_resize": False}, "with neither do_resize nor do_center_crop"),
        ("ViTImageProcessor", {"size": SIDES, "image_mean": [0.5]}, "where each of three channels needs one"),
        ("ViTImageProcessor", {"size": SIDES, "image_std": [0.5, 0.5, 0]}, r"with image_std=\(0.5, 0.5, 0\)"),
        ("ViTImageProcessor", {"size": SIDES, "resample": 9}, "with resample=9"),
        ("ViTImageProcessor", {"size": SIDES, "resample": None}, "fails: .*`resample` must be specified"),
        ("ViTImageProcessor", {"size": "large"}, ""),
        ("ViTImageProcessor", {"size": SIDES, "image_mean": "red"}, "image_std red, where"),
        ("NoImageProcessor", {"size": SIDES}, "has no image processor that transformers knows"),
    ],
)
def test_what_is_not_represented_is_refused_in_a_sentence(copied, kind, settings, said):
    common = {"resample": 2, **USUAL, "image_processor_type": kind}
    folder = write_processor(copied("vit"), **common | settings)
    with pytest.raises(UserError, match=rf"^model\.encoder=\S+vit.*{said}.*preprocessor_config\.json") as caught:
        picture_format(folder)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_one_channel_is_refused(copied):
    folder = copied("vit")
    change_encoder(folder, num_channels=1)
    with pytest.raises(UserError, match=r"vit is a ViT with num_channels=1, and num_channels=3 is needed"):
        picture_format(str(folder))


def spoil(folder: Path, name: str, weight: Tensor | None) -> Path:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    return rewrite(folder, weights if weight is None else weights | {name: weight})


def test_a_missing_weight_is_named(load, copied):
    folder = spoil(copied("gpt2"), "transformer.h.1.mlp.c_fc.weight", None)
    with pytest.raises(UserError, match=r"model\.decoder=\S+gpt2 .*transformer\.h\.1\.mlp\.c_fc\.weight is missing"):
        load(decoder=folder)
    folder = spoil(copied("vit"), "embeddings.position_embeddings", None)
    with pytest.raises(UserError, match=r"model\.encoder=\S+vit .*embeddings\.position_embeddings is missing"):
        load(encoder=folder)


def test_a_weight_of_another_shape_is_named_with_both_shapes(load, copied):
    folder = spoil(copied("gpt2"), "transformer.ln_f.weight", torch.ones(31))
    with pytest.raises(
        UserError, match=r"model\.decoder=.*transformer\.ln_f\.weight is \(31,\), not \(32,\)"
    ) as caught:
        load(decoder=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "name"), [("encoder", "vit"), ("decoder", "gpt2")])
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(load, copied, key, name, missing):
    folder = copied(name)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"model\.{key}=\S+{name} is a folder without a readable .*{missing}"):
        load(**{key: folder})


def test_a_folder_without_a_picture_processor_is_refused(load, copied):
    folder = copied("vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"model\.encoder=\S+vit is a folder .* preprocessor_config\.json"):
        load(encoder=folder)


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_refused(load, copied, damaged):
    folder = copied("gpt2")
    (folder / damaged).write_bytes((folder / damaged).read_bytes()[:100])
    with pytest.raises(UserError, match=rf"model\.decoder=\S+gpt2 is a folder without a readable .*{damaged}"):
        load(decoder=folder)


def test_a_model_of_another_architecture_is_refused(load, tmp_path, checkpoints):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.encoder=\S+ is a bert model, and a ViT, .* or Swin that .* is needed"):
        load(encoder=tmp_path)
    with pytest.raises(
        UserError, match=r"model\.decoder=\S+ is a bert model, and a GPT-2 of any shape is needed: another"
    ):
        load(decoder=tmp_path)
    with pytest.raises(UserError, match=r"model\.encoder=\S+ is a gpt2 model, and a ViT, "):
        load(encoder=checkpoints / "gpt2")


@pytest.mark.parametrize("name", ["google/no-such-vit", "no-such-name", "/no/such/folder", "not a name/at all/x"])
def test_a_name_that_cannot_be_fetched_is_named_with_the_way_to_a_local_folder(load, name):
    for key in ("encoder", "decoder"):
        expected = (
            rf"model\.{key}={re.escape(name)} could not be fetched.*set model\.{key} to a local folder that "
            r"holds .*, or take model=tiny, which needs no weights$"
        )
        with pytest.raises(UserError, match=expected):
            load(**{key: name})


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(load):
    expected = r"model\.decoder=\S+ has 40 tokens and the data's tokenizer 41; set data\.tokenizer to"
    with pytest.raises(UserError, match=expected):
        load(vocab_size=41)
    assert load(vocab_size=33).vocab_size == 40, "some decoders have rows to spare"


def test_a_decoder_gets_rows_for_tokens_that_were_added_to_its_tokenizer(load):
    before, grown = load(vocab_size=40), load(vocab_size=1040, added_tokens=1000)
    rows, old = (one.network.decoder.get_input_embeddings().weight for one in (grown, before))
    assert grown.vocab_size == 1040 and torch.equal(rows[:40], old)
    assert torch.allclose(rows[40:], old.mean(0)) and grown.network.decoder.lm_head.weight is rows
    with pytest.raises(UserError, match="has 40 tokens and the data's tokenizer 1040"):
        load(vocab_size=1040, added_tokens=999)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved_model(folder / "gpt2 tokens")
    saved_model(folder / "own tokens", own_tokens=True, encoder_width=48)
    return folder


@pytest.fixture
def whole(models, tmp_path) -> Path:
    """One of them, to be spoiled."""
    return shutil.copytree(models / "gpt2 tokens", tmp_path / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return noise_pictures(tmp_path_factory.mktemp("pictures"))


def change(folder: Path, file: str, **settings: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def our_captions(model: Path, pictures: list[Path], decoding) -> list[str]:
    captioner, tokenizer = load_captioner(HuggingFaceModel(str(model), "checkpoint"))
    transform = EvaluationTransform(captioner.picture_format)
    pixels = torch.stack([transform(read_picture(path)) for path in pictures])
    return [tokenizer.decode(caption.token_ids) for caption in generate(captioner, pixels, decoding)]


def loaded(folder: Path, allow_pickle: bool = False) -> ImageCaptioner:
    return load_model(HuggingFaceModel(str(folder), "checkpoint", allow_pickle))


def beam(num_beams: int) -> Beam:
    return Beam(LENGTH, num_beams, 1.0, False, no_repeat_ngram_size=0, min_new_tokens=0, n_best=1)


@pytest.mark.parametrize("name", ["gpt2 tokens", "own tokens"])
def test_captions_are_those_of_transformers(models, pictures, name):
    model = models / name
    greedy = transformers_captions(model, pictures, max_new_tokens=LENGTH, do_sample=False)
    assert our_captions(model, pictures, Greedy(LENGTH)) == greedy
    assert len(set(greedy)) > 1
    searched = transformers_captions(model, pictures, max_new_tokens=LENGTH, num_beams=3, do_sample=False)
    assert our_captions(model, pictures, beam(3)) == searched != greedy


def test_some_captions_end_at_the_models_own_end(models, pictures):
    captioner, tokenizer = load_captioner(HuggingFaceModel(str(models / "own tokens"), "checkpoint"))
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, captioner.network.config.pad_token_id}) == 3
    assert captioner.vocab_size == tokenizer.vocab_size + 6
    lengths = {len(c.token_ids) for c in generate(captioner, random_pictures(24), Greedy(LENGTH))}
    assert min(lengths) < LENGTH


def test_a_model_of_the_hub_before_generation_settings_existed_is_understood(models, pictures, whole, caplog):
    expected = transformers_captions(whole, pictures, max_new_tokens=LENGTH, do_sample=False)
    (whole / "generation_config.json").unlink()
    config = json.loads((whole / "config.json").read_text())
    assert config["decoder"].pop("eos_token_id") == config["eos_token_id"]
    config["decoder"] |= {"activation_function": "gelu_new", "_name_or_path": "gpt2", "torch_dtype": None}
    (whole / "config.json").write_text(json.dumps(config | {"transformers_version": "4.15.0"}))
    old = {"feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "do_normalize": True, "size": 16}
    kept = json.loads((whole / "preprocessor_config.json").read_text())
    old |= {key: kept[key] for key in ("image_mean", "image_std", "resample")}
    (whole / "preprocessor_config.json").write_text(json.dumps(old))
    weights = load_file(whole / "model.safetensors")
    assert "encoder.encoder.layer.0.attention.attention.query.weight" in weights, "as the hub's files name them"
    mask = torch.ones(48, 48).tril().view(1, 1, 48, 48)
    masks = {
        f"decoder.transformer.h.{n}.{part}.bias": mask.clone() for n in (0, 1) for part in ("attn", "crossattention")
    }
    masks |= {name.replace(".bias", ".masked_bias"): torch.tensor(-1e4) for name in masks}
    head = {"decoder.lm_head.weight": weights["decoder.transformer.wte.weight"].clone()}
    save_file(weights | masks | head, whole / "model.safetensors", {"format": "pt"})
    caplog.set_level(logging.INFO, "captioning")
    assert our_captions(whole, pictures, Greedy(LENGTH)) == expected
    assert "not used" not in caplog.text, "which nobody can heed"


def test_its_other_generation_settings_are_named_and_not_used(whole, pictures, caplog):
    expected = our_captions(whole, pictures, Greedy(LENGTH))
    change(whole, "generation_config.json", num_beams=4, max_length=5, _from_model_config=False)
    caplog.set_level(logging.INFO, "captioning")
    assert our_captions(whole, pictures, Greedy(LENGTH)) == expected
    assert "checkpoint: decoding=... decides, not its own max_length=5, num_beams=4" in caplog.text


@pytest.mark.parametrize(
    "setting",
    [
        *({"forced_bos_token_id": 3}, {"suppress_tokens": [4]}, {"begin_suppress_tokens": [4, 5]}),
        *(
            {"bad_words_ids": [[4, 5]]},
            {"sequence_bias": [[[4], -9.0]]},
            {"exponential_decay_length_penalty": [3, 1.5]},
        ),
        *({"encoder_repetition_penalty": 1.5}, {"forced_eos_token_id": 4}, {"of_tomorrow": 1}),
    ],
)
def test_generation_settings_that_are_not_obeyed_are_refused_by_name(whole, setting):
    change(whole, "generation_config.json", num_beams=4, _from_model_config=False, **setting)
    ((name, _),) = setting.items()
    with pytest.raises(UserError, match=rf"={whole} has {name}=.* in its generation settings, which are not obeyed"):
        loaded(whole)
    kept = load_model(HuggingFaceModel(str(whole), "RUN_DIR")).network.generation_config
    assert own_generation(kept) == {"num_beams": 4, **setting}


def test_what_decides_is_named_once_and_what_changes_no_caption_is_not(whole, caplog):
    harmless = {
        "max_new_tokens": 40,
        "do_sample": False,
        "use_cache": True,
        "output_scores": True,
        "suppress_tokens": [],
    }
    change(whole, "generation_config.json", _from_model_config=False, **harmless)
    caplog.set_level(logging.INFO, "captioning")
    loaded(whole)
    assert "decoding=..." not in caplog.text
    change(whole, "generation_config.json", min_new_tokens=3, typical_p=0.5)
    loaded(whole)
    assert "decoding=... decides, not its own min_new_tokens=3, typical_p=0.5" in caplog.text


def test_weights_in_several_files_are_understood(whole, pictures):
    expected = our_captions(whole, pictures, Greedy(LENGTH))
    network = VisionEncoderDecoderModel.from_pretrained(whole)
    (whole / "model.safetensors").unlink()
    network.save_pretrained(whole, max_shard_size="40KB")
    assert len(list(whole.glob("model-*.safetensors"))) > 1
    assert our_captions(whole, pictures, Greedy(LENGTH)) == expected


def test_every_weight_but_an_unused_pooler_must_be_there(whole):
    weights = load_file(whole / "model.safetensors")
    without_pooler = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(without_pooler, whole / "model.safetensors", {"format": "pt"})
    loaded(whole)
    del without_pooler["decoder.transformer.h.1.crossattention.q_attn.weight"]
    save_file(without_pooler, whole / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"does not hold the weights .*h\.1\.crossattention\.q_attn\.weight is missing"):
        loaded(whole)


def test_weights_in_a_pickle_are_read_only_where_that_is_allowed_and_as_data_even_then(whole, tmp_path):
    weights, proof = load_file(whole / "model.safetensors"), tmp_path / "proof"
    torch.save(weights, whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"={whole} has no model\.safetensors.* with allow_pickle=true"):
        loaded(whole)
    assert loaded(whole, allow_pickle=True).vocab_size
    torch.save({**weights, "more": Touches(proof)}, whole / "pytorch_model.bin")
    for allow_pickle in (False, True):
        with pytest.raises(UserError, match=f"checkpoint={whole} h.*pickle"):
            loaded(whole, allow_pickle)
    assert not proof.exists()


def test_all_files_of_weights_are_known_again_and_shards_of_a_pickle_mention_the_flag(whole):
    model = HuggingFaceModel(str(whole), "checkpoint")
    assert stamp_of(model)["file"] == "model.safetensors"
    weights = load_file(whole / "model.safetensors")
    names = sorted(weights)
    shards = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(shards.values()):
        torch.save({name: weights[name] for name in names if shards[name] == shard}, whole / shard)
    (whole / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (whole / "model.safetensors").unlink()
    before = stamp_of(model)
    assert [stamp["file"] for stamp in before] == [*sorted(set(shards.values())), "pytorch_model.bin.index.json"]
    (whole / "pytorch_model-00002-of-00002.bin").touch()
    assert stamp_of(model) != before
    with pytest.raises(UserError, match=rf"={whole} has no model\.safetensors.* with allow_pickle=true"):
        loaded(whole)
    assert loaded(whole, allow_pickle=True).vocab_size


def test_code_that_comes_with_a_model_is_not_run(whole, tmp_path):
    proof = tmp_path / "proof"
    code = f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"
    (whole / "code.py").write_text(f"{code}from transformers import VisionEncoderDecoderModel as Model\n")
    config = json.loads((whole / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Model", "AutoModel": "code.Model", "AutoImageProcessor": "code.Model"}
    (whole / "config.json").write_text(json.dumps(config))
    assert loaded(whole, allow_pickle=True).vocab_size
    assert not proof.exists()


def test_half_a_file_of_weights_is_refused(whole):
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"checkpoint={whole} is a folder without a readable model\.safetensors"):
        loaded(whole)


def test_without_a_processor_it_is_refused(whole):
    (whole / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=rf"{whole} is a folder without a readable preprocessor_config\.json"):
        loaded(whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eos_token_id": [0, 3]}, r"has eos_token_id=\[0, 3\]; captions have one beginning and one end"),
        ({"eos_token_id": None}, r"names no eos_token_id in its generation_config\.json or config\.json"),
        ({"decoder_start_token_id": None, "bos_token_id": None}, r"names no decoder_start_token_id in its"),
    ],
)
def test_a_model_without_one_beginning_and_one_end_is_refused(whole, settings, said):
    change(whole, "generation_config.json", _from_model_config=False, **settings)
    with pytest.raises(UserError, match=said):
        loaded(whole)


def test_one_end_in_a_list_is_understood(whole):
    change(whole, "generation_config.json", _from_model_config=False, eos_token_id=[0, 0])
    assert loaded(whole).network.decoder.config.eos_token_id == 0


def test_a_captioner_comes_back_with_its_logits_and_its_format(tmp_path):
    ours = small_captioner(50, encoder_width=48, pixel_mean=0.3)
    save_model(ours, tmp_path, {"max_new_tokens": 7})
    again = loaded(tmp_path)
    theirs, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.generation_config.max_new_tokens == 7
    assert again.picture_format == ours.picture_format
    pictures, tokens = random_pictures(3), torch.tensor([[0, 4, 7]] * 3)
    with torch.no_grad():
        expected = ours.network(pixel_values=pictures.float() / 127.5 - 0.6, decoder_input_ids=tokens).logits
        for network in (again.network, theirs.eval()):
            logits = network(pixel_values=pictures.float() / 127.5 - 0.6, decoder_input_ids=tokens).logits
            torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


def test_a_processor_that_crops_comes_back(tmp_path, whole):
    cropping = CLIPImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    cropping.save_pretrained(whole)
    ours = loaded(whole)
    assert (ours.picture_format.size, ours.picture_format.resize_shortest) == ((16, 16), 18)
    save_model(ours, tmp_path / "again", {})
    assert loaded(tmp_path / "again").picture_format == ours.picture_format


def test_a_processor_with_another_scale_gives_the_same_numbers(whole):
    change(
        whole,
        "preprocessor_config.json",
        rescale_factor=1 / 127.5,
        image_mean=[1, 0.8, 0.6],
        image_std=[1, 2, 3],
    )
    found = loaded(whole).picture_format
    assert found.mean == pytest.approx((0.5, 0.4, 0.3)) and found.std == pytest.approx((0.5, 1, 1.5))
    change(whole, "preprocessor_config.json", do_rescale=False, image_mean=[127.5] * 3, image_std=[255] * 3)
    assert loaded(whole).picture_format.mean == pytest.approx((0.5, 0.5, 0.5))
