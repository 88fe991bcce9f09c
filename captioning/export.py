"""A run's captioner as a folder for transformers: `python -m captioning.export RUN_DIR FOLDER [--push OWNER/NAME]`.

The folder holds weights, configuration, image processor, tokenizer and generation settings, and a model card that says
what lies in the run's folder: data, recipe and scores. With `--adapter` it holds what a run with `model.lora` has
trained, for peft; without it the adapters are merged into the weights.
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from captioning.cli import check_overrides, configured, in_full, one_sentence_errors, quiet_libraries, quoted
from captioning.config import DRAWN, ExportConfig, data_set_of
from captioning.errors import UserError, writing
from captioning.files import atomic_folder, readable, write_atomically
from captioning.hub import pushed, require_push
from captioning.metrics import METRICS, caption_scores
from captioning.model.encoders import ENCODERS
from captioning.runs import LAST, logged_rows, settings_in
from captioning.shapes.judge import is_true
from captioning.shapes.scenes import draw, scene_of, split_indices
from captioning.weights import HuggingFaceModel, find_weights

log = logging.getLogger(__name__)

UNRULED = {"repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_p": 0}  # transformers' defaults
GREEDY = Path(__file__).parents[1] / "conf" / "decoding" / "greedy.yaml"  # for weights without a run

# What is shown of a run's configuration, where it has it: label, keys.
RECIPE = {
    "data": ("data.fraction", "data.layout", "data.train_pictures", "data.overfit_images"),
    "captions": ("data.captions_per_image", "data.max_tokens"),
    "augmentation": ("data.augmentation",),
    "fine-tuned from": ("model.init_from",),
    "pretrained halves": ("model.encoder", "model.decoder"),
    "adapters": ("model.lora.rank", "model.lora.alpha", "model.lora.targets"),
    "stage": ("stage.phases", "stage.warmup_steps", "stage.decay"),
    "epochs": ("trainer.max_epochs", "trainer.limit_train_batches"),
    "batch": ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.precision"),
    "learning rates": ("stage.learning_rates",),
    "optimizer": ("optimizer.weight_decay", "optimizer.betas", "optimizer.momentum", "optimizer.update_rms"),
    "seed": ("seed",),
}
SIGNATURE = ("tokenizer", "eos", "cider")  # what scores are not comparable without

USE = """
## Use

With transformers 5:

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

name = "{name}"  # this folder, or its name on the hub
model = VisionEncoderDecoderModel.from_pretrained(name)
processor, tokenizer = AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)
pixel_values = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt").pixel_values
print(tokenizer.batch_decode(model.generate(pixel_values), skip_special_tokens=True)[0].strip())
```

With the project that trained it, from Python:

```python
from captioning import Captioner

print(Captioner.from_pretrained("{name}").caption("photo.jpg", decoding="beam").caption)
```

and on the command line:

```
python predict.py checkpoint={name} input=FOLDER output=captions.jsonl
python train.py model.init_from={name} data=coco stage=full
```
"""


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
    if config.onnx:
        _require_onnx()
    if push is not None:
        require_push(push)

    # These take seconds; a wrong path is answered before.
    from captioning.model.build import load_captioner
    from captioning.model.huggingface import own_generation, save_model

    quiet_libraries()
    captioner, tokenizer = load_captioner(weights)
    record = RunRecord(_run_of(weights))
    network: Any = captioner.network.config
    parameters = sum(weight.numel() for weight in captioner.parameters())
    kinds = network.encoder.model_type, network.decoder.model_type
    # a model of transformers keeps its own
    own: Any = own_generation(captioner.network.generation_config) if isinstance(weights, HuggingFaceModel) else {}
    generation = own or generation_settings(record.config, captioner.max_positions)
    with writing(f"FOLDER={target}", "name another"), atomic_folder(target) as aside:
        save_model(captioner, aside, generation)
        tokenizer.save_pretrained(aside, network.pad_token_id)
        card = model_card(record, push or target.resolve().name, parameters, *kinds)
        if config.onnx:
            judged = (lambda suffix: true_share(aside, captioner, tokenizer, suffix)) if record.is_drawn() else None
            card += _with_onnx(aside, push or target.resolve().name, config.onnx_opset, judged)
        write_atomically(aside / "README.md", card)
    log.info("model: %s", readable(target))
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


ONNX = """
## Use with ONNX Runtime or transformers.js

`onnx/` holds the model as transformers.js 4 expects it:

```js
import {{ pipeline }} from "@huggingface/transformers";

