"""The folder that is given away: what transformers loads, and a card; or an adapter for peft."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning.cli import check_overrides, configured, in_full, quiet_libraries, quoted
from captioning.config import UNRULED, ExportConfig
from captioning.data.datasets import require_data
from captioning.errors import UserError, writing
from captioning.export.card import RunRecord, adapter_card, model_card, run_of
from captioning.export.page import opening, planned_page
from captioning.files import atomic_folder, readable, write_atomically
from captioning.hub import pushed, require_push
from captioning.weights import HuggingFaceModel, find_weights

log = logging.getLogger(__name__)

GREEDY = Path(__file__).parents[2] / "conf" / "decoding" / "greedy.yaml"  # for weights without a run


def export(run: str, folder: str, *settings: str, overwrite: bool = False, push: str | None = None) -> Path:
    """Write the folder: weights, configuration, image processor, tokenizer, generation settings and model card.

    Args:
        run: a run folder of `train.py`, whose best checkpoint it is, one `.ckpt` file, or what else `find_weights`
            finds.
        folder: what to make; it appears when it is complete.
        settings: `KEY=VALUE` of `conf/export.yaml`, such as `onnx=true`.
        overwrite: whether to replace a model that lies there.
        push: a name on the hub to upload it to.

    Raises:
        UserError: if there is no such run, the folder exists or cannot be written, or the hub is not available.
    """
    config = export_settings(settings)
    weights = find_weights(run, "RUN_DIR")
    target = Path(folder)
    _check_target(target, overwrite)
    graphs = "page" if config.page else "onnx" if config.onnx else None
    if graphs:
        _require_onnx(graphs)
    page = planned_page(config) if config.page else None
    if config.data is not None:
        require_data(config.data)
    if push is not None:
        require_push(push)

    # These take seconds; a wrong path is answered before.
    from captioning.export.int8 import judge_of, with_int8
    from captioning.export.onnx import with_onnx
    from captioning.model.build import load_captioner
    from captioning.model.huggingface import own_generation, save_model

    quiet_libraries()
    captioner, tokenizer = load_captioner(weights)
    record = RunRecord(run_of(weights))
    network: Any = captioner.network.config
    parameters = sum(weight.numel() for weight in captioner.parameters())
    kinds = network.encoder.model_type, network.decoder.model_type
    # a model of transformers keeps its own
    own: Any = own_generation(captioner.network.generation_config) if isinstance(weights, HuggingFaceModel) else {}
    generation = own or generation_settings(record.config, captioner.max_positions)
    judged = config.has_int8 and config.onnx_int8 == "judged"
    judge = judge_of(config, record, captioner, tokenizer) if judged else None
    if page:
        page.of(captioner, tokenizer, generation, {} if record.config is None else record.config.decoding)
    with writing(f"FOLDER={target}", "name another"), atomic_folder(target) as aside:
        save_model(captioner, aside, generation)
        tokenizer.save_pretrained(aside, network.pad_token_id)
        card = model_card(record, push or target.resolve().name, parameters, *kinds)
        if graphs:
            card += with_onnx(aside, push or target.resolve().name, config.onnx_opset)
            if judge or (config.has_int8 and not judged):
                card += with_int8(aside / "onnx", judge)
        write_atomically(aside / "README.md", card)
        if page:
            page.write(aside, target.resolve().name)
    log.info("model: %s", readable(target))
    if page:
        log.info("a page that captions in the browser: %s", opening(target))
    if push is not None:
        log.info("on the hub: %s", pushed(target, push))
    return target


def export_settings(settings: Sequence[str]) -> ExportConfig:
    """The keys of `conf/export.yaml` with these `KEY=VALUE`.

    Raises:
        UserError: for a key that is not there, or a value that cannot be meant.
    """
    said = in_full([quoted(setting) for setting in settings], "export")
    check_overrides(said, "export")
    return configured(ExportConfig, *said)


def _require_onnx(key: str) -> None:
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise UserError(f"{key}=true needs {' and '.join(lacking)}; install them with pip install 'captioning[onnx]'")


def export_adapter(run: str, folder: str, *, overwrite: bool = False) -> Path:
    """Write what a run with `model.lora` has trained, as a folder that peft adds to the two halves.

    Raises:
        UserError: if the run has no adapters or has trained a half whole, or the folder exists or cannot be written.
    """
    weights = find_weights(run, "RUN_DIR")
    target = Path(folder)
    _check_target(target, overwrite)

    from captioning.model.build import load_captioner  # see `export`
    from captioning.model.lora import save_adapter

    quiet_libraries()
    captioner, _ = load_captioner(weights, merge=False)
    if captioner.lora is None:
        raise UserError(f"RUN_DIR={run} has no adapters: it was trained without model.lora; leave --adapter out")
    record = RunRecord(run_of(weights))
    if whole := sorted(record.trained().difference({"cross_attention", *captioner.lora["targets"]})):
        raise UserError(
            f"RUN_DIR={run} has trained the whole {whole[0]} beside its adapters, which no adapter holds; leave "
            "--adapter out, and all of the model is written"
        )
    with writing(f"FOLDER={target}", "name another"), atomic_folder(target) as aside:
        save_adapter(captioner, aside)
        write_atomically(aside / "README.md", adapter_card(record, target.resolve().name))
    log.info("adapter: %s", readable(target))
    return target


def generation_settings(config: DictConfig | None, max_positions: int) -> dict[str, Any]:
    """The run's `decoding` in the words of transformers' `GenerationConfig`, which are ours but for a few.

    >>> sampling = {"_target_": "generation.Sampling", "max_new_tokens": 9, "top_k": None, "seed": 3}
    >>> generation_settings(OmegaConf.create({"decoding": sampling}), max_positions=8)
    {'do_sample': True, 'max_new_tokens': 7, 'top_k': 0}
    """
    decoding = OmegaConf.load(GREEDY) if config is None else config.decoding
    settings: Any = OmegaConf.to_container(decoding, resolve=True)
    # what is said in words or token ids has no place there that predict.py would read again
    dropped = ("seed", "n_best", "defaults", "banned_words", "eos_token_ids", "prefix")
    if of_run := [key for key in dropped[3:] if settings.get(key)]:
        log.warning("the folder's generation settings have no decoding.%s; say it again there", of_run[0])
    at_rest = {k for k, v in UNRULED.items() if settings.get(k, v) == v}
    settings = {k: v for k, v in settings.items() if k not in dropped and k not in at_rest}
    settings["max_new_tokens"] = min(settings["max_new_tokens"], max_positions - 1)  # BOS takes one
    if "top_k" in settings:
        settings["top_k"] = settings["top_k"] or 0  # which keeps all
    return {"do_sample": settings.pop("_target_").endswith(".Sampling"), **settings}


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"FOLDER={target} is a file; name a folder to make")
    if not overwrite:
        raise UserError(f"FOLDER={target} exists already; replace it with --overwrite, or name another")
    if any(target.iterdir()) and not any((target / f"{name}.json").is_file() for name in ("config", "adapter_config")):
        raise UserError(f"FOLDER={target} holds no exported model, so --overwrite does not replace it; name another")
