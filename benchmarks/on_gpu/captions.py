"""Phases of generation: ours, step by step and as CUDA graphs, and transformers."""

import contextlib
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captioning.model.generation import Beam, Decoding, Greedy, Sampling, generate
from captioning.model.generation import graphs as recorded
from captioning.model.generation.graphs import with_half_weights
from on_gpu.work import NEVER, TOKENS, Figures, Setting, Work, figure, forget, number_format, peak_gib, timed

MEAN_LENGTH = 13  # tokens, of captions with real ends


def noise(setting: Setting, pictures: int) -> Tensor:
    """(B, 3, H, W) uint8: coloured noise of a brightness of its own each, so that captions differ."""
    drawn, side = torch.Generator().manual_seed(1), setting.size["image_size"]
    level = torch.randint(0, 200, (pictures, 3, 1, 1), generator=drawn)
    pixels = level + torch.randint(0, 56, (pictures, 3, side, side), generator=drawn)
    return pixels.to(torch.uint8).to(setting.device)


@contextlib.contextmanager
def ends(work: Work, eos_token_id: int) -> Iterator[None]:
    """Captions end with this token, or never; the peer's too."""
    ours, before = work.captioner.network.decoder.config, work.captioner.end_of_text[1]
    ours.eos_token_id = eos_token_id
    theirs = work.peer.generation_config
    theirs.pad_token_id, theirs.eos_token_id = 0, None if eos_token_id == NEVER else eos_token_id
    try:
        yield
    finally:
        ours.eos_token_id = before


@torch.inference_mode()
def peer_generate(work: Work, pictures: Tensor, num_beams: int) -> Tensor:
    """transformers' token ids, BOS first."""
    normalised = pictures.float() / 127.5 - 1
    settings = {"do_sample": False, "num_beams": num_beams, "max_new_tokens": TOKENS}
    return work.peer.eval().generate(pixel_values=normalised, **settings)


# With transformers' defaults; and transformers' number of beams.
DECODINGS: dict[str, tuple[Decoding, int]] = {
    "greedy": (Greedy(TOKENS), 1),
    "beam 5": (Beam(TOKENS, 5, 1.0, False, 0, 0, 1), 5),
    "sampling": (Sampling(TOKENS, 1.0, None, 1.0, seed=0), 1),
}


def generation(setting: Setting) -> Figures:
    """Captions of exactly 20 tokens, encoding included; then with real ends."""
    yield from generated(setting, "eager", static=False)


def graphs(setting: Setting) -> Figures:
    """The same over fixed buffers, captured where there is a GPU; first, that the captions are the same."""
    work = Work(setting)
    work.captioner.eval()
    pictures = noise(setting, 2 * setting.batches[0])
    with number_format("fp32", setting.device):
        let_captions_end(work, pictures)
        with ends(work, work.size["vocab_size"] - 1):
            for name, (decoding, _) in DECODINGS.items():
                both = (generate(work.captioner, pictures, decoding, static=static) for static in (True, False))
                same = statistics.fmean(a.token_ids == b.token_ids for a, b in zip(*both, strict=True))
                yield figure(f"{name}: captions equal to those step by step, fp32", same, "of all")
                if same < 0.75 or work.captioner in recorded.unrecorded:  # a tie of two words may fall either way
                    raise AssertionError("graphs make other captions, or none could be recorded; see worker.log")
    yield from generated(setting, "graphs", static=True)


def generated(setting: Setting, way: str, *, static: bool) -> Figures:
    """Pictures a second, ours as predict.py has the model; without `static` transformers', too."""
    work, device, peers = Work(setting), setting.device, not static
    work.captioner = with_half_weights(work.captioner.eval(), torch.bfloat16)
    few, many = setting.batches
    pictures = noise(setting, 2 * many)
    cases = [(name, size, way) for size in (few, many, 2 * many) for name in ("greedy", "beam 5")]
    cases.append(("sampling", few, way))
    theirs = [("greedy", few), ("greedy", many), ("beam 5", few), ("beam 5", many)]
    if peers:
        cases += [(*case, "transformers") for case in theirs]
        work.peer.eval()

    def row(name: str, size: int, whose: str, suffix: str = "") -> dict[str, Any]:
        decoding, beams = DECODINGS[name]
        some = pictures[:size]

        def run() -> None:
            with number_format("bf16", device):
                if whose == "transformers":
                    peer_generate(work, some, beams)
                else:
                    generate(work.captioner, some, decoding, static=static)

        forget(device)
        seconds = timed(run, device, setting.seconds)
        more = {"ms_a_token": 1e3 * seconds / TOKENS, "gib": peak_gib(device)}
        return figure(f"{name}, batch {size}, {whose}{suffix}", size / seconds, "pictures/s", **more)

    with ends(work, NEVER):
        for case in cases:
            yield row(*case)
        with torch.inference_mode(), number_format("bf16", device):
            seconds = timed(lambda: work.captioner.encode(pictures[:many]), device, setting.seconds)
        yield figure(f"encoding alone, batch {many}", many / seconds, "pictures/s")
    with number_format("bf16", device):
        lengths = let_captions_end(work, pictures[:many])
    with ends(work, work.size["vocab_size"] - 1):
        suffix = ", real ends"
        ended = row("greedy", many, way, suffix)
        ended["more"] |= {"tokens": statistics.fmean(lengths), "shortest": min(lengths), "longest": max(lengths)}
        yield ended
        yield row("beam 5", few, way, suffix)
        if peers:
            yield row("greedy", many, "transformers", suffix)


def let_captions_end(work: Work, pictures: Tensor) -> list[int]:
    """Change the weights so that EOS grows likelier with each position, and greedy captions end after 13 on average.

    GPT-2's head is its token embedding, so some of EOS's in a position's embedding raises its logit there.
    """
    gpt2, eos = work.captioner.network.decoder.transformer, work.size["vocab_size"] - 1
    plain, towards = gpt2.wpe.weight.detach().clone(), gpt2.wte.weight[eos].detach().clone()
    ramp = torch.arange(len(plain), device=plain.device).clamp(max=TOKENS)[:, None] / TOKENS
    low, high, lengths = 0.0, 64.0, [TOKENS]
    with ends(work, eos):
        for _ in range(9):
            strength = (low + high) / 2
            gpt2.wpe.weight.data.copy_(plain + strength * ramp * towards)
            lengths = [
                min(TOKENS, len(caption.token_ids) + 1)
                for caption in generate(work.captioner, pictures, Greedy(TOKENS), static=False)
            ]
            low, high = (strength, high) if statistics.fmean(lengths) > MEAN_LENGTH else (low, strength)
    work.peer.load_state_dict(work.captioner.network.state_dict())
    return lengths
