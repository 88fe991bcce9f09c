"""What lies in a run's folder, and the model card that says it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning.config import DRAWN, data_set_of
from captioning.metrics import METRICS, caption_scores
from captioning.model.encoders import ENCODERS
from captioning.runs import LAST, logged_rows, settings_in
from captioning.weights import HuggingFaceModel

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


def run_of(weights: Path | HuggingFaceModel) -> Path | None:
    """The run folder that weights lie in, where they lie in one."""
    if isinstance(weights, HuggingFaceModel):
        return None
    run = weights.resolve().parents[1]
    return run if (run / ".hydra").is_dir() or (run / "results.md").is_file() else None


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


OF_HALVES = """decoder = GPT2LMHeadModel.from_pretrained("{}", add_cross_attention=True)
base = VisionEncoderDecoderModel(encoder=AutoModel.from_pretrained("{}"), decoder=decoder)"""
OF_A_MODEL = """base = VisionEncoderDecoderModel.from_pretrained("{}")"""


def adapter_card(record: RunRecord, name: str) -> str:
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
