"""Time on the GPU, by its own clock: CUDA events around every call, on a cold L2 cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmarks.measure.timing import Step, Stopwatch

# What is written between two calls, as a multiple of the L2 cache: nothing of the call before is
# left in it, as in a model whose other layers come between.
FLUSH_FACTOR = 2


class Event(Protocol):
    """A mark in a stream of work."""

    def record(self) -> Any: ...

    def synchronize(self) -> Any: ...

    def elapsed_time(self, end_event: Any) -> float: ...


def cuda_event() -> Event:
    event: Event = torch.cuda.Event(enable_timing=True)
    return event


class EventClock:
    """Seconds a call took on the device, on average; L2 is overwritten ahead of each.

    While the device writes, the host launches: as far as that lets it get ahead, its launches are
    not in the time. Beyond that the device waits for the host, and this is in the time, as it is in
    the user's.
    """

    def __init__(self, flush: Step, make_event: Callable[[], Event] = cuda_event) -> None:
        self.flush = flush
        self.make_event = make_event

    def __call__(self, step: Step, repeats: int) -> float:
        if repeats > 1:
            step()  # meets what the entrant before left behind: it would weigh on short calls alone
        marks = [(self.make_event(), self.make_event()) for _ in range(repeats)]
        for start, stop in marks:
            self.flush()
            start.record()
            step()
            stop.record()
        marks[-1][1].synchronize()
        return sum(start.elapsed_time(stop) for start, stop in marks) / 1000 / repeats


class HostClock:
    """Seconds that the host was busy with a call, on average: the device is idle when it begins.

    A call of very many launches fills the device's queue, and then waits: its time is that of the
    device, and more than the launches alone would need.
    """

    def __init__(self, synchronize: Callable[[], Any] = torch.cuda.synchronize) -> None:
        self.synchronize = synchronize

    def __call__(self, step: Step, repeats: int) -> float:
        seconds = 0.0
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            step()
            seconds += time.perf_counter() - start
        self.synchronize()
        return seconds / repeats


def cuda_stopwatch() -> Stopwatch:
    """Both clocks for the current device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    scratch = torch.empty(FLUSH_FACTOR * properties.L2_cache_size, dtype=torch.int8, device="cuda")
    return Stopwatch(EventClock(scratch.zero_), HostClock())
