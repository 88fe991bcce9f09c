"""The same few validation pictures, captioned anew after each validation, for people to look at."""

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Decoding, generate
from captioning.training.module import CaptioningModule


class SampleTable(L.Callback):
    """After each validation, logs a W&B table `val/samples`: pictures, their captions and the model's.

    And for the first few, as `val/heat_maps`, where the model looked as it chose each word.

    Args:
        pixel_values: (B, 3, H, W) uint8, the same pictures each time.
        captions: the references of each.
        decoding: how the model's are generated.
        decode: token ids to text.
        draw: a strip of heat maps; called with a captioner and the keywords `pixel_values` (3, H, W) uint8,
            `token_ids`, `ended` and `panel` (pixels). None draws none.
    """

    HEAT_MAPS = 4  # pictures; each takes, with a small model, about 12 milliseconds
    PANEL = 112  # pixels, the longer side of a heat map

    COLUMNS: ClassVar = ["image_id", "picture", "captions", "generated", "log_probability"]

    def __init__(
        self,
        pixel_values: torch.Tensor,
        image_ids: list,
        captions: list[list[str]],
        decoding: Decoding,
        decode: Any,
        draw: Callable[..., Any] | None = None,
    ):
        self._pixel_values, self._image_ids, self._captions = pixel_values, image_ids, captions
        self._decoding, self._decode, self._draw = decoding, decode, draw

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        assert isinstance(pl_module, CaptioningModule)
        with trainer.precision_plugin.forward_context():
            generated = generate(pl_module.captioner, self._pixel_values.to(pl_module.device), self._decoding)
        rows = zip(self._pixel_values, self._image_ids, self._captions, generated, strict=True)
        data = [
            [
                str(image_id),
                wandb.Image(pixels.permute(1, 2, 0).numpy()),
                "\n".join(references),
                self._decode(caption.token_ids),
                caption.log_probability,
            ]
            for pixels, image_id, references, caption in rows
        ]
        for logger in loggers:
            logger.log_table("val/samples", columns=self.COLUMNS, data=data, step=trainer.global_step)
        if self._draw is not None:
            self._log_heat_maps(loggers, pl_module.captioner, generated, trainer.global_step)

    def _log_heat_maps(
        self, loggers: list[WandbLogger], captioner: ImageCaptioner, generated: list[Caption], step: int
    ) -> None:
        assert self._draw is not None
        strips, texts = [], []
        for pixels, caption in list(zip(self._pixel_values, generated, strict=True))[: self.HEAT_MAPS]:
            ended = len(caption.token_ids) < self._decoding.max_new_tokens
            strips.append(
                self._draw(captioner, pixel_values=pixels, token_ids=caption.token_ids, ended=ended, panel=self.PANEL)
            )
            texts.append(self._decode(caption.token_ids))
        for logger in loggers:
            logger.log_image("val/heat_maps", strips, step=step, caption=texts)
