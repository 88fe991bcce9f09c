"""Phases of the model alone: the card's ceilings, correctness, training steps, new lengths."""

import statistics
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_step import one_caption_a_row

from captioning.config import GROUPS
from captioning.data.batch import IGNORE, CaptionBatch, Row
from captioning.model import captioner as captioner_module
from captioning.model.captioner import group_of
from captioning.model.generation import Greedy, generate
from on_gpu.captions import ends, peer_generate
from on_gpu.work import (
    EVERYTHING,
    LOSS_UNIT,
    NEVER,
    STAGES,
    TOKENS,
    Figures,
    Setting,
    Work,
    ceiling,
    figure,
    forget,
    lot,
    number_format,
    peak_gib,
    product_rate,
    products,
    step_flops,
    timed,
)


def card(setting: Setting) -> Figures:
    """Ceilings."""
    device = setting.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield figure("card", properties.name, memory_gib=round(properties.total_memory / 2**30))
    yield figure("copy", copy_rate(device, 2**22 if setting.small else 2**32) / 1e12, "TB/s read and written")
    size, largest = setting.size, setting.batches[-1]
    width, patches = size["width"], (size["image_size"] // 16) ** 2 + 1
    encoded, packed, side = largest * patches, largest * 73, 256 if setting.small else 8192
    shapes = {
        "ViT, into its MLP": (encoded, width, 4 * width),
        "ViT, out of its MLP": (encoded, 4 * width, width),
        "ViT, D x D": (encoded, width, width),
        "GPT-2, queries, keys, values": (packed, width, 3 * width),
        "vocabulary, 512 labels": (512, width, size["vocab_size"]),
        "vocabulary, 4,096 labels": (4096, width, size["vocab_size"]),
        "vocabulary padded to 64, 4,096 labels": (4096, width, -(-size["vocab_size"] // 64) * 64),
    }
    forms = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
    for name, dtype in forms.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        rate = product_rate(device, (side, side, side), dtype)
        yield figure(f"{name}, {side} x {side} x {side}", rate / 1e12, "TFLOP/s")
    torch.set_float32_matmul_precision("highest")
    for name, shape in shapes.items():
        rate = product_rate(device, shape, torch.bfloat16)
        yield figure(f"bf16, {name}", rate / 1e12, "TFLOP/s", shape=" x ".join(map(str, shape)))


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second, those read and those written."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, 0.3)


BOUNDS = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 3e-2}  # ||difference|| / ||reference||


def correctness(setting: Setting) -> Figures:
    """Ours in each number format against transformers in fp32; then in bf16 with faults, which must be found."""
    work, right = Work(setting), True
    rows, batch = work.batch(2 if setting.small else 8)
    reference = peer_quantities(work, rows)

    def compared(what: str, found: Quantities, name: str, close: bool = True) -> dict[str, Any]:
        nonlocal right
        far = distances(found, reference)
        furthest, bound = max(far, key=far.__getitem__), BOUNDS[name]
        as_wanted = all(distance <= bound for distance in far.values()) == close  # a NaN is never close
        right &= as_wanted
        said = ("right" if close else "found, as it must be") if as_wanted else "NOT AS IT MUST BE"
        return figure(what, far[furthest], f"apart, {furthest}", verdict=said, bound=bound, **far)

    for name in BOUNDS:
        if name != "fp16" or setting.device.type != "cpu":
            yield compared(name, ours_quantities(work, batch, name), name)
    with mock.patch.object(captioner_module, "same_caption_causal_mask", all_true):
        found = ours_quantities(work, batch, "bf16")
    yield compared("bf16, fault: an all-true mask", found, "bf16", close=False)
    shifted = batch.labels.flatten().index_copy(0, batch.labelled, batch.labels.flatten()[batch.labelled].roll(1))
    faults = {
        "a zeroed picture": replace(batch, pixel_values=torch.zeros_like(batch.pixel_values)),
        "labels of one place before": replace(batch, labels=shifted),
    }
    for name, faulty in faults.items():
        found = ours_quantities(work, faulty, "bf16")
        yield compared(f"bf16, fault: {name}", found, "bf16", close=False)
    same = same_captions(work, batch)
    yield figure("greedy captions equal to transformers', fp32", same, "of all")
    if not right or same < 0.75:  # a tie of two words may fall either way
        raise AssertionError("what is computed is not what it must be: see the rows")


Quantities = dict[str, Tensor]


def all_true(caption_index: Tensor) -> Tensor:
    """(B, 1, S, S), a mask that hides nothing."""
    return torch.ones_like(caption_index[:, None, :, None] == caption_index[:, None, None, :])


def ours_quantities(work: Work, batch: CaptionBatch, format_name: str) -> Quantities:
    """Hidden states of the labelled positions (N, D), and each group's gradients of the summed loss as one vector."""
    captioner = work.captioner
    captioner.set_trainable(GROUPS)
    captioner.eval()
    captioner.zero_grad(set_to_none=True)
    with number_format(format_name, work.device):
        with torch.no_grad():
            hidden = captioner.hidden_states(batch, captioner.attended(batch)).flatten(0, 1)[batch.labelled]
        nats = captioner.loss(batch).nats
    scale = 2.0**16 if format_name == "fp16" else 1.0  # as GradScaler has it at first
    with products(format_name):
        (nats * (scale / LOSS_UNIT)).backward()
    return {"hidden states": hidden.float(), **gradients(captioner.network, scale)}


def peer_quantities(work: Work, rows: list[Row]) -> Quantities:
    """The same of transformers in fp32, one caption a row."""
    pixel_values, labels = (tensor.to(work.device) for tensor in one_caption_a_row(rows))
    peer = work.peer.eval().requires_grad_(True)
    peer.zero_grad(set_to_none=True)
    with number_format("fp32", work.device):
        output = peer(pixel_values=pixel_values, labels=labels, output_hidden_states=True)
        nats = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        (nats / LOSS_UNIT).backward()
    hidden = output.decoder_hidden_states[-1].detach()[labels != IGNORE]  # the order of ours: row by row
    found = {"hidden states": hidden, **gradients(peer)}
    peer.zero_grad(set_to_none=True)
    return found


def gradients(network: nn.Module, scale: float = 1.0) -> Quantities:
    """Of each group, of a loss that was multiplied by `scale`."""
    named = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
    of = {group: [g.flatten() for name, g in named if group_of(name) == group] for group in GROUPS}
    return {f"gradients of {group}": torch.cat(parts) / scale for group, parts in of.items()}


def distances(found: Quantities, reference: Quantities) -> dict[str, float]:
    """||difference|| / ||reference||."""
    return {
        name: float((found[name].double() - right.double()).norm() / right.double().norm())
        for name, right in reference.items()
    }


def same_captions(work: Work, batch: CaptionBatch) -> float:
    """The share of greedy captions that are the same token by token, in fp32."""
    work.captioner.eval()
    assert batch.pixel_values is not None and work.peer
    with ends(work, NEVER), number_format("fp32", work.device):
        ours = generate(work.captioner, batch.pixel_values, Greedy(TOKENS), static=False)
        theirs = peer_generate(work, batch.pixel_values, 1).tolist()
    return statistics.fmean(a.token_ids == b[1:] for a, b in zip(ours, theirs, strict=True))


def training(setting: Setting) -> Figures:
    """Steps, beside the ceiling and the peer."""
    work, device = Work(setting), setting.device
    few, many = setting.batches
    bf16 = [(stage, batch, "bf16") for batch in (many, few) for stage in STAGES]
    others = [(EVERYTHING, many, "fp16"), (EVERYTHING, many, "tf32"), (EVERYTHING, few, "fp32")]
    for stage, pictures, name in [*bf16, *(others if device.type == "cuda" else others[1:])]:
        yield step_row(setting, work, stage, pictures, name)
    for stage in (EVERYTHING, "cross-attention"):
        forget(device)
        seconds = timed(work.peer_step(STAGES[stage], few), device, setting.seconds)
        what = f"{stage}, batch {few}, transformers bf16"
        yield figure(what, few / seconds, "pictures/s", ms=1e3 * seconds, gib=peak_gib(device))
    del work.peer
    _, batch = work.batch(2)
    forget(device)
    step = work.step(STAGES[EVERYTHING], "bf16")
    seconds = timed(lambda: step(batch), device, setting.seconds)
    yield figure("everything, batch 2, bf16: what the host needs", 1e3 * seconds, "ms a step")


def step_row(setting: Setting, work: Work, stage: str, pictures: int, name: str) -> dict[str, Any]:
    """A step of ours."""
    device, (_, batch) = setting.device, work.batch(pictures)
    labelled = len(batch.labelled) / pictures
    flops = step_flops(setting.size, STAGES[stage], batch.input_ids.shape[1], labelled)
    forget(device)
    step = work.step(STAGES[stage], name)
    seconds = timed(lambda: step(batch), device, setting.seconds)
    reached = pictures * flops / seconds / ceiling(device, 256 if setting.small else 8192)
    more = {"captions/s": 5 * pictures / seconds, "of the bf16 ceiling": reached, "gib": peak_gib(device)}
    what = f"{stage}, batch {pictures}, {name}"
    return figure(what, pictures / seconds, "pictures/s", ms=1e3 * seconds, gflop_a_picture=flops / 1e9, **more)


def lengths(setting: Setting) -> Figures:
    """Each packed length costs what kernels are looked for, made or planned for it: as train.py's, and with cuDNN's."""
    work, device, pictures = Work(setting), setting.device, setting.batches[0]
    step = work.step(STAGES[EVERYTHING], "bf16")
    timed(lambda: step(work.of_length(pictures, 40)), device, setting.seconds)
    choices = {"": range(48, 144, 16 if not setting.small else 48)}  # as rows are packed on a GPU
    if device.type == "cuda":
        choices[", with cuDNN's attention"] = range(56, 152, 16)
    for choice, all_lengths in choices.items():
        if choice:
            torch.backends.cuda.enable_cudnn_sdp(True)
        batches = [work.of_length(pictures, length) for length in all_lengths]
        first, again, third = ([lot(lambda batch=batch: step(batch), device, 1) for batch in batches] for _ in range(3))
        warm = [min(pair) for pair in zip(again, third, strict=True)]
        extra = sum(first) - sum(warm)
        more = {"worst_ms": 1e3 * max(first), "warm_ms": 1e3 * statistics.median(warm), "lengths": len(batches)}
        yield figure(f"first seen, median{choice}", 1e3 * statistics.median(first), "ms a step", **more)
        yield figure(f"first seen, all lengths together{choice}", extra, "s more than later")
