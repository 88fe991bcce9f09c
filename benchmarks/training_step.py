"""How much faster is a training step than Hugging Face's, and how much memory does it take?

python benchmarks/training_step.py [--small] [--repeats N] [--only STAGE ...] [--memory]

Both have the same random weights: `VisionEncoderDecoderModel` with one caption a row, and our `ImageCaptioner` with a
picture's five captions in one row. A step is forward, backward, clipping and fused
AdamW. Both have dropout 0.1 everywhere; "ours" has none in the attention, which is `model=vit_gpt2`'s own setting.
Each side is a process of its own, and they take turns: the peer's treats memory as Python does by itself, ours as
`train.py` does.

The second table holds our step against what this machine's matrix products reach at the step's own shapes, in the same
run: all of them one after the other, each by the faster of torch's library and oneDNN. Then the loss of 1,000 labels
at width 128 over GPT-2's vocabulary beside plain cross-entropy.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    Ratio,
    at_least,
    at_most,
    forget_peak,
    interleaved_seconds,
    peak_bytes,
    publish,
    ratio_table,
    setting,
    table,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, VisionEncoderDecoderModel, ViTConfig

from captioning.config import GROUPS
from captioning.data.batch import IGNORE, CaptionBatch, PictureFormat, Row, pack
from captioning.model.cpu import keep_freed_memory
from captioning.model.huggingface import captioner_of, compose
from captioning.model.lora import with_adapters
from captioning.model.loss import summed_cross_entropy
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
ADAPTERS = "LoRA of rank 8"  # for memory alone: of both halves, beside cross-attention
WANTED = {  # times as fast at full size, like for like and ours
    "cross-attention": (2.9, 3.2),
    "+ GPT-2": (2.9, 3.0),
    "everything": (3.6, 4.0),
    "encoder cached": (4.5, 4.5),
}
CASES = ("hugging face", "like for like", "ours")
SHARE_WANTED = {"everything": 0.75}  # of the products alone
LOSS = "loss"
LOSS_WANTED = 0.44  # of plain cross-entropy's seconds
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

    def adapt(self) -> None:
        """Adapters in place of the halves; ours alone."""
        with_adapters(self.captioner, {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["decoder", "encoder"]})
        self.optimizer = adamw(self.captioner, weight_decay=0.01, betas=(0.9, 0.999), fused=True)

    def enter(self, stage: str) -> None:
        """Train what the stage trains, from no optimizer state."""
        self.captioner.set_trainable(STAGES.get(stage, GROUPS))
        for ours, theirs in zip(self.captioner.network.modules(), self.peer.modules(), strict=stage in STAGES):
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
        scale_and_clip(self.optimizer, scale, max_norm=1.0)
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


class Products(TorchDispatchMode):
    """Counts the matrix products of what runs in it, and their floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, int, int, bool, bool]] = Counter()  # M, K, N; whether a and b are transposed
        self.attention = 0  # operations of attention's products, which are no matrix products by themselves

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        if name in ("mm", "addmm", "addmm_", "_linear_pointwise"):
            a, b = [one for one in args if isinstance(one, Tensor) and one.ndim > 1][-2:]
            b = b.T if name == "_linear_pointwise" else b  # there (N, K)
            a = a.flatten(0, -2)
            self.found[(*a.shape, b.shape[1], not a.is_contiguous(), not b.is_contiguous())] += 1
        elif "dot_product" in name:
            queries, keys = args[1:3] if "backward" in name else args[:2]
            once = 2 * queries.numel() * keys.shape[-2]
            self.attention += once * (4 if "backward" in name else 2)
        return function(*args, **(kwargs or {}))

    def operations(self) -> int:
        """Of the matrix products."""
        return sum(2 * m * k * n * times for (m, k, n, *_), times in self.found.items())

    def seconds(self) -> float:
        """All of the products one after the other, each shape by the faster library, its median."""
        total = 0.0
        for (m, k, n, a_turned, b_turned), times in self.found.items():
            a = torch.randn(k, m).T if a_turned else torch.randn(m, k)
            b = torch.randn(n, k).T if b_turned else torch.randn(k, n)
            ways = {"torch": lambda a=a, b=b: torch.mm(a, b)}
            if torch.backends.mkldnn.is_available():
                ways["oneDNN"] = lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
            total += times * min(interleaved_seconds(ways, 5).values())
        return total


