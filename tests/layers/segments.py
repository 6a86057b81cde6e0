"""The oracle of resets=: torch's own layer, called on every segment of every row alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def draw_resets(seq_len: int, batch_size: int, pattern: str) -> Tensor:
    """Bool [T, B]. Rows of "mixed" differ: none, every step, the last step, a few."""
    if pattern == "none":
        return torch.zeros(seq_len, batch_size, dtype=torch.bool)
    if pattern == "all":
        return torch.ones(seq_len, batch_size, dtype=torch.bool)
    if pattern == "first":  # the states that are given enter no forward direction
        return (torch.arange(seq_len) == 0).unsqueeze(1).repeat(1, batch_size)
    resets = torch.rand(seq_len, batch_size) < {"rare": 0.1, "mixed": 0.4}[pattern]
    if pattern == "mixed":
        resets[:, 0] = False
        resets[-1, batch_size // 2] = True
        resets[:, batch_size - 1] = True
    return resets


def segments_of(resets: Tensor, length: int) -> Iterator[tuple[int, int]]:
    """First step and end of each segment of a row, of bool [T]."""
    first = 0
    for t in range(1, length):
        if resets[t]:
            yield first, t
            first = t
    if length > 0:
        yield first, length


def call_by_segments(
    layer: Any,
    input: Tensor,
    states: Sequence[Tensor],
    resets: Tensor,
    lengths: Sequence[int] | None = None,
    run: Callable[[Any, Tensor, list[Tensor]], list[Tensor]] | None = None,
) -> list[Tensor]:
    """Output, zeros past the lengths, and final states: of `layer` on each segment alone.

    All in the form that the layer takes, resets too. run: calls the layer on one segment and
    states, and gives output, final states and whatever else lies by step.
    """
    by_time = input.transpose(0, 1) if layer.batch_first else input
    begins = resets.t() if layer.batch_first else resets
    seq_len, batch_size, _ = by_time.shape
    num_directions = 2 if layer.bidirectional else 1
    sizes = [layer.proj_size or layer.hidden_size]
    if layer.mode == "LSTM":
        sizes.append(layer.hidden_size)
    zeros = [input.new_zeros(layer.num_layers * num_directions, 1, size) for size in sizes]
    is_reverse = torch.arange(zeros[0].size(0)) % num_directions == 1
    is_reverse = is_reverse.view(-1, 1, 1)
    columns = []
    for b in range(batch_size):
        length = seq_len if lengths is None else lengths[b]
        given = [state[:, b : b + 1] for state in states] or zeros
        finals = list(given)
        parts: list[list[Tensor]] = []
        for first, end in segments_of(begins[:, b], length):
            # The forward directions begin with what is given at the row's start, the reverse ones
            # at its end, and leave their own at the other end.
            from_start = first == 0 and not bool(begins[0, b])
            enters = torch.where(is_reverse, end == length, from_start)
            own = [torch.where(enters, g, 0) for g in given]
            segment = by_time[first:end, b : b + 1]
            if layer.batch_first:
                segment = segment.transpose(0, 1)
            output, *after = (run or _run)(layer, segment, own)
            if layer.batch_first:
                output = output.transpose(0, 1)
            leaves = torch.where(is_reverse, first == 0, end == length)
            finals = [torch.where(leaves, a, f) for a, f in zip(after, finals, strict=False)]
            parts.append([output, *after[len(sizes) :]])
        if not parts:
            one = torch.zeros_like(by_time[:1, :1])
            if layer.batch_first:
                one = one.transpose(0, 1)
            output, *after = (run or _run)(layer, one, zeros)
            output = output.transpose(0, 1) if layer.batch_first else output
            parts.append([x[:0] for x in (output, *after[len(sizes) :])])
        by_step = [torch.cat(part) for part in zip(*parts, strict=True)]
        by_step = [torch.cat([x, x.new_zeros(seq_len - len(x), *x.shape[1:])]) for x in by_step]
        columns.append([by_step[0], *finals, *by_step[1:]])
    results = [torch.cat(column, 1) for column in zip(*columns, strict=True)]
    if layer.batch_first:
        results[0] = results[0].transpose(0, 1)
    return results


def _run(layer: Any, segment: Tensor, states: list[Tensor]) -> list[Tensor]:
    output, final = layer(segment, tuple(states) if layer.mode == "LSTM" else states[0])
    return [output, *(final if isinstance(final, tuple) else (final,))]
