"""A stream: a few steps a call, the states carried from each call to the next.

In inference, as a recognizer does that is fed while somebody speaks. The check covers the carrying:
it compares the outputs of several calls, and the states after the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem, Tensors, make_layer

# Different inputs, fed in turn for ever. Even: a peer may alternate between two sets of buffers.
CALLS = 2


@dataclass
class Stream(Problem):
    """The numbers of a case whose T are the steps of a call; the input is that of all calls."""

    states: tuple[torch.Tensor, ...] = ()  # before the first call: h, or h and c, [L*D, B, H]

    @classmethod
    def begin(cls, case: Case, seed: int) -> Stream:
        """Fresh numbers."""
        whole = Problem.random(replace(case, seq_len=CALLS * case.seq_len), seed)
        generator = torch.Generator().manual_seed(seed)
        size = (case.num_layers * case.num_directions, case.batch_size, case.hidden_size)
        states = [
            (2 * torch.rand(size, generator=generator) - 1).to(whole.input.dtype)
            for _ in range(2 if case.cell == "lstm" else 1)
        ]
        return cls(case, whole.weights, whole.input, whole.d_output, whole.lengths, tuple(states))

    def chunks(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What each call is given, ``[T, B, I]``."""
        chunks: tuple[torch.Tensor, ...] = self.input.to(dtype).split(self.case.seq_len)
        return chunks

    def _torch_results(self, dtype: torch.dtype) -> Tensors:
        run = StreamRun(torch.nn, self, dtype)
        return run.results(run.step())


class StreamRun:
    """A layer of torch.nn, or of a stand-in for it, that is fed a stream."""

    def __init__(self, namespace: ModuleType | Any, stream: Stream, dtype: torch.dtype) -> None:
        self.stream = stream
        self.module = self.make(namespace, dtype).requires_grad_(False).eval()
        states = self.first_states([state.to(dtype) for state in stream.states])
        self.states: Any = tuple(states) if len(states) > 1 else states[0]
        self.feed = self.inputs(stream.chunks(dtype))

    def make(self, namespace: ModuleType | Any, dtype: torch.dtype) -> torch.nn.Module:
        layer = make_layer(namespace, self.stream.case, dtype)
        layer.load_state_dict({k: v.to(dtype) for k, v in self.stream.weights.items()})
        return layer

    def first_states(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return states

    def inputs(self, chunks: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        return itertools.cycle(chunks)

    def step(self) -> Any:
        """One call: all that is timed."""
        output, self.states = self.module(next(self.feed), self.states)
        return output

    def results(self, returned: Any) -> Tensors:
        """What the calls of one turn give, of which the first gave `returned`."""
        outputs = [returned, *(self.step() for _ in range(CALLS - 1))]
        states = self.states if isinstance(self.states, tuple) else (self.states,)
        return {"output": torch.cat(outputs), **dict(zip(("h_n", "c_n"), states, strict=False))}


class CellRun(StreamRun):
    """The same stream through the class of one step: RNNCell, GRUCell or LSTMCell."""

    def make(self, namespace: ModuleType | Any, dtype: torch.dtype) -> torch.nn.Module:
        case = self.stream.case
        cell: torch.nn.Module = getattr(namespace, f"{case.cell.upper()}Cell")(
            case.input_size, case.hidden_size, dtype=dtype
        )
        weights = self.stream.weights.items()
        cell.load_state_dict({k.removesuffix("_l0"): v.to(dtype) for k, v in weights})
        return cell

    def first_states(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return [state[0] for state in states]

    def inputs(self, chunks: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
        return itertools.cycle([chunk[0] for chunk in chunks])

    def step(self) -> Any:
        self.states = self.module(next(self.feed), self.states)
        return self.states[0] if isinstance(self.states, tuple) else self.states

    def results(self, returned: Any) -> Tensors:
        found = super().results(returned)
        output = found.pop("output").unflatten(0, (CALLS, -1))
        return {"output": output, **{name: state.unsqueeze(0) for name, state in found.items()}}


def is_one_cell(case: Case) -> bool:
    """Whether a call of this case is one step of one cell, and so what a cell's class computes."""
    return case.seq_len == 1 and case.num_directions == 1 and case.num_layers == 1
