"""How fast are training and generation on an accelerator, beside Hugging Face's model on the same work?

python benchmarks/gpu.py [--device cuda] [--pictures 64] [--seconds 4] [--small]

Needs no data and no network. Full size (ViT-B/16 at 224 pixels, GPT-2 small, random weights) takes less than 8 minutes
on one H100. Pictures are noise that lies on the device already, so loading is not in these numbers. A training step is
forward, backward, clipping and AdamW; the peer has one caption a row, and dropout in its attention too.
`--small --device cpu` only tries the script.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import torch
from measuring import setting, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import FULL, SMALL, STAGES, network_of, one_caption_a_row, random_rows

from captioning.data.batch import CaptionBatch, PictureFormat, Row, pack
from captioning.model.build import switched
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Beam, Greedy, generate
from captioning.model.huggingface import captioner_of
from captioning.training.module import build_optimizer, scale_and_clip

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_UNIT = 1024  # tokens; keeps fp16 gradients in range, as training does
LEARNING_RATE = 1e-5
FURTHEST_LOSS = 1e-2  # relative distance of a half-precision loss from fp32's
TOKENS = 20  # of a generated caption
NEVER = -1  # an EOS that no token is, so that no caption ends early

Size = dict[str, int]


class Work:
    """One batch on the device, in both shapes."""

    def __init__(self, size: Size, pictures: int, device: torch.device):
        self.size, self.device = size, device
        self.rows: list[Row] = random_rows(pictures, size)
        self.batch: CaptionBatch = pack(self.rows).to(device)
        self.pixel_values, self.labels = (tensor.to(device) for tensor in one_caption_a_row(self.rows))

    def captioner(self, groups: tuple[str, ...] = ()) -> ImageCaptioner:
        """A new one that trains these groups, as `model=vit_gpt2` sets it: no dropout in the attention."""
        network = network_of(self.size, "gelu_pytorch_tanh")
        captioner = captioner_of(network, PictureFormat((self.size["image_size"],) * 2)).to(self.device)
        for block in captioner.network.decoder.transformer.h:
            block.attn.attn_dropout.p = block.crossattention.attn_dropout.p = 0.0
        captioner.set_trainable(groups)
        return captioner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=64, help="a batch, each with five captions (default 64)")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each case is timed (default 4)")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script")
    given = parser.parse_args()
    device, size = torch.device(given.device), SMALL if given.small else FULL
    if device.type == "cpu" and not given.small:
        sys.exit("no accelerator here; name one with --device, or try the script with --small")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else given.device
    print(f"{name}; {setting()}\n")
    work = Work(size, given.pictures, device)
    check_correctness(work)
    ceiling = matrix_product_ceiling(device, 512 if given.small else 8192)
    print(f"a bf16 matrix product reaches {ceiling / 1e12:.1f} TFLOP/s, the ceiling of the utilisation below\n")
    header = ("trains", "precision", "pictures/s", "captions/s", "of the ceiling", "peak GiB", "ratio")
    print(table(header, list(training_rows(work, ceiling, given.seconds))), "\n")
    header = (f"{TOKENS} tokens, bf16", "ours, pictures/s", "peer, pictures/s", "ratio")
    print(table(header, list(generation_rows(work, given.seconds))))


@torch.no_grad()
def check_correctness(work: Work) -> None:
    """The loss of the batch at each precision beside fp32's; too far apart ends the script."""
    captioner = work.captioner()
    nats, tokens = captioner.loss(work.batch)
    for name, dtype in PRECISIONS.items():
        with torch.autocast(work.device.type, dtype):
            apart = abs(float(captioner.loss(work.batch).nats / nats) - 1)
        print(f"loss in fp32 {float(nats / tokens):.5f}, {name} {apart:.1e} apart")
        if apart > FURTHEST_LOSS:
            sys.exit(f"{name} is not correct on this device")


def matrix_product_ceiling(device: torch.device, side: int) -> float:
    """FLOP/s of a square bf16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 * runs_per_second(lambda: a @ b, device, seconds=1.0)


def runs_per_second(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """After a warm-up; the device is waited for now and then, for kernels are queued far ahead of the clock."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        run()
    wait()
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(4):
            run()
        runs += 4
        wait()
    return runs / (time.perf_counter() - start)


