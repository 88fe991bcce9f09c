"""The encoder cache's side of training: the frozen encoder, handed to the data before the first batch is made."""

import lightning as L
import torch
from torch import Tensor

from captioning.batch import FrozenEncoder
from captioning.training.module import CaptioningModule


class EncodeOnce(L.Callback):
    """Has the data module encode every picture with the encoder that the run will keep, and no step run it again.

    At the start of a fit the weights are on their device and a resumed run's are loaded; loaders are made later.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        captioner, precision = pl_module.captioner, trainer.precision_plugin

        @torch.inference_mode()
        def encode(pixel_values: Tensor) -> Tensor:
            with precision.forward_context():
                return captioner.encoder_states(pixel_values.to(pl_module.device))

        captioner.network.encoder.eval()  # as it is in every step of the run
        key = f"{captioner.encoder_fingerprint()} {precision.precision}"
        trainer.datamodule.encode(FrozenEncoder(key, captioner.encoder_shape(), encode))  # type: ignore[attr-defined]
