"""Who takes part: this package and its peers, behind one small interface."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from benchmarks.cases import Case
from benchmarks.problem import DTYPES, LayerRun, Problem, Tensors

SUBJECT = "birnn_cuda"


class Run(Protocol):
    """A problem, loaded and ready to be stepped."""

    def step(self) -> Any:
        """One pass: the only thing that is timed."""

    def results(self, returned: Any) -> Tensors:
        """What a step computed, under the names and in the shapes of ``Problem.answer``."""


class Peer(Protocol):
    """An implementation of the layer."""

    name: str

    def absent(self) -> str | None:
        """Why it cannot take part on this machine, or None."""

    def declines(self, case: Case) -> str | None:
        """Why it does not take part in this case, or None."""

    def build(self, problem: Problem) -> Run:
        """Load a problem."""


class LayerPeer:
    """A package whose RNN, GRU and LSTM have torch.nn's interface."""

    def __init__(self, name: str) -> None:
        self.name = name

    def absent(self) -> str | None:
        try:
            importlib.import_module(self.name)
        except ImportError as error:
            return f"cannot be imported: {error}"
        return None

    def declines(self, case: Case) -> str | None:
        return None

    def build(self, problem: Problem, feed: str = "padded") -> Run:
        namespace = importlib.import_module(self.name)
        return LayerRun(namespace, problem, DTYPES[problem.case.dtype], feed)
