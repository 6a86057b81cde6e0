"""Rows of several sequences: where they begin, and the right answer.

The answer is torch.nn in fp64, on a PackedSequence of all sequences of all rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import LayerRun, Problem, Tensors


@dataclass
class Rows(Problem):
    """A problem of equal lengths, and where sequences begin in it; at step 0 none does anew."""

    resets: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))  # [T, B]

    @classmethod
    def draw(cls, case: Case, seed: int, share: float) -> Rows:
        """The same numbers for every share of steps that begin a sequence."""
        plain = Problem.random(case, seed)
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(case.seq_len, case.batch_size, generator=generator)
        resets = places < share
        resets[0] = False
        return cls(case, plain.weights, plain.input, plain.d_output, plain.lengths, resets)

    def sizes(self) -> list[list[int]]:
        """Of each row: the lengths of its sequences."""
        found = []
        for row in self.resets.t():
            begins = [0, *row.nonzero().flatten().tolist(), len(row)]
            found.append([end - begin for begin, end in itertools.pairwise(begins)])
        return found

    def _torch_results(self, dtype: torch.dtype) -> Tensors:
        run = segments_run(self, dtype)
        return run.results(run.step())


def resets_run(namespace: Any, rows: Rows, dtype: torch.dtype) -> LayerRun:
    """A layer that takes resets=."""
    run = LayerRun(namespace, rows, dtype)
    run.kwargs["resets"] = rows.resets
    return run


def segments_run(rows: Rows, dtype: torch.dtype) -> LayerRun:
    """torch.nn on all sequences of all rows as one PackedSequence: for the answer alone."""
    namespace = SimpleNamespace(
        **{each.__name__: _by_segments(each) for each in (nn.RNN, nn.GRU, nn.LSTM)}
    )
    run = LayerRun(namespace, rows, dtype)
    run.kwargs["sizes"] = rows.sizes()
    return run


def _by_segments(layer_class: Any) -> Any:
    class BySegments(layer_class):
        def forward(self, input: Tensor, sizes: list[list[int]]) -> Any:
            lengths = torch.tensor([n for own in sizes for n in own])
            number = torch.arange(len(lengths)).repeat_interleave(lengths)
            step = torch.cat([torch.arange(int(n)) for n in lengths])
            nothing = input.new_zeros(int(lengths.max()), len(lengths), input.size(2))
            padded = nothing.index_put((step, number), input.transpose(0, 1).flatten(0, 1))
            packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
            output, final = super().forward(packed)
            output = pad_packed_sequence(output)[0][step, number]
            after_last = torch.tensor([len(own) for own in sizes]).cumsum(0)
            last, first = after_last - 1, after_last - torch.tensor([len(own) for own in sizes])

            def of_rows(state: Tensor) -> Tensor:
                """The forward direction's at the end of a row, the reverse one's at its start."""
                ends = [last, first] if self.bidirectional else [last]
                return torch.stack([each[index] for each, index in zip(state, ends, strict=True)])

            final = tuple(of_rows(s) for s in final) if isinstance(final, tuple) else of_rows(final)
            return output.unflatten(0, (len(sizes), -1)).transpose(0, 1), final

    return BySegments
