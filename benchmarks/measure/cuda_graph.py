"""A step captured in a CUDA graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from benchmarks.measure.problem import Tensors

WARM_UPS = 3


class Steppable(Protocol):
    """What can be captured: the same kernels on the same addresses in every step."""

    def step(self) -> Any: ...

    def results(self, returned: Any) -> Tensors: ...


class GraphRun:
    """Another run's step, replayed.

    The steps before the capture, on the stream that is captured, let libraries choose their kernels
    and allocate what they keep for it. For training the gradients are None when the captured
    backward begins, so that it allocates them from the graph's own memory: every replay writes the
    same tensors.
    """

    def __init__(self, run: Steppable) -> None:
        self.run = run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run.step()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.returned = run.step()

    def step(self) -> Any:
        self.graph.replay()
        return self.returned

    def results(self, returned: Any) -> Tensors:
        return self.run.results(returned)