const captioner = await pipeline("image-to-text", "{name}", {{ dtype: "fp32" }});
console.log(await captioner("photo.jpg"));
```

Logits agree with torch's to {close:.0e}. transformers.js 4 has no beam search: whatever `num_beams` says, its captions
are greedy.
"""


def _require_onnx() -> None:
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise UserError(f"onnx=true needs {' and '.join(lacking)}; install them with pip install 'captioning[onnx]'")


def _with_onnx(folder: Path, name: str, opset: int, judged: Callable[[str], float] | None) -> str:
    """Add the graphs to a folder of transformers'; what its card says of them, by the name `name`.

    `judged` gives the share of true captions of the graphs with a suffix, None where nobody can tell.
    """
    from captioning.model.onnx import CLOSE, write_onnx  # see `export`

    worst = write_onnx(folder, folder / "onnx", opset)
    log.info("onnx: logits within %.1e of torch's", worst)
    log.info("onnx: transformers.js has no beam search; its captions are greedy, whatever num_beams says")
    return ONNX.format(name=name, close=CLOSE) + _with_quantized(folder / "onnx", judged)


def _with_quantized(graphs: Path, judged: Callable[[str], float] | None) -> str:
    """Add the graphs in int8, where as many captions stay true; what the card says of them."""
    from captioning.model.onnx import QUANTIZED, write_quantized

    if judged is None:
        log.info("onnx: no graphs in int8 (q8): of drawn shapes alone is it known here whether captions stay true")
        return ""
    write_quantized(graphs)
    before, after = judged(""), judged(QUANTIZED)
    share = f"{after:.1%} of captions of {JUDGED} held-out drawn pictures are true, {before:.1%} in float32"
    if after < before - MAY_LOSE:
        for file in graphs.glob(f"*{QUANTIZED}.onnx"):
            file.unlink()
        log.info("onnx: no graphs in int8 (q8), with which %s", share)
        return ""
    log.info("onnx: in int8 (q8) %s", share)
    return f'\nIn int8 (`dtype: "q8"`), {share}.\n'


JUDGED = 500  # drawn pictures that no run is trained on
MAY_LOSE = 0.01  # of all captions, by int8


def true_share(folder: Path, captioner: Any, tokenizer: Any, suffix: str) -> float:
    """The share of true captions, 0..1, that a folder's graphs with this suffix give held-out drawn pictures."""
    from captioning.model.onnx import OnnxCaptioner  # see `export`

    (side, _), seed = captioner.picture_format.size, 42
    scenes = [scene_of(seed, index) for index in split_indices("test", JUDGED)]
    graphs, true = OnnxCaptioner(folder / "onnx", suffix), 0
    bos, eos = captioner.end_of_text
    mean, std = (np.array(of, np.float32) for of in (captioner.picture_format.mean, captioner.picture_format.std))
    for start in range(0, JUDGED, 50):
        some = scenes[start : start + 50]
        levels = np.stack([draw(scene, side) for scene in some])  # (B, H, W, 3) uint8
        pixels = ((levels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        ids = graphs.greedy(pixels, bos, eos, captioner.max_positions - 1)
        true += sum(is_true(tokenizer.decode(row), scene) for row, scene in zip(ids, some, strict=True))
    return true / JUDGED


OF_HALVES = """decoder = GPT2LMHeadModel.from_pretrained("{}", add_cross_attention=True)
base = VisionEncoderDecoderModel(encoder=AutoModel.from_pretrained("{}"), decoder=decoder)"""
OF_A_MODEL = """base = VisionEncoderDecoderModel.from_pretrained("{}")"""


def adapter_card(record: "RunRecord", name: str) -> str:
    """`README.md` of an adapter: how peft and transformers put it beside what it was trained on."""
    names = record.halves()
    fine_tuned = bool(record.config and record.config.model.init_from)
    if fine_tuned:
        base = OF_A_MODEL.format(*(names or ["the model that training began with"]))
    else:
        encoder, decoder = names if len(names) == 2 else ("the encoder", "the decoder")
        base = OF_HALVES.format(decoder, encoder)
    return (
        f"# {name}\n\nAdapters and cross-attention of a captioner, trained beside frozen weights.\n\n```python\n"
        "from peft import PeftModel\nfrom transformers import AutoModel, GPT2LMHeadModel, VisionEncoderDecoderModel\n\n"
        f'{base}\nmodel = PeftModel.from_pretrained(base, "{name}")  # merge_and_unload() gives plain layers\n```\n'
    )


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
    record = RunRecord(_run_of(weights))
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


