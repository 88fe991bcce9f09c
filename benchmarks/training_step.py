"""How much faster is a training step than Hugging Face's, and how much memory does it take?

python benchmarks/training_step.py [--small] [--repeats N] [--memory]

Both have the same random weights: `VisionEncoderDecoderModel` with one caption a row, and our `ImageCaptioner` with a
picture's five captions in one row. A step is forward, backward, clipping and fused
AdamW. Both have dropout 0.1 everywhere; "ours" has none in the attention, which is `model=vit_gpt2`'s own setting.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from measuring import (
    Ratio,
    at_least,
    forget_peak,
    interleaved_seconds,
    peak_bytes,
    publish,
    ratio_table,
    setting,
    table,
)
from torch import Tensor
from transformers import GPT2Config, VisionEncoderDecoderModel, ViTConfig

from captioning.data.batch import IGNORE, CaptionBatch, PictureFormat, Row, pack
from captioning.model.huggingface import captioner_of, compose
from captioning.training.module import scale_and_clip
from captioning.training.optimizers import adamw

# Labels of each caption (GPT-2 tokens and EOS) of eight photographs of COCO's val2017: in the first four the longest
# caption has 20 and the longest five have 73 together, in the mean of all of COCO 19.8 and 72.9.
LABELS = (
    (15, 14, 20, 12, 12),
    (13, 16, 14, 14, 15),
    (10, 12, 12, 9, 10),
    (13, 13, 12, 11, 11),
    (12, 15, 12, 12, 12),
    (13, 15, 15, 11, 13),
    (11, 18, 13, 12, 10),
    (13, 11, 12, 13, 17),
)
STAGES = {
    "cross-attention": ("cross_attention",),
    "+ GPT-2": ("cross_attention", "decoder"),
    "everything": ("cross_attention", "decoder", "encoder"),
    "encoder cached": ("cross_attention",),
}
WANTED = {  # times as fast at full size, like for like and ours
    "cross-attention": (2.9, 3.2),
    "+ GPT-2": (2.9, 3.0),
    "everything": (3.6, 4.0),
    "encoder cached": (4.5, 4.5),
}
CASES = ("hugging face", "like for like", "ours")
FULL = {"width": 768, "layers": 12, "heads": 12, "image_size": 224, "vocab_size": 50257}
SMALL = {"width": 192, "layers": 3, "heads": 3, "image_size": 112, "vocab_size": 50257}


class Bench:
    """A model, its optimizer, and one batch in both shapes."""

    def __init__(self, size: dict[str, int], pictures: int):
        torch.manual_seed(0)
        # The peer in GPT-2's own configuration; the same parameters in ours, which computes GELU in one kernel.
        self.peer = network_of(size, "gelu_new")
        network = network_of(size, "gelu_pytorch_tanh")
        network.load_state_dict(self.peer.state_dict(keep_vars=True), assign=True)
        self.captioner = captioner_of(network, PictureFormat((size["image_size"], size["image_size"])))
        self.optimizer = adamw(self.captioner, weight_decay=0.01, betas=(0.9, 0.999), fused=True)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-5
        self.rows = random_rows(pictures, size)
        self.packed = pack(self.rows)
        self.pixel_values, self.labels = one_caption_a_row(self.rows)

    def enter(self, stage: str) -> None:
        """Train what the stage trains, from no optimizer state."""
        self.captioner.set_trainable(STAGES[stage])
        for ours, theirs in zip(self.captioner.network.modules(), self.peer.modules(), strict=True):
            theirs.training = ours.training  # frozen parts without dropout in both
        self.optimizer.state.clear()
        self.batch = self.cached() if stage == "encoder cached" else self.packed

    def cached(self) -> CaptionBatch:
        """The batch as the encoder cache gives it."""
        with torch.no_grad():
            states = self.captioner.encoder_states(self.packed.pixel_values)
        rows = [Row(r.image_id, None, r.captions, s.bfloat16()) for r, s in zip(self.rows, states, strict=True)]
        return pack(rows)

    def step(self, case: str) -> None:
        """One optimizer step."""
        attention_dropout = 0.0 if case == "ours" else 0.1
        for block in self.captioner.network.decoder.transformer.h:
            block.attn.attn_dropout.p = block.crossattention.attn_dropout.p = attention_dropout
        self.optimizer.zero_grad()
        if case == "hugging face":
            self.peer(pixel_values=self.pixel_values, labels=self.labels).loss.backward()
            scale: float | Tensor = 1.0
        else:
            nats, tokens = self.captioner.loss(self.batch)
            nats.backward()
            scale = 1 / tokens
        scale_and_clip(list(self.captioner.parameters()), scale, max_norm=1.0)
        self.optimizer.step()


def network_of(size: dict[str, int], activation: str) -> VisionEncoderDecoderModel:
    """ViT-B/16 and GPT-2, or the like in small, with random weights and dropout 0.1."""
    width, layers, heads = size["width"], size["layers"], size["heads"]
    encoder = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=size["image_size"],
    )
    decoder = GPT2Config(
        vocab_size=size["vocab_size"],
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function=activation,
        add_cross_attention=True,
        bos_token_id=size["vocab_size"] - 1,
        eos_token_id=size["vocab_size"] - 1,
    )
    return compose(encoder, decoder)


def random_rows(pictures: int, size: dict[str, int]) -> list[Row]:
    """Pictures of noise with five captions each, of real lengths and random tokens."""
    random, end = np.random.default_rng(0), size["vocab_size"] - 1
    shape = (3, size["image_size"], size["image_size"])
    return [
        Row(
            number,
            torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)),
            [np.array([end, *random.integers(0, end, labels - 1), end]) for labels in LABELS[number % len(LABELS)]],
        )
        for number in range(pictures)
    ]


def one_caption_a_row(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Hugging Face's batch: the picture again for each of its captions, labels padded to the longest."""
    pairs = [(row.pixels, ids[1:]) for row in rows for ids in row.captions]
    labels = torch.full((len(pairs), max(len(ids) for _, ids in pairs)), IGNORE)
    for label, (_, ids) in zip(labels, pairs, strict=True):
        label[: len(ids)] = torch.from_numpy(ids)
    return torch.stack([pixels for pixels, _ in pairs]).float() / 127.5 - 1, labels