def training_rows(work: Work, ceiling: float, seconds: float) -> Iterator[list[str]]:
    """Ours at each stage and precision, compiled or not, and the peer in bf16."""
    cases = [("bf16", False), ("bf16", True), ("fp16", False)] if work.device.type == "cuda" else [("bf16", False)]
    for stage, groups in list(STAGES.items())[:3]:  # the fourth, an encoder cached, is the decoder's share of the first
        flops = step_flops(work, groups)
        peers, peers_peak = measured(peer_step(work, groups), work.device, seconds)
        for precision, compiled in cases:
            rate, peak = measured(ours_step(work, groups, precision, compiled), work.device, seconds)
            name = precision + (", compiled" if compiled else "")
            yield [stage, name, *speeds(work, rate), f"{rate * flops / ceiling:.0%}", peak, f"{rate / peers:.2f}x"]
        yield [stage, "peer, bf16", *speeds(work, peers), "", peers_peak, "1x"]


def speeds(work: Work, rate: float) -> tuple[str, str]:
    """Pictures and captions a second, at so many batches a second."""
    return f"{rate * len(work.batch):.0f}", f"{rate * work.batch.caption_count:.0f}"


def measured(run: Callable[[], None], device: torch.device, seconds: float) -> tuple[float, str]:
    """Runs per second, and the peak of the device's memory in GiB."""
    if device.type != "cuda":
        return runs_per_second(run, device, seconds), "-"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return runs_per_second(run, device, seconds), f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}"


def ours_step(work: Work, groups: tuple[str, ...], precision: str, compiled: bool) -> Callable[[], None]:
    """A training step as `train.py` makes it."""
    captioner = switched(work.captioner(groups), gradient_checkpointing=False, compile=compiled)
    fp16 = precision == "fp16"
    optimizer = build_optimizer(captioner, weight_decay=0.01, betas=(0.9, 0.999), fused=not fp16)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(work.device.type, enabled=fp16)

    def step() -> None:
        with torch.autocast(work.device.type, PRECISIONS[precision]):
            nats, tokens = captioner.loss(work.batch)
        scaler.scale(nats / LOSS_UNIT).backward()
        if fp16:
            scaler.unscale_(optimizer)
        scale_and_clip(parameters, LOSS_UNIT / tokens.float(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def step_flops(work: Work, groups: tuple[str, ...]) -> int:
    """Of one forward and backward pass of ours, without the optimizer."""
    captioner = work.captioner(groups)
    with FlopCounterMode(display=False) as counter, torch.autocast(work.device.type, torch.bfloat16):
        captioner.loss(work.batch).nats.backward()
    return counter.get_total_flops()


def peer_step(work: Work, groups: tuple[str, ...]) -> Callable[[], None]:
    """The same step with one caption a row, fused AdamW and bf16."""
    network = network_of(work.size, "gelu_new").to(work.device)
    for theirs, ours in zip(network.parameters(), work.captioner(groups).network.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        with torch.autocast(work.device.type, torch.bfloat16):
            loss = network(pixel_values=work.pixel_values, labels=work.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generation_rows(work: Work, seconds: float) -> Iterator[list[str]]:
    """Captions of exactly `TOKENS` tokens, encoding included: ours beside `generate`."""
    captioner = work.captioner().eval()
    pictures = work.batch.pixel_values
    assert pictures is not None
    normalised: Tensor = pictures.float() / 127.5 - 1
    network = network_of(work.size, "gelu_new").to(work.device).eval()
    network.load_state_dict(captioner.network.state_dict())
    captioner.network.decoder.config.eos_token_id = NEVER  # ours reads this one
    network.generation_config.eos_token_id = None  # and the peer this
    beam = Beam(TOKENS, num_beams=5, length_penalty=1.0, early_stopping=False, no_repeat_ngram_size=0,
                min_new_tokens=0, n_best=1)  # fmt: skip
    for name, decoding, num_beams in (("greedy", Greedy(TOKENS), 1), ("beam 5", beam, 5)):

        def ours(decoding: Greedy | Beam = decoding) -> None:
            with torch.autocast(work.device.type, torch.bfloat16):
                generate(captioner, pictures, decoding)

        @torch.inference_mode()
        def peer(num_beams: int = num_beams) -> None:
            with torch.autocast(work.device.type, torch.bfloat16):
                network.generate(pixel_values=normalised, do_sample=False, num_beams=num_beams, max_new_tokens=TOKENS)

        rates = [runs_per_second(run, work.device, seconds) * len(pictures) for run in (ours, peer)]
        yield [name, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{rates[0] / rates[1]:.2f}x"]


if __name__ == "__main__":
    main()
