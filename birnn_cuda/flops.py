"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operators: their products.

A product of ``[m, k]`` and ``[k, n]`` is 2*m*k*n, as torch counts. A step of a sequence reads each
matrix of each direction once; steps past a sequence's end are not computed, so not counted, where
the lengths are known: on a fake or meta tensor every step counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import ops

__all__: list[str] = []


def _num_rows(input: Tensor, lengths: Tensor | None, batch_sizes: Tensor | None) -> int:
    """The steps of all sequences."""
    if batch_sizes is not None:
        return input.size(0)
    seq_len, batch_size = input.size(0), input.size(1)
    unknown = lengths is None or lengths.is_meta or _is_fake(lengths)
    if unknown:
        return seq_len * batch_size
    return int(lengths.clamp(0, seq_len).sum())  # type: ignore[union-attr]


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def _matrix_sizes(weights: Sequence[Tensor]) -> list[int]:
    """The number of elements of each weight, 0 of a bias."""
    return [weight.numel() if weight.dim() == 2 else 0 for weight in weights]


@register_flop_formula(ops.forward, get_raw=True)
def _forward_flops(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    *options: Any,
    out_val: Any = None,
    **named_options: Any,
) -> int:
    return 2 * _num_rows(input, lengths, batch_sizes) * sum(_matrix_sizes(weights))


@register_flop_formula(ops.backward, get_raw=True)
def _backward_flops(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    cell: str,
    num_directions: int,
    precision: str,
    needs_grad: Sequence[bool],
    d_cell_states: Tensor | None = None,
    *regularisers: Any,
    out_val: Any = None,
    **named_regularisers: Any,
) -> int:
    sizes = _matrix_sizes(weights)
    per_direction = len(weights) // num_directions
    of_input = sum(sizes[::per_direction])
    carried = sum(sizes) - of_input  # dh, through weight_hh and weight_hr
    d_weights = sum(size for size, needed in zip(sizes, needs_grad[3:], strict=True) if needed)
    products = carried + d_weights + (of_input if needs_grad[0] else 0)
    return 2 * _num_rows(input, lengths, batch_sizes) * products