def _run_of(weights: Path | HuggingFaceModel) -> Path | None:
    if isinstance(weights, HuggingFaceModel):
        return None
    run = weights.resolve().parents[1]
    return run if (run / ".hydra").is_dir() or (run / "results.md").is_file() else None


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"FOLDER={target} is a file; name a folder to make")
    if not overwrite:
        raise UserError(f"FOLDER={target} exists already; replace it with --overwrite, or name another")
    if any(target.iterdir()) and not any((target / f"{name}.json").is_file() for name in ("config", "adapter_config")):
        raise UserError(f"FOLDER={target} holds no exported model, so --overwrite does not replace it; name another")


@dataclass
class RunRecord:
    """What is known of how weights came about; a `.ckpt` file away from its run has no more than its name."""

    folder: Path | None

    @cached_property
    def config(self) -> DictConfig | None:
        """The composed configuration that the run was started or last resumed with."""
        file = self.folder / ".hydra" / "config.yaml" if self.folder else None
        return OmegaConf.load(file) if file and file.is_file() else None  # type: ignore[return-value]

    def recipe(self) -> dict[str, str]:
        """`RECIPE`'s labels with what the configuration says."""
        recipe: dict[str, str] = {}
        for label, keys in RECIPE.items() if self.config else ():
            if label == "pretrained halves" and self._fine_tuned:
                continue  # which then were not used
            if label == "adapters" and not self._selected("model.lora.rank"):
                continue
            found = {key.rpartition(".")[2]: self._selected(key) for key in keys}
            said = [_said(name, value) for name, value in found.items() if value is not None]
            if label == "data":
                said.insert(0, str(self.data_set()))
            if label == "optimizer" and (target := self._selected("optimizer._target_")):
                said.insert(0, target.rpartition(".")[2])
            if said:
                recipe[label] = ", ".join(said)
        return recipe

    def data_set(self) -> str | None:
        """The name of the data set."""
        return data_set_of(self.config.data) if self.config else None

    def is_drawn(self) -> bool:
        """Whether the run was trained on drawn shapes, of which captions can be judged."""
        return self.data_set() == DRAWN

    def trained(self) -> set[str]:
        """The groups that the run's stage trained, where they are known."""
        return {group for phase in self._selected("stage.phases") or () for group in phase["train"]}

    def halves(self) -> list[str]:
        """The hub names of what the run started from."""
        keys = ("model.init_from",) if self._fine_tuned else ("model.encoder", "model.decoder")
        names = [str(name) for key in keys if (name := self._selected(key))]
        return [name for name in names if not Path(name).exists() and name[0] not in "/.~"]

    def scores(self) -> dict[str, float | str]:
        """Scores from the run's `scores.json`, with their split and signature, and perplexities from `metrics.csv`."""
        found: dict[str, float | str] = {}
        logged = logged_rows(self.folder) if self.folder else []
        for metric in METRICS:
            if metric.card and (values := [float(row[metric.name]) for row in logged if row.get(metric.name)]):
                found[metric.card] = metric.best(values)
        contents = json.loads(self._text("scores.json") or "{}")
        found |= {name: contents[name] for name in caption_scores() if isinstance(contents.get(name), int | float)}
        if split := contents.get("settings", {}).get("split"):
            found["scores are of"] = str(split)
        # No more of the settings: they hold paths, and a card is published.
        signature = contents.get("signature", {})
        found |= {name: signature[name] for name in SIGNATURE if isinstance(signature.get(name), str)}
        return found

    def results(self) -> str:
        """The table of losses and perplexities by epoch."""
        return self._text("results.md")

    @property
    def _fine_tuned(self) -> bool:
        return bool(self._selected("model.init_from"))

    def _selected(self, key: str) -> Any:
        """The value of a key of the configuration, None where there is no such thing."""
        value = OmegaConf.select(self.config, key) if self.config else None
        if value == "auto" and self.folder and (self.folder / LAST).is_file():
            value = settings_in(self.folder / LAST).get(key, value)  # what the run made of it
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def _text(self, name: str) -> str:
        """A file of the run's folder; nothing where it has none."""
        file = self.folder / name if self.folder else None
        return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def model_card(record: RunRecord, name: str, parameters: int, encoder: str, decoder: str) -> str:
    """`README.md` of an exported model, with the front matter that the hub reads.

    `encoder` and `decoder` are transformers' names of the two architectures.
    """
    from huggingface_hub import ModelCardData  # here, since it takes a third of a second

    data_set, scores = record.data_set(), record.scores()
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-text",
        language="en",
        tags=["image-captioning", encoder, decoder, "vision-encoder-decoder"],
        datasets=[data_set] if data_set else None,
        base_model=record.halves() or None,
        metrics=[name for name in scores if name in caption_scores()] or None,
    )
    parts = [
        f"---\n{front.to_yaml()}\n---\n",
        f"# {name}\n\nCaptions photographs: a {ENCODERS[encoder].name} encodes the picture and GPT-2 writes the "
        f"caption, with {parameters / 1e6:.1f} million parameters.\n",
    ]
    if data_set == DRAWN:
        parts.append("It was trained on drawn shapes alone: of photographs it knows nothing.\n")
    if recipe := record.recipe():
        parts.append("## Data and recipe\n\n| what | how |\n|---|---|\n" + _rows(recipe))
    if scores:
        parts.append("## Scores\n\n| score | value |\n|---|---:|\n" + _rows(scores))
    if results := record.results():
        parts.append(f"## Training\n\n{results}")
    return "\n".join(parts) + USE.format(name=name)


def _rows(table: dict[str, Any]) -> str:
    shown = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in table.items()}
    return "".join(f"| {name} | {value.replace('|', '/')} |\n" for name, value in shown.items())


def _said(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):  # phases
        return "; ".join(f"from epoch {phase['from_epoch']}: {', '.join(phase['train'])}" for phase in value)
    return f"{name.replace('_', ' ')} {value}"


def main(arguments: list[str] | None = None) -> None:
    """The command; ends with status 1 and one sentence after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m captioning.export", description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder of train.py (its best checkpoint) or a .ckpt file")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub as well")
    parser.add_argument("--adapter", action="store_true", help="only what a run with model.lora has trained, for peft")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="onnx=true; conf/export.yaml has them all")
    given = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with one_sentence_errors():
        if given.adapter and given.push:
            raise UserError("--push uploads a whole model; leave --adapter or --push out")
        if given.adapter:
            if given.settings:
                raise UserError(f"{given.settings[0]} is for a whole model; leave --adapter or it out")
            export_adapter(given.run, given.folder, overwrite=given.overwrite)
        else:
            export(given.run, given.folder, *given.settings, overwrite=given.overwrite, push=given.push)


if __name__ == "__main__":
    main()
