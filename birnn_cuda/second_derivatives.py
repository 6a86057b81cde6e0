"""The derivatives of a backward pass whose forward pass is differentiable torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["differentiate_twice"]


def differentiate_twice(
    outputs_of: Callable[..., Any],
    cotangents: Sequence[Tensor | None],
    operands: Sequence[Tensor | None],
    gg: Sequence[Tensor | None],
    needs_grad: Sequence[bool],
    needs_operands: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The backward of a backward.

    Args:
        outputs_of: the differentiable forward of the operands, input first; its outputs are those
            that `cotangents` belong to.
        cotangents: what backward was given; None: no gradient of that output.
        operands: what forward was given.
        gg: the gradients of what backward returned, of each operand.
        needs_grad: which of these were asked for.
        needs_operands: of which operands gradients are asked for now.

    Returns:
        The gradients of the cotangents and of the operands.
    """
    outer = [i for i, d in enumerate(cotangents) if d is not None]
    inner = [i for i, g in enumerate(gg) if g is not None and needs_grad[i]]
    wanted = [i for i, needed in enumerate(needs_operands) if needed]
    d_cotangents: list[Tensor | None] = [None] * len(cotangents)
    d_operands: list[Tensor | None] = [None] * len(operands)
    if not inner:
        return d_cotangents, d_operands

    def gradients_of(*tensors: Tensor) -> Any:
        """The gradients at `inner`, of the cotangents at `outer`, the operands at `wanted`."""
        now = _replace(operands, wanted, tensors[len(outer) :])

        def chosen_outputs_of(*tensors: Tensor) -> Any:
            outputs = outputs_of(*_replace(now, inner, tensors))
            return tuple(outputs[i] for i in outer)

        pull_back = _vjp(chosen_outputs_of, [now[i] for i in inner])
        return pull_back(tensors[: len(outer)])

    device_type = next(t for t in operands if t is not None).device.type
    with torch.autocast(device_type, enabled=False):
        pull_back = _vjp(
            gradients_of, [cotangents[i] for i in outer] + [operands[i] for i in wanted]
        )
        gradients = pull_back(tuple(gg[i] for i in inner))
    return (
        _replace(d_cotangents, outer, gradients[: len(outer)]),
        _replace(d_operands, wanted, gradients[len(outer) :]),
    )


def _replace(tensors: Sequence[Any], positions: Sequence[int], by: Sequence[Tensor]) -> list[Any]:
    replaced = list(tensors)
    for position, tensor in zip(positions, by, strict=True):
        replaced[position] = tensor
    return replaced


def _vjp(function: Callable[..., Any], primals: Sequence[Any]) -> Callable[..., Any]:
    """`function`'s vector-Jacobian product at `primals`."""
    pull_back: Callable[..., Any] = torch.func.vjp(function, *primals)[1]
    return pull_back
