"""How fast are training and generation on an accelerator, beside Hugging Face's model on the same work?

python benchmarks/gpu.py [--device cuda] [--pictures 64] [--seconds 4] [--small]

Needs torch, transformers and numpy; no data, no network. Takes less than 8 minutes on one H100. Pictures are noise
that lies on the device already, so loading is not in these numbers. `--small --device cpu` only tries the script.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peer import FULL, SMALL, STAGES, Size, captioner_of, machine, one_caption_a_row, packed_batch, table
from captioning.batch import CaptionBatch
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Greedy, generate
from captioning.model.switches import switched
from captioning.training.optimizer import build_optimizer, scale_and_clip

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_UNIT = 1024  # tokens; keeps fp16 gradients in range, as training does
LEARNING_RATE = 1e-5
TOKENS = 20  # of a generated caption


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=64, help="a batch, each with five captions (default 64)")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each case is timed (default 4)")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    given = parser.parse_args()
    if given.device == "cpu" and not given.small:
        sys.exit("no accelerator here; name one with --device, or try the script with --small --device cpu")
    device, size = torch.device(given.device), SMALL if given.small else FULL
    print(machine())
    print_correctness(size, device)
    ceiling = matrix_product_ceiling(device, 512 if given.small else 8192)
    print(f"\nmatrix products reach {ceiling / 1e12:.1f} TFLOP/s in bf16, the ceiling of the utilisation below\n")
    batch = packed_batch(size, given.pictures, device)
    print(
        table(
            ("training", "precision", "pictures/s", "captions/s", "of the ceiling", "peak GiB", "ratio"),
            list(training_rows(size, batch, device, ceiling, given.seconds)),
        )
    )
    print()
    print(
        table(
            ("generating 20 tokens", "ours, pictures/s", "peer, pictures/s", "ratio"),
            list(generation_rows(size, batch, device, given.seconds)),
        )
    )


def print_correctness(size: Size, device: torch.device) -> None:
    """The loss of one batch at each precision beside fp32's."""
    captioner, batch = captioner_of(size, dropout=0.0).to(device).eval(), packed_batch(size, 8, device)
    with torch.no_grad():
        exact = mean_loss(captioner, batch)
        for name, dtype in PRECISIONS.items():
            with torch.autocast(device.type, dtype):
                loss = mean_loss(captioner, batch)
            print(f"loss in {name} {loss:.5f}, in fp32 {exact:.5f}: {abs(loss / exact - 1):.1e} apart")
            if abs(loss / exact - 1) > 1e-2:
                sys.exit(f"{name} is not correct on this device")


def mean_loss(captioner: ImageCaptioner, batch: CaptionBatch) -> float:
    nats, tokens = captioner.loss(batch)
    return float(nats / tokens)


def matrix_product_ceiling(device: torch.device, side: int) -> float:
    """FLOP/s of a square bf16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 * runs_per_second(lambda: a @ b, device, seconds=1.0)


def runs_per_second(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """After a warm-up; the device is waited for before the first and after the last run."""
    for _ in range(3):
        run()
    _wait(device)
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        runs += 1
        if runs % 4 == 0:  # kernels are queued far ahead of the clock
            _wait(device)
    _wait(device)
    return runs / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_rows(
    size: Size, batch: CaptionBatch, device: torch.device, ceiling: float, seconds: float
) -> Iterator[tuple[str, ...]]:
    """Ours at each stage and precision, compiled or not, and the peer in bf16."""
    cases = [("bf16", False), ("bf16", True), ("fp16", False)] if device.type == "cuda" else [("bf16", False)]
    captions = batch.caption_count
    for stage, groups in STAGES.items():
        flops = step_flops(size, batch, groups, device)
        peers, peak = measured(peer_step(size, batch, groups, device), device, seconds)
        for precision, compiled in cases:
            step = ours_step(size, batch, groups, precision, compiled, device)
            rate, ours_peak = measured(step, device, seconds)
            name = precision + (", compiled" if compiled else "")
            speeds = (f"{rate * len(batch):.0f}", f"{rate * captions:.0f}", f"{rate * flops / ceiling:.0%}")
            yield stage, name, *speeds, f"{ours_peak:.1f}", f"{rate / peers:.2f}"
        yield stage, "peer, bf16", f"{peers * len(batch):.0f}", f"{peers * captions:.0f}", "", f"{peak:.1f}", "1"


def measured(run: Callable[[], None], device: torch.device, seconds: float) -> tuple[float, float]:
    """Runs per second, and the peak of the device's memory in GiB."""
    if device.type != "cuda":
        return runs_per_second(run, device, seconds), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return runs_per_second(run, device, seconds), torch.cuda.max_memory_allocated(device) / 2**30


def ours_step(
    size: Size, batch: CaptionBatch, groups: tuple[str, ...], precision: str, compiled: bool, device: torch.device
) -> Callable[[], None]:
    """A whole training step as `train.py` makes it: forward, backward, clipping, AdamW."""
    captioner = switched(captioner_of(size).to(device), gradient_checkpointing=False, compile=compiled)
    captioner.set_trainable(groups)
    fp16 = precision == "fp16"
    optimizer = build_optimizer(captioner, weight_decay=0.01, betas=(0.9, 0.999), fused=not fp16)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=fp16)

    def step() -> None:
        with torch.autocast(device.type, PRECISIONS[precision]):
            nats, tokens = captioner.loss(batch)
        scaler.scale(nats / LOSS_UNIT).backward()
        if fp16:
            scaler.unscale_(optimizer)
        scale_and_clip(parameters, LOSS_UNIT / tokens.float(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def step_flops(size: Size, batch: CaptionBatch, groups: tuple[str, ...], device: torch.device) -> int:
    """Of one forward and backward pass, without the optimizer."""
    captioner = captioner_of(size).to(device)
    captioner.set_trainable(groups)
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        captioner.loss(batch).nats.backward()
    return counter.get_total_flops()


def peer_step(size: Size, batch: CaptionBatch, groups: tuple[str, ...], device: torch.device) -> Callable[[], None]:
    """The same step with one caption a row, fused AdamW and bf16."""
    captioner = captioner_of(size).to(device)
    captioner.set_trainable(groups)
    network, inputs = captioner.network, one_caption_a_row(batch)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generation_rows(size: Size, batch: CaptionBatch, device: torch.device, seconds: float) -> Iterator[tuple[str, ...]]:
    """Captions of exactly `TOKENS` tokens, encoding included: ours beside `generate`, both in bf16."""
    captioner = captioner_of(size).to(device).eval()
    network, pixels = captioner.network, batch.pixel_values
    # Random weights hardly ever say EOS; this keeps the peer, as ours, from stopping early all the same.
    lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    decodings = {"greedy": (Greedy(TOKENS), {"num_beams": 1})}
    for name, (decoding, settings) in decodings.items():

        @torch.inference_mode()
        def peer(settings: dict = settings) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                network.generate(pixel_values=pixels.float() / 127.5 - 1, do_sample=False, **settings, **lengths)

        def ours(decoding: Greedy = decoding) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                generate(captioner, pixels, decoding)

        rates = [runs_per_second(run, device, seconds) * len(batch) for run in (ours, peer)]
        yield name, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{rates[0] / rates[1]:.2f}"


if __name__ == "__main__":
    main()
