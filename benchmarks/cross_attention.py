"""Which of the encoder's layers GPT-2 looks at: all blocks at the last one, or block i at layer i.

python benchmarks/cross_attention.py [--steps N] [--seeds N ...] -- OVERRIDE ...

The overrides are those of `python train.py`; what they compose is trained on one thread for N steps of each way. A step
of one costs what a step of another does, within a hundredth or two: CPU seconds are printed beside the perplexities.

`layerwise` is a model of a user's own: `python train.py model._target_=cross_attention.layerwise +model.normed=true`.
"""

import argparse
import logging
import sys
import tempfile
import time
from math import exp, log
from statistics import mean, stdev
from typing import Any

import torch
from measuring import setting, table
from torch import Tensor, nn

from captioning.cli import configured
from captioning.config import TinyModelConfig, TrainConfig
from captioning.model.build import Vocabulary, from_scratch
from captioning.model.captioner import ImageCaptioner
from captioning.training.run import train

OWN = "model._target_=cross_attention.layerwise"
WAYS = {
    "the last layer": [],
    "block i at layer i, normed": [OWN, "+model.normed=true"],
    "block i at layer i, raw": [OWN, "+model.normed=false"],
}
ONLY_TRAINING = ("logger=csv", "scores=0", "sample_pictures=0", "trainer.num_sanity_val_steps=0", "data.num_workers=0")


class LayerwiseCaptioner(ImageCaptioner):
    """Block i of the decoder attends to a layer of its own of the encoder, the last to the last.

    Between the halves the layers' states lie side by side, (B, P, layers * width), and each block takes its part. So
    that nothing else has to know of it: rows are repeated and chosen as they are of one layer.
    """

    normed: bool  # whether each layer's states go through the encoder's last norm, as the last layer's do

    def encoder_states(self, pixel_values: Tensor) -> Tensor:
        """(B, P, layers * encoder width)."""
        encoder: Any = self.network.encoder
        found: dict[int, Tensor] = {}
        chosen = layers_seen(len(encoder.layers), len(self.network.decoder.transformer.h))
        hooks = [
            encoder.layers[i].register_forward_hook(lambda _, __, output, i=i: found.update({i: output}))
            for i in set(chosen)
        ]
        last = super().encoder_states(pixel_values)
        for hook in hooks:
            hook.remove()
        states = [encoder.layernorm(found[i]) if self.normed else found[i] for i in chosen[:-1]]
        return torch.cat([*states, last], -1)

    def project(self, encoder_states: Tensor) -> Tensor:
        """Each layer's states at the decoder's width."""
        layers = encoder_states.chunk(len(self.network.decoder.transformer.h), -1)
        return torch.cat([ImageCaptioner.project(self, states) for states in layers], -1)


def layers_seen(encoder_layers: int, decoder_layers: int) -> list[int]:
    """Of the encoder, counted from 0: that of each block of the decoder."""
    return [round((i + 1) * encoder_layers / decoder_layers) - 1 for i in range(decoder_layers)]


def layerwise(
    *, normed: bool, vocab_size: int, bos_token_id: int, eos_token_id: int, **keys: Any
) -> LayerwiseCaptioner:
    """`model=tiny`, layer by layer."""
    config = TinyModelConfig.model_validate({"_target_": "", "init_from": None, **keys})
    captioner: Any = from_scratch(config, Vocabulary(vocab_size, bos_token_id, eos_token_id))
    captioner.__class__, captioner.normed = LayerwiseCaptioner, normed
    blocks = captioner.network.decoder.transformer.h
    for i, block in enumerate(blocks):

        def take(module: nn.Module, arguments: Any, named: dict[str, Any], i: int = i) -> Any:
            states = named["encoder_hidden_states"].chunk(len(blocks), -1)[i]
            return arguments, {**named, "encoder_hidden_states": states}

        block.crossattention.register_forward_pre_hook(take, with_kwargs=True)
    return captioner


def trained(seed: int, steps: int, epochs: int, *overrides: str) -> tuple[float, float]:
    """The lowest validation perplexity of an epoch's end, and CPU seconds."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        limits = [f"trainer.max_epochs={epochs}", f"trainer.limit_train_batches={steps // epochs}"]
        own = [f"seed={seed}", *limits, "trainer.limit_test_batches=1", f"run_dir={folder}/run"]
        run = train(configured(TrainConfig, *overrides, *ONLY_TRAINING, *own))
    return run.metrics["best/val/perplexity"], time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3, help="into which the steps are divided, for validations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("overrides", nargs="*", default=["data=shapes", "model=tiny", "stage=together"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.modules["cross_attention"] = sys.modules[__name__]
    logging.disable(logging.INFO)
    print(f"{setting()}\n{' '.join(arguments.overrides)}\n", flush=True)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for seed in arguments.seeds:  # one way after the other, so that what else runs meanwhile concerns all of them
        for way, own in WAYS.items():
            found[way].append(trained(seed, arguments.steps, arguments.epochs, *arguments.overrides, *own))
            print(f"{way}, seed {seed}: {found[way][-1][0]:.4g}, {found[way][-1][1]:.0f} CPU s", flush=True)
    rows = []
    for way, ends in found.items():
        logs = [log(perplexity) for perplexity, _ in ends]
        seconds = mean(seconds for _, seconds in ends)
        spread = f"{stdev(logs):.1%}" if len(logs) > 1 else ""
        rows.append([way, ", ".join(f"{value:.4g}" for value, _ in ends), f"{exp(mean(logs)):.4g}", spread,
                     f"{seconds:.0f}"])  # fmt: skip
    seeds = ", ".join(map(str, arguments.seeds))
    print("\n" + table(["GPT-2 looks at", f"seeds {seeds}", "mean", "spread", "CPU s"], rows))


if __name__ == "__main__":
    main()
