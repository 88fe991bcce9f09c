"""Graphs of every family of encoders; whole exports are in tests/test_export.py."""

import json

import pytest
from transformers import CONFIG_MAPPING, GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

from captioning.errors import UserError
from captioning.export import onnx
from captioning.export.int8 import write_int8
from captioning.model.encoders import ENCODERS

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SMALL_OF_STAGES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32}
GPT2 = GPT2Config(n_embd=48, n_layer=1, n_head=2, vocab_size=100, n_positions=16, add_cross_attention=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_of_encoders_is_exported(name, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    family = ENCODERS[name]
    config = CONFIG_MAPPING[name](**(SMALL_OF_STAGES if name == "swin" else SMALL))
    config.update(dict(family.config))
    network = VisionEncoderDecoderModel(encoder=family.model(config), decoder=GPT2LMHeadModel(GPT2))
    network.save_pretrained(tmp_path)
    assert onnx.write_onnx(tmp_path, tmp_path / "onnx", 18) < 1e-5


@pytest.mark.slow
def test_weights_of_two_gigabytes_lie_beside_the_graph_where_transformers_js_looks(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(**SMALL)), decoder=GPT2LMHeadModel(GPT2))
    decoder, encoder = (sum(w.numel() * 4 for w in half.parameters()) for half in (network.decoder, network.encoder))
    monkeypatch.setattr(onnx, "LARGEST", (decoder + encoder) // 2)  # between the two
    network.save_pretrained(tmp_path)
    onnx.write_onnx(tmp_path, tmp_path / "onnx", 18)  # whose logits are those of torch
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        *("encoder_model.onnx", "decoder_model_merged.onnx", "decoder_model_merged.onnx_data")
    }
    config = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert config == {"use_external_data_format": {"decoder_model_merged.onnx": True}}
    write_int8(tmp_path / "onnx", {})
    onnx.OnnxCaptioner(tmp_path / "onnx", onnx.QUANTIZED)


def test_an_opset_too_new_for_onnx_runtime_is_one_sentence(tmp_path):
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"])], "newer", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 99)])
    (tmp_path / "encoder_model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        UserError, match=r"^ONNX Runtime \S+ doesn't take encoder_model\.onnx: .*; choose an older onnx_op"
    ):
        onnx.OnnxCaptioner(tmp_path)
