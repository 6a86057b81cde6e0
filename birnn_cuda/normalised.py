"""Layer-normalised GRU and LSTM: one layer as a differentiable function of its tensors.

Ba, Kiros & Hinton 2016, "Layer normalization", arXiv 1607.06450. With ``norm(x)`` the numbers of a
vector less their mean, divided by their standard deviation, times a weight each::

    GRU    as reference.py has it, with norm_ih(W_ih x) for W_ih x and norm_hh(W_hh h) for W_hh h
    LSTM   the same, and h' = o * tanh(norm_c(c') + bias_c)

Each norm of a product is over all gates together. The input's part is projected and normalised by
operators of torch, for all steps at once. The recurrence on that is the operator
``birnn_cuda::normalised_forward`` on a CPU and on CUDA; elsewhere, and under forward-mode
differentiation, it is the reference below, step by step in operators of torch. Its second
derivatives are the reference's everywhere. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.functional import layer_norm, linear

from . import ops, reference
from .functional import in_forward_mode, may_need_grad
from .second_derivatives import differentiate_twice
from .sequences import packed_lengths, packed_to_padded, padded_to_packed, padding_mask

__all__ = ["normalised_layer"]

HAS_OPERATOR = ("cpu", "cuda", "meta")  # device types


def normalised_layer(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    norms: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    cell: str,
    num_directions: int,
    eps: float = 1e-5,
    precision: str = "ieee",
    with_cell_states: bool = False,
    recompute_activations: bool = False,
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run one layer, one or two directions; time-major throughout.

    Args:
        input, hx, cx, weights, lengths, batch_sizes, num_directions, precision, with_cell_states,
            recompute_activations, resets: as of :func:`functional.recurrent_layer`, without
            projection; the input's projection has the precision of torch's operators.
        norms: for each direction ``norm_ih [G*H]`` and ``norm_hh [G*H]``, then of an LSTM ``norm_c
            [H]`` and ``bias_c [H]``.
        cell: "gru" or "lstm".
        eps: added to each variance.

    Returns:
        As :func:`functional.recurrent_layer`.

    Raises:
        RuntimeError: shapes that do not fit together.
        ValueError: on the CPU, a length outside ``[0, T]``, or a reset past a length.
    """
    device_type = input.device.type
    may_autocast = torch._C._is_any_autocast_enabled() and torch.amp.is_autocast_available(
        device_type
    )
    if may_autocast and torch.is_autocast_enabled(device_type):  # the caller has cast
        with torch.autocast(device_type, enabled=False):
            return normalised_layer(
                *(input, hx, cx, weights, norms),
                lengths=lengths,
                batch_sizes=batch_sizes,
                cell=cell,
                num_directions=num_directions,
                eps=eps,
                precision=precision,
                with_cell_states=with_cell_states,
                recompute_activations=recompute_activations,
                resets=resets,
            )
    dtype = input.dtype
    if dtype in (torch.float16, torch.bfloat16):
        input, hx, cx = input.float(), _as_float(hx), _as_float(cx)
        weights, norms = [w.float() for w in weights], [w.float() for w in norms]
    if batch_sizes is not None:
        input, lengths = packed_to_padded(input, batch_sizes), packed_lengths(batch_sizes)
    if lengths is not None:
        inside = padding_mask(lengths.to(input.device), input.size(0)).unsqueeze(2)
        input = torch.where(inside, input, 0)  # nothing past an end reaches a gradient
    count, num_norms = len(weights) // num_directions, len(norms) // num_directions
    gates: list[Tensor] = []
    recurrent: list[Tensor] = []
    for d in range(num_directions):
        weight_ih, weight_hh, *biases = weights[d * count : (d + 1) * count]
        norm_ih, norm_hh, *norm_c = norms[d * num_norms : (d + 1) * num_norms]
        bias_ih, bias_hh = biases or (None, torch.zeros_like(norm_hh))
        projected = linear(input, weight_ih)
        gates.append(layer_norm(projected, (weight_ih.size(0),), norm_ih, bias_ih, eps))
        recurrent += [weight_hh, norm_hh, bias_hh, *norm_c]
    gates_x = torch.cat(gates, 2)  # [T, B, D*G*H]
    results = _recurrence(
        *(gates_x, hx, cx, recurrent, lengths, resets, cell, num_directions, eps),
        precision,
        with_cell_states,
        recompute_activations,
    )
    output, h_n, c_n, *cells = (result.to(dtype) for result in results)
    if batch_sizes is not None:
        output, *cells = (padded_to_packed(values, batch_sizes) for values in (output, *cells))
    return output, h_n, c_n, *cells


