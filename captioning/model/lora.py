"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) by peft: small matrices beside the frozen ones of the halves.

While training, the linear layers of the halves that `model.lora.targets` names are peft's, each around its own frozen
one. Cross-attention is new, so it trains whole. Whoever loads a checkpoint to caption gets plain layers again, the
adapters added to their weights. GPT-2's head shares its weights with the embedding and has no adapter: added to one of
the two it would change both, or untie them (peft's issues 2018 and 2777).
"""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner, group_of, is_adapter
from captioning.model.cpu import use_fast_layers

NEW_MODULES = ["crossattention", "ln_cross_attn", "enc_to_dec_proj"]  # trained whole
ADAPTER = "default"  # peft's name of the only one


def with_adapters(captioner: ImageCaptioner, lora: Mapping[str, Any]) -> ImageCaptioner:
    """The same captioner with adapters that change nothing yet; its numbers are the same until they are trained.

    Args:
        captioner: without adapters.
        lora: the keys of `model.lora`.

    Raises:
        UserError: peft is not installed.
    """
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Conv1D holds its weight the other way round, which is seen to
        inject_adapter_in_model(_config(captioner, lora), captioner.network)
    use_fast_layers(captioner.network)
    captioner.lora = dict(lora)
    return captioner


def require_peft() -> None:
    """Raise UserError where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("model.lora needs peft, which is not installed: pip install 'captioning[lora]'")


def merged(captioner: ImageCaptioner) -> ImageCaptioner:
    """The same captioner in plain layers, whose weights have the adapters added to them."""
    for name, layer in list(captioner.network.named_modules()):
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            owner, _, child = name.rpartition(".")
            setattr(captioner.network.get_submodule(owner), child, layer.get_base_layer())
    captioner.lora = None
    return captioner


def save_adapter(captioner: ImageCaptioner, folder: Path) -> None:
    """Write adapters and cross-attention into a folder, which `peft.PeftModel.from_pretrained` adds to the halves.

    For it they are joined as a `VisionEncoderDecoderModel`, GPT-2 with `add_cross_attention=True`.
    """
    assert captioner.lora is not None
    config = _config(captioner, captioner.lora)
    weights = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight.detach().contiguous()
        for name, weight in captioner.network.state_dict().items()
        if is_adapter(name) or group_of(name) == "cross_attention"
    }
    there = [new for new in NEW_MODULES if any(f".{new}." in name for name in weights)]
    config.modules_to_save, config.inference_mode = there, True
    config.save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(file.stat().st_mode | (folder / "adapter_config.json").stat().st_mode)  # it is its owner's alone


def _config(captioner: ImageCaptioner, lora: Mapping[str, Any]) -> Any:
    require_peft()
    from peft import LoraConfig

    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"] or 2 * lora["rank"],
        lora_dropout=lora["dropout"],
        target_modules=_targets(captioner, lora["targets"]),
        bias="none",
    )


def _targets(captioner: ImageCaptioner, groups: list[str]) -> list[str]:
    """The names of the linear layers of these halves' blocks, as they are called without adapters."""
    names = [
        name.removesuffix(".base_layer")
        for name, module in captioner.network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_adapter(name) and group_of(name) in groups
    ]
    return [name for name in names if not name.endswith("lm_head")]
