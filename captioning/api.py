"""The captioner from Python: `Captioner` describes pictures that a program holds, `train` and `predict` run commands.

All three take what the command line takes, with the same defaults, checks and sentences; they live in `captioning`
itself: `from captioning import Captioner, predict, train`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image

from captioning.cli import built, check_overrides, configured, prepared_arguments, quoted
from captioning.config import PredictConfig, TrainConfig
from captioning.data.batch import Row, pack
from captioning.data.images import UnreadablePicture, fetch_picture, picture_in_memory, read_picture
from captioning.data.transforms import EvaluationTransform
from captioning.machine import Machine, for_prediction
from captioning.model.build import load_captioner
from captioning.model.generation import Decoding, decoding_of
from captioning.prediction.caption import Model, Work, autocast, caption, placed
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.plan import Prediction, run_dir_of
from captioning.prediction.run import knows_no_photographs
from captioning.prediction.run import predict as run_prediction
from captioning.prediction.strips import checked_layers, draw_heat_maps, seen_part
from captioning.training.run import Run
from captioning.training.run import train as run_training
from captioning.weights import find_weights

log = logging.getLogger(__name__)

Picture = Image.Image | np.ndarray | str | Path  # a URL is a str that begins with http:// or https://


class Captioner:
    """A model that describes pictures.

    A picture is a PIL image, an array (H, W, 3) uint8 in RGB or (H, W) grey, a file's path, or a URL of at most
    `images.MAX_FETCHED_BYTES`.

    Args:
        model: in eval mode, see `from_pretrained`.
        precision: what is computed in: 32, bf16, 16 or int8.
    """

    def __init__(self, model: Model, precision: str | int = 32):
        self._model, self._precision = model, precision
        self._transform = EvaluationTransform(model.captioner.picture_format)

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, **keys: Any) -> Self:
        """The captioner of a run folder, a checkpoint file, or a VisionEncoderDecoderModel's folder or hub name.

        Args:
            checkpoint: where its weights are.
            keys: `device`, `precision` and `allow_pickle` of `predict.py`.

        Raises:
            UserError: if there is none, or it can't compute so on this machine.
        """
        config = configured(PredictConfig, *_overrides(checkpoint=checkpoint, input="-", **keys))
        config, (device, *_) = for_prediction(config)
        autocast(device, config.precision)  # refuses what this device can't compute in
        weights = find_weights(config.checkpoint, allow_pickle=config.allow_pickle)
        captioner, tokenizer = load_captioner(weights)
        if words := knows_no_photographs(weights, config.data):
            log.warning("%s", words)
        return cls(Model(placed(captioner, device, config.precision), tokenizer, device), config.precision)

    @overload
    def caption(self, pictures: Picture, decoding: str = ..., **keys: Any) -> CaptionedPicture: ...
    @overload
    def caption(self, pictures: Sequence[Picture], decoding: str = ..., **keys: Any) -> list[CaptionedPicture]: ...

    def caption(
        self, pictures: Picture | Sequence[Picture], decoding: str = "greedy", **keys: Any
    ) -> CaptionedPicture | list[CaptionedPicture]:
        """Describe one picture, or each of a list in its order; captions equal those of `predict.py`.

        Args:
            pictures: one, or a list of any kinds.
            decoding: greedy, sampling or beam.
            keys: of that decoding, such as `num_beams=5`, and `batch_size` and `seed`, as in `predict.py`.

        Raises:
            UnreadablePicture: if the one picture can't be read. Of a list, its entry has `error` instead of a caption.
            UserError: for a key or a value that this decoding doesn't have.
        """
        if isinstance(pictures, Picture):
            one = self.caption([pictures], decoding, **keys)[0]
            if one.error is not None:
                raise UnreadablePicture(f"{one.path}: {one.error}")
            return one
        if not pictures:
            return []
        return self._captioned(pictures, decoding, **keys)

    def score(self, picture: Picture, captions: Sequence[str]) -> list[float]:
        """How likely the model finds each of these captions of a picture: mean log-probability per token in nats.

        EOS counts as a token, as in `CaptionedPicture.log_probability`; exp(-score) is the perplexity.

        Raises:
            UnreadablePicture: if the picture can't be read.
            ValueError: for a caption that is longer than the decoder has positions.
        """
        captioner, device = self._model.captioner, self._model.device
        scores = []
        with autocast(device, self._precision), torch.inference_mode():
            attended = captioner.encode(self._pixels(_read(picture))[None])
            for text, token_ids in zip(captions, self._model.tokenizer.encode(list(captions)), strict=True):
                if len(token_ids) > captioner.max_positions + 1:
                    raise ValueError(
                        f"the caption {text[:40]!r}... has {len(token_ids)} tokens, and this model takes "
                        f"{captioner.max_positions + 1}"
                    )
                batch = pack([Row(0, None, [np.asarray(token_ids)])]).to(device)
                loss = captioner.loss_from(attended, batch)
                scores.append(-loss.nats.item() / int(loss.tokens))
        return scores

    def heat_map(
        self, picture: Picture, caption: str | None = None, layers: int | list[int] | None = None
    ) -> Image.Image:
        """A strip of panels: where the model looks for each word of a caption, its own greedy one if none is given.

        Args:
            picture: any kind.
            caption: what is looked for.
            layers: of the decoder, counted from 0; None averages all.

        Raises:
            UnreadablePicture: if the picture can't be read.
            UserError: if the decoder has no such layer.
        """
        captioner, tokenizer = self._model.captioner, self._model.tokenizer
        image, chosen = _read(picture), checked_layers(layers, captioner)
        if caption is None:
            strip = self._captioned([image], heat_maps=(0,), layers=chosen)[0].heat_map
            assert strip is not None
            return strip
        token_ids = tokenizer.encode([caption])[0][1:-1]
        seen = seen_part(image, captioner.picture_format)
        with autocast(self._model.device, self._precision), torch.inference_mode():
            return draw_heat_maps(captioner, tokenizer, self._pixels(image), token_ids, seen=seen, layers=chosen)

    def _captioned(
        self,
        pictures: Sequence[Picture],
        decoding: str = "greedy",
        heat_maps: Sequence[int] = (),
        layers: Sequence[int] | None = None,
        **keys: Any,
    ) -> list[CaptionedPicture]:
        config, chosen = _decoding(decoding, tuple(sorted(keys.items())))
        chosen = decoding_of(self._model.captioner, self._model.tokenizer, chosen)
        names = [_name_of(picture, place) for place, picture in enumerate(pictures)]
        inputs = InputPictures([Path(name) for name in names], drawn=lambda place: _read(pictures[place]))
        options: dict[str, Any] = {"num_workers": 0, "heat_maps": heat_maps, "layers": layers}
        usual = Machine(self._model.device.type).captioned_pictures()
        batch_size = usual if config.batch_size == "auto" else config.batch_size
        work = Work(inputs, chosen, self._precision, batch_size, **options)
        return [
            replace(record, path=names[record.place])  # a URL is no Path
            for batch in caption(work, self._model)
            for record in batch.pictures
        ]

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """(3, H, W) uint8 on the device, as the encoder takes pictures."""
        return self._transform(image).to(self._model.device)


def train(*overrides: str, **keys: Any) -> Run:
    """`train.py` with these overrides: `train("data=flickr8k", "model=tiny")`, or as keywords: `train(data="shapes")`.

    Raises:
        UserError: where the command would end with a sentence.
    """
    arguments = prepared_arguments([*overrides, *_overrides(**keys)], "train")
    config = configured(TrainConfig, *arguments)
    return run_training(config, arguments)


def predict(*overrides: str, **keys: Any) -> Prediction:
    """`predict.py` with these overrides: `predict(checkpoint="runs/mine", input="photos", output="captions.jsonl")`.

    Raises:
        UserError: where the command would end with a sentence.
    """
    arguments = prepared_arguments([*overrides, *_overrides(**keys)], "predict")
    config = configured(PredictConfig, *arguments)
    return run_prediction(configured(PredictConfig, *arguments, run_dir=config.run_dir or run_dir_of(config.output)))


def _overrides(**keys: Any) -> list[str]:
    """Keywords as overrides; `**{"data.root": path}` gives a key with a dot."""
    return [quoted(f"{key}={_written(value)}") for key, value in keys.items()]


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache
def _decoding(name: str, keys: tuple[tuple[str, Any], ...]) -> tuple[PredictConfig, Decoding]:
    """What these words mean in `predict.py`."""
    own = {f"decoding.{key}" if key not in ("batch_size", "seed") else key: value for key, value in keys}
    overrides = _overrides(checkpoint="-", input="-", decoding=name, **own)
    check_overrides(overrides, "predict")
    config = configured(PredictConfig, *overrides)
    return config, built(config.decoding.plain(), "decoding")


def _name_of(picture: Picture, place: int) -> str:
    if isinstance(picture, str | Path):
        return str(picture)
    return getattr(picture, "filename", "") or f"picture {place}"


def _read(picture: Picture) -> Image.Image:
    """Upright RGB of any kind of picture."""
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return fetch_picture(picture)
    if isinstance(picture, str | Path):
        return read_picture(picture)
    return picture_in_memory(picture)
