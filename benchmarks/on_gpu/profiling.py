"""Where the time of a step goes: its kernels, and the places at which the host waits for the GPU."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from captioning.model.generation import Greedy, generate
from on_gpu.captions import ends, noise
from on_gpu.work import EVERYTHING, NEVER, STAGES, TOKENS, Figures, Setting, Work, figure, number_format, timed, wait

WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    *("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)", "Memcpy HtoD (Pageable -> Device)"),
    *("aten::item", "aten::_local_scalar_dense", "aten::nonzero"),
)


def profile(setting: Setting) -> Figures:
    """Kernels and waits of steps and of greedy decoding."""
    work, pictures = Work(setting), setting.batches[-1]
    _, batch = work.batch(pictures)
    for stage in (EVERYTHING, "cross-attention"):
        step = work.step(STAGES[stage], "bf16")
        yield from profiled(setting, f"{stage}, batch {pictures}, bf16", lambda step=step: step(batch), 3)
    work.captioner.eval()
    with ends(work, NEVER):
        few = noise(setting, setting.batches[0])

        def greedy() -> None:
            with number_format("bf16", setting.device):
                generate(work.captioner, few, Greedy(TOKENS), static=False)

        yield from profiled(setting, f"greedy, batch {len(few)}, eager", greedy, 1, parts=TOKENS)


def profiled(setting: Setting, what: str, run: Callable[[], None], runs: int, parts: int = 1) -> Figures:
    """Of a run, each figure divided by `parts`: wall time, kernels, waits by place, and the kernels that take most."""
    device, activities = setting.device, [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    seconds, divisor = timed(run, device, setting.seconds / 2), runs * parts
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(runs):
            run()
        wait(device)
    events = profiler.key_averages()
    on_device = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    kernels = [
        (event.key, event.count, event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)
        for event in events
        if event.device_type == on_device and not event.key.startswith(("Optimizer.", "ProfilerStep"))
    ]
    if parts > 1:
        yield figure("kernels of a greedy step", sum(count for _, count, _ in kernels) / divisor, "", of=what)
        yield figure("host, of a greedy step", 1e3 * seconds / parts, "ms", of=what)
    busy = sum(taken for *_, taken in kernels) / 1e3 / divisor
    share = busy * parts / 1e3 / seconds
    yield figure(f"{what}: kernels", busy, "ms", wall_ms=1e3 * seconds / parts, busy=share)
    for name, count, taken in sorted(kernels, key=lambda kernel: -kernel[2])[: 4 if setting.small else 16]:
        more = {"share": taken / 1e3 / divisor / busy, "calls": count / divisor}
        yield figure(f"{what}: kernel {name[:110]}", taken / 1e3 / divisor, "ms", **more)
    waits = {event.key: event.count for event in events if event.key in WAITS}
    yield figure(f"{what}: calls that can wait", sum(waits.values()) / divisor, "", **waits, divided_by=divisor)
    if device.type == "cuda":
        found = Waits()
        found.switch(True)
        run()
        found.switch(False)
        yield figure(f"{what}: host waits", sum(found.places.values()) / parts, "", **found.places)


class Waits:
    """Counts the places in Python at which the host waits for the GPU, as torch warns of them."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._catching = warnings.catch_warnings(record=True)

    def switch(self, on: bool) -> None:
        """Count from now on, or no longer."""
        if on:
            self._caught = self._catching.__enter__()
            warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn" if on else "default")
        if not on:
            self._catching.__exit__(None, None, None)
            for caught in self._caught or []:
                if "synchronizing" in str(caught.message):
                    self.places["/".join(Path(caught.filename).parts[-3:]) + f":{caught.lineno}"] += 1