def vocabulary_loss(case: str) -> float:
    """Seconds of the loss of 1,000 labels and its gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1000, 128, generator=generator).requires_grad_()
    weight = torch.randn(50257, 128, generator=generator).mul_(0.02).requires_grad_()
    labels = torch.randint(50257, (1000,), generator=generator)
    start = time.perf_counter()
    if case == "hugging face":
        F.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward()
    else:
        summed_cross_entropy(hidden, weight, labels).backward()
    return time.perf_counter() - start


def serve(size: dict[str, int]) -> None:
    """One side: for each line of stdin, [stage, case], a line with seconds; without a stage it is the loss alone."""
    bench, here = None, ""
    for line in sys.stdin:
        stage, case = json.loads(line)
        if not stage:
            print(json.dumps(vocabulary_loss(case)), flush=True)
            continue
        bench = bench or Bench(size, pictures=4)
        if stage != here:
            bench.enter(stage)
            here = stage
        if case == "products":
            with Products() as products:
                bench.step("ours")
            print(json.dumps([products.operations(), products.attention, products.seconds()]), flush=True)
            continue
        start = time.perf_counter()
        bench.step(case)
        print(json.dumps(time.perf_counter() - start), flush=True)


class Side:
    """A process that takes steps when it is asked to: with stock memory, or with ours."""

    def __init__(self, small: bool, stock: bool):
        command = [sys.executable, __file__, "--serve", "stock" if stock else "ours", *(["--small"] if small else [])]
        # Large pages are asked for where `captioning` is imported, unless the environment says otherwise.
        environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0" if stock else "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, stage: str, case: str) -> Any:
        """What it answers."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([stage, case]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """Its stdin ends, and so does it."""
        self._process.communicate()


def times(small: bool, repeats: int, stages: Sequence[str]) -> tuple[list[Ratio], str]:
    """Seconds a step, four pictures with five captions each; and the table of products."""
    peer_side, our_side, ratios, rows = Side(small, stock=True), Side(small, stock=False), [], []
    for stage in stages:
        cases = {
            case: lambda case=case, stage=stage: (peer_side if case == CASES[0] else our_side)(stage, case)
            for case in CASES
        }
        seconds = interleaved_seconds(cases, repeats)
        print(stage, {case: round(value, 3) for case, value in seconds.items()}, file=sys.stderr, flush=True)
        peer = seconds[CASES[0]]
        for case, wanted in zip(CASES[1:], WANTED[stage], strict=True):
            what, ours, beside = f"training {stage}, {case}", f"{seconds[case]:.3f} s", f"{CASES[0]} {peer:.3f} s"
            ratios.append(at_least(what, ours, beside, peer / seconds[case], None if small else wanted))
        operations, attention, alone = our_side(stage, "products")
        reached, ceiling = (operations + attention) / seconds["ours"] / 1e9, operations / alone / 1e9
        rows.append([stage, f"{seconds['ours']:.3f}", f"{reached:.0f}", f"{ceiling:.0f}", f"{reached / ceiling:.0%}"])
        what, ours, beside = f"training {stage}", f"{reached:.0f} GFLOP/s", f"its products alone {ceiling:.0f}"
        ratios.append(at_least(what, ours, beside, reached / ceiling, None if small else SHARE_WANTED.get(stage)))
    for side in (peer_side, our_side):
        side.end()
    header = ["trains", "ours, s", "GFLOP/s", "products alone, GFLOP/s", "share"]
    return ratios, table(header, rows)


def loss_ratio(small: bool, repeats: int) -> Ratio:
    """The loss alone, in fresh processes: a training's freed memory would serve the peer, too."""
    peer_side, our_side = Side(small, stock=True), Side(small, stock=False)
    losses = {"plain": lambda: peer_side("", CASES[0]), "ours": lambda: our_side("", "ours")}
    loss = interleaved_seconds(losses, repeats)
    for side in (peer_side, our_side):
        side.end()
    ours, beside = f"{loss['ours']:.3f} s", f"cross_entropy {loss['plain']:.3f} s"
    return at_most("loss of 1,000 labels", ours, beside, loss["ours"] / loss["plain"], LOSS_WANTED)


def memory(small: bool) -> str:
    """The table of peak memory, each figure from a process of its own."""
    rows = []
    for stage in (*STAGES, ADAPTERS):
        for pictures in (1, 4, 8):
            peaks = []
            for case in ("hugging face", "ours") if stage in STAGES else ("ours",):
                one = ["--one", stage, case, str(pictures), *(["--small"] if small else [])]
                done = subprocess.run([sys.executable, __file__, *one], capture_output=True, text=True, check=True)
                peaks.append(int(done.stdout))
            figures = [f"{peak / 2**30:.2f}" for peak in peaks]
            ratio = f"{peaks[0] / peaks[1]:.2f}x" if stage in STAGES else ""
            rows.append([stage, f"{pictures} x 5", *([""] if not ratio else []), *figures, ratio])
    return table(["trains", "pictures x captions", "hugging face, GiB", "ours, GiB", "ratio"], rows)


def peak_of_one(size: dict[str, int], stage: str, case: str, pictures: int) -> int:
    """Peak bytes of a process that takes two steps; the second has all of the optimizer's state beside it."""
    bench = Bench(size, pictures)
    if stage == ADAPTERS:
        bench.adapt()
    bench.enter(stage)
    forget_peak()  # of making the model twice
    for _ in range(2):
        bench.step(case)
    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: the shape of the answer within a minute")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*STAGES, LOSS], default=[*STAGES, LOSS], help="some rows")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of seconds")
    parser.add_argument("--serve", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "CASE", "PICTURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    if arguments.serve == "ours" or (arguments.one and arguments.one[1] != CASES[0]):
        keep_freed_memory()
    if arguments.serve:
        serve(size)
        return
    if arguments.one:
        stage, case, pictures = arguments.one
        print(peak_of_one(size, stage, case, int(pictures)))
        return
    print(f"{setting()}\n{Path(__file__).name}, {'small' if arguments.small else 'full size'}, float32\n")
    if arguments.memory:
        print(memory(arguments.small))
        return
    ratios, products = times(arguments.small, arguments.repeats, [stage for stage in STAGES if stage in arguments.only])
    if LOSS in arguments.only:
        ratios.append(loss_ratio(arguments.small, max(5, arguments.repeats)))
    print(f"{products}\n\n{ratio_table(ratios)}")
    sys.exit(publish(ratios))


if __name__ == "__main__":
    main()