def times(size: dict[str, int], repeats: int) -> list[Ratio]:
    """Seconds a step, four pictures with five captions each."""
    bench, ratios = Bench(size, pictures=4), []
    for stage in STAGES:
        bench.enter(stage)
        cases = {case: (lambda case=case: bench.step(case)) for case in CASES}
        seconds = interleaved_seconds(cases, repeats)
        print(stage, {case: round(value, 3) for case, value in seconds.items()}, file=sys.stderr, flush=True)
        peer = seconds[CASES[0]]
        for case, wanted in zip(CASES[1:], WANTED[stage], strict=True):
            what, ours, beside = f"training {stage}, {case}", f"{seconds[case]:.3f} s", f"{CASES[0]} {peer:.3f} s"
            ratios.append(at_least(what, ours, beside, peer / seconds[case], wanted if size is FULL else None))
    return ratios


def memory(small: bool) -> str:
    """The table of peak memory, each figure from a process of its own."""
    rows = []
    for stage in STAGES:
        for pictures in (1, 4, 8):
            peaks = []
            for case in ("hugging face", "ours"):
                one = ["--one", stage, case, str(pictures), *(["--small"] if small else [])]
                done = subprocess.run([sys.executable, __file__, *one], capture_output=True, text=True, check=True)
                peaks.append(int(done.stdout))
            figures = [f"{peak / 2**30:.2f}" for peak in peaks]
            rows.append([stage, f"{pictures} x 5", *figures, f"{peaks[0] / peaks[1]:.2f}x"])
    return table(["trains", "pictures x captions", "hugging face, GiB", "ours, GiB", "ratio"], rows)


def peak_of_one(size: dict[str, int], stage: str, case: str, pictures: int) -> int:
    """Peak bytes of a process that takes two steps; the second has all of the optimizer's state beside it."""
    bench = Bench(size, pictures)
    bench.enter(stage)
    forget_peak()  # of making the model twice
    for _ in range(2):
        bench.step(case)
    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: the shape of the answer within a minute")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of seconds")
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "CASE", "PICTURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    if arguments.one:
        stage, case, pictures = arguments.one
        print(peak_of_one(size, stage, case, int(pictures)))
        return
    print(f"{setting()}\n{Path(__file__).name}, {'small' if arguments.small else 'full size'}, float32\n")
    if arguments.memory:
        print(memory(arguments.small))
        return
    ratios = times(size, arguments.repeats)
    print(ratio_table(ratios))
    sys.exit(publish(ratios))


if __name__ == "__main__":
    main()