def _recurrence(
    gates_x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],  # of each direction weight_hh, norm_hh, bias_hh, norm_c, bias_c
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    num_directions: int,
    eps: float,
    precision: str,
    with_cell_states: bool,
    recompute_activations: bool,
) -> tuple[Tensor, ...]:
    options = cell, num_directions, eps
    if gates_x.device.type not in HAS_OPERATOR or in_forward_mode():
        with torch.autocast(gates_x.device.type, enabled=False):
            results = _reference(gates_x, hx, cx, weights, lengths, resets, *options)
        return results if with_cell_states else results[:3]
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if may_need_grad((gates_x, hx, cx, *weights)) and not is_traced:
        output, h_n, c_n, _, *cells = _Recurrence.apply(
            gates_x,
            hx,
            cx,
            lengths,
            resets,
            *options,
            precision,
            with_cell_states,
            recompute_activations,
            *weights,
        )
        return output, h_n, c_n, *cells
    output, h_n, c_n, reserve = ops.normalised_forward(
        gates_x, hx, cx, weights, lengths, *options, with_cell_states, resets, precision
    )
    if with_cell_states:
        return output, h_n, c_n, ops.cell_states(gates_x, c_n, reserve, lengths, None)
    return output, h_n, c_n


class _Recurrence(Function):
    """Differentiable once by the operator and again by `_RecurrenceBackward`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gates_x: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        cell: str,
        num_directions: int,
        eps: float,
        precision: str,
        with_cell_states: bool,
        recompute_activations: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        keeps = with_cell_states or not recompute_activations
        output, h_n, c_n, reserve = ops.normalised_forward(
            *(gates_x, hx, cx, weights, lengths, cell, num_directions, eps, keeps, resets),
            precision,
        )
        if not with_cell_states:
            return output, h_n, c_n, reserve
        cells = ops.cell_states(gates_x, c_n, reserve, lengths, None)
        return output, h_n, c_n, reserve, cells

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        *operands, cell, num_directions, eps, precision, _, recompute_activations = inputs[:11]
        output, _, c_n, reserve = outputs[:4]
        kept = None if recompute_activations else reserve
        ctx.save_for_backward(*operands, output, kept, *inputs[11:])
        ctx.options = cell, num_directions, eps, precision
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*((reserve,) if cell == "lstm" else (c_n, reserve)))

    @staticmethod
    def backward(
        ctx: Any,
        d_output: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        _: None,
        d_cells: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        *operands, output, reserve = ctx.saved_tensors[:7]
        needs_grad = (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[11:])
        if ctx.options[0] != "lstm":
            d_c_n = None
        differentiable = not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        )
        apply: Any = _RecurrenceBackward.apply if differentiable else _RecurrenceBackward.forward
        gradients = apply(
            *(d_output, d_h_n, d_c_n, d_cells),
            *operands,
            output,
            reserve,
            *ctx.options,
            needs_grad,
            *ctx.saved_tensors[7:],
        )
        d_gates, d_hx, d_cx, *d_weights = (
            gradient if needed else None
            for gradient, needed in zip(gradients, needs_grad, strict=True)
        )
        return d_gates, d_hx, d_cx, *[None] * 8, *d_weights


class _RecurrenceBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        d_output: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        d_cells: Tensor | None,
        gates_x: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        output: Tensor,
        reserve: Tensor | None,
        cell: str,
        num_directions: int,
        eps: float,
        precision: str,
        needs_grad: tuple[bool, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        options = cell, num_directions, eps
        if reserve is None:
            *_, reserve = ops.normalised_forward(
                gates_x, hx, cx, weights, lengths, *options, True, resets, precision
            )
        d_gates, d_hx, d_cx, d_weights = ops.normalised_backward(
            *(d_output, d_h_n, d_c_n, d_cells, gates_x, hx, cx, weights, lengths, output, reserve),
            *options,
            needs_grad,
            resets,
            precision,
        )
        return d_gates, d_hx, d_cx, *d_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        *tensors, _, _, cell, num_directions, eps, _, needs_grad = inputs[:16]
        ctx.save_for_backward(*tensors, *inputs[16:])
        ctx.options = cell, num_directions, eps
        ctx.needs_grad = needs_grad
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gg: Tensor | None) -> tuple[Tensor | None, ...]:
        gates_x, hx, cx, lengths, resets, *weights = ctx.saved_tensors[4:]

        def outputs_of(gates_x: Tensor, hx: Any, cx: Any, *weights: Tensor) -> Any:
            return _reference(gates_x, hx, cx, weights, lengths, resets, *ctx.options)

        needs_operands = (*ctx.needs_input_grad[4:7], *ctx.needs_input_grad[16:])
        operands = (gates_x, hx, cx, *weights)
        cotangents = ctx.saved_tensors[:4]
        d_cotangents, d_operands = differentiate_twice(
            outputs_of, cotangents, operands, gg, ctx.needs_grad, needs_operands
        )
        return (*d_cotangents, *d_operands[:3], *[None] * 9, *d_operands[3:])


def _reference(
    gates_x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    num_directions: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The recurrence in plain torch: output, h_n, c_n and the cell states of every step."""
    count = len(weights) // num_directions
    inside = None
    if lengths is not None:
        inside = padding_mask(lengths.to(gates_x.device), gates_x.size(0)).unsqueeze(2)
    if resets is not None:
        resets = resets.unsqueeze(2)
        resets = resets if inside is None else resets & inside
    parts = []
    for d, gates in enumerate(gates_x.chunk(num_directions, 2)):
        weight_hh, norm_hh, bias_hh, *of_c = weights[d * count : (d + 1) * count]
        zeros = gates.new_zeros(gates.size(1), weight_hh.size(1))
        h = zeros if hx is None else hx[d]
        c = zeros if cx is None or cell != "lstm" else cx[d]

        def step(
            t: int,
            h: Tensor,
            c: Tensor,
            gates: Tensor = gates,
            weight_hh: Tensor = weight_hh,
            norm_hh: Tensor = norm_hh,
            bias_hh: Tensor = bias_hh,
            of_c: Sequence[Tensor] = of_c,
        ) -> tuple[Tensor, Tensor]:
            gates_h = _norm(h @ weight_hh.t(), eps) * norm_hh + bias_hh
            if cell == "gru":
                return reference.gru(gates[t], gates_h, h), c
            i, f, g, o = (gates[t] + gates_h).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            norm_c, bias_c = of_c
            return torch.sigmoid(o) * torch.tanh(_norm(c, eps) * norm_c + bias_c), c

        parts.append(reference.walk(step, gates.size(0), h, c, inside, resets, reverse=d == 1))
    output, cells, h_n, c_n = zip(*parts, strict=True)
    nothing = gates_x.new_empty(0)
    is_lstm = cell == "lstm"
    return (
        torch.cat(output, 2),
        torch.stack(h_n),
        torch.stack(c_n) if is_lstm else nothing,
        torch.cat(cells, 2) if is_lstm else nothing,
    )


def _norm(x: Tensor, eps: float) -> Tensor:
    deviation = x - x.mean(1, keepdim=True)
    return deviation * torch.rsqrt(deviation.square().mean(1, keepdim=True) + eps)


def _as_float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
