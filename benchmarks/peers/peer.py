"""Who takes part: this package and its peers, behind one small interface."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, runtime_checkable

from benchmarks.measure.cases import Case
from benchmarks.measure.cuda_graph import GraphRun
from benchmarks.measure.problem import DTYPES, LayerRun, Problem, Tensors
from benchmarks.measure.streams import CellRun, Stream, StreamRun

SUBJECT = "birnn_cuda"
TORCH = "torch.nn"
CELL = " cell"  # ends the name of an entrant that makes one step a call, by the cell's own class
GRAPH = " graph"  # ends the name of an entrant that is replayed from a CUDA graph


class Run(Protocol):
    """A problem, loaded and ready to be stepped."""

    def step(self) -> Any:
        """One pass: the only thing that is timed."""

    def results(self, returned: Any) -> Tensors:
        """What a step computed, under the names and in the shapes of ``Problem.answer``."""


class Peer(Protocol):
    """An implementation of the layer.

    One with ``compiles`` set builds a program for each case, which takes long: the presets say
    for which.
    """

    name: str
    compiles: bool

    def absent(self) -> str | None:
        """Why it cannot take part on this machine, or None."""

    def declines(self, case: Case) -> str | None:
        """Why it does not take part in this case, or None."""

    def build(self, problem: Problem) -> Run:
        """Load a problem."""


@runtime_checkable
class StreamingPeer(Protocol):
    """A peer that can carry states from call to call."""

    def build_stream(self, stream: Stream) -> Run:
        """Load a stream."""


class LayerPeer:
    """A package whose RNN, GRU and LSTM have torch.nn's interface, called eagerly."""

    compiles = False

    def __init__(self, name: str) -> None:
        self.name = name

    def absent(self) -> str | None:
        return import_failure(self.name)

    def declines(self, case: Case) -> str | None:
        return None

    def build(self, problem: Problem, feed: str = "padded") -> LayerRun:
        return LayerRun(self.namespace(), problem, DTYPES[problem.case.dtype], feed)

    def build_stream(self, stream: Stream) -> StreamRun:
        return StreamRun(self.namespace(), stream, DTYPES[stream.case.dtype])

    def build_cell(self, stream: Stream) -> CellRun:
        """The cell's own class, for a case that is one step of one."""
        return CellRun(self.namespace(), stream, DTYPES[stream.case.dtype])

    def namespace(self) -> Any:
        return importlib.import_module(self.name)


class CapturedPeer:
    """Another peer's step, captured once in a CUDA graph and replayed: no launches to pay for."""

    compiles = False

    def __init__(self, peer: LayerPeer) -> None:
        self.peer = peer
        self.name = peer.name + GRAPH

    def absent(self) -> str | None:
        return self.peer.absent()

    def declines(self, case: Case) -> str | None:
        return self.peer.declines(case)

    def build(self, problem: Problem) -> GraphRun:
        return GraphRun(self.peer.build(problem))


class PackedPeer:
    """A layer that is handed the same batch as a PackedSequence, packed outside the timing."""

    compiles = False

    def __init__(self, peer: LayerPeer) -> None:
        self.peer = peer
        self.name = f"{peer.name} packed"

    def absent(self) -> str | None:
        return self.peer.absent()

    def declines(self, case: Case) -> str | None:
        return self.peer.declines(case)

    def build(self, problem: Problem) -> LayerRun:
        return self.peer.build(problem, "packed")


def counterpart(name: str) -> str:
    """The entrant of this package that a peer is compared with: graph to graph, cell to cell."""
    for way in (GRAPH, CELL):
        if name.endswith(way):
            return SUBJECT + way
    return SUBJECT


def is_subject(name: str) -> bool:
    """Whether an entrant is this package."""
    return name in (SUBJECT, SUBJECT + GRAPH, SUBJECT + CELL)


def import_failure(*modules: str) -> str | None:
    """Why one of the modules cannot be imported, or None."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation raises anything
            return f"cannot be imported: {error}"
    return None
