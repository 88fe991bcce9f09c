"""Phases of generation: ours, captured as CUDA graphs where the package has that, and transformers."""

import contextlib
import importlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from captioning.model.generation import Beam, Greedy, generate
from on_gpu.work import NEVER, TOKENS, Figures, Setting, Work, figure, forget, number_format, peak_gib, timed

GRAPHS = "captioning.model.generation.graphs"  # its `generate` replays CUDA graphs, where there is one
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


def beam_search() -> Beam:
    """With transformers' defaults."""
    return Beam(TOKENS, 5, 1.0, False, 0, 0, 1)


def generation(setting: Setting) -> Figures:
    """Captions of exactly 20 tokens, encoding included; then with real ends."""
    yield from generated(setting, "eager", generate, peers=True)


def graphs(setting: Setting) -> Figures:
    """The same, captured."""
    yield from generated(setting, "graphs", importlib.import_module(GRAPHS).generate, peers=False)


def generated(setting: Setting, way: str, make: Callable, peers: bool) -> Figures:
    """Pictures a second."""
    work, device = Work(setting), setting.device
    work.captioner.eval()
    decodings = {"greedy": (Greedy(TOKENS), 1), "beam 5": (beam_search(), 5)}
    few, many = setting.batches
    pictures = noise(setting, 2 * many)
    cases = [(name, size, way) for size in (few, many, 2 * many) for name in decodings]
    theirs = [("greedy", few), ("greedy", many), ("beam 5", few), ("beam 5", many)]
    if peers:
        cases += [(*case, "transformers") for case in theirs]
        work.peer.eval()

    def row(name: str, size: int, whose: str, suffix: str = "") -> dict[str, Any]:
        decoding, beams = decodings[name]
        some = pictures[:size]

        def run() -> None:
            with number_format("bf16", device):
                peer_generate(work, some, beams) if whose == "transformers" else make(work.captioner, some, decoding)

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
                for caption in generate(work.captioner, pictures, Greedy(TOKENS))
            ]
            low, high = (strength, high) if statistics.fmean(lengths) > MEAN_LENGTH else (low, strength)
    work.peer.load_state_dict(work.captioner.network.state_dict())
    return lengths
