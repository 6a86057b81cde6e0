"""One recurrent layer as a differentiable function of its tensors.

``recurrent_layer`` chooses: the op alone where nothing needs a gradient, an autograd Function
where something does, the reference under forward-mode differentiation. Eager code does the first
two in ``csrc/layer/autograd.cpp``, which torch.jit.trace records as one operator; what is read by a
compiler or a transform does them here, its Function being ``_Layer``. The backward of both
Functions is ``birnn_cuda::backward``; where the gradients are to be differentiated in turn it is a
Function over that, ``_LayerBackward``, whose own backward differentiates the reference: the second
derivative, and every one after it, is right for each cell.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.overrides import handle_torch_function, has_torch_function

from . import flops as flops  # registers the formulas
from . import ops, reference
from .second_derivatives import differentiate_twice

__all__ = [
    "in_forward_mode",
    "may_need_grad",
    "recurrent_cell",
    "recurrent_layer",
]


def recurrent_layer(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    cell: str,
    num_directions: int,
    precision: str = "ieee",
    with_cell_states: bool = False,
    recompute_activations: bool = False,
    resets: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run one layer, one or two directions; time-major throughout.

    Args:
        input: ``[T, B, I]`` with any strides, or packed ``[N, I]`` together with ``batch_sizes``;
            fp32, fp64, fp16 or bf16, as are all others.
        hx: ``[D, B, P or H]``; None is zeros.
        cx: ``[D, B, H]``, LSTM only; None is zeros.
        weights: for each direction ``weight_ih [G*H, I]``, ``weight_hh [G*H, P or H]``, then if
            biased ``bias_ih [G*H]``, ``bias_hh [G*H]``, then if projected ``weight_hr [P, H]``,
            or of "lstm_peepholes" ``weight_ch [3*H]``, of i, f and o.
        lengths: int64 or int32 ``[B]``; only with a 3-D input. Past a sequence's end the output
            is 0, the state stays, and the reverse direction starts at the end.
        batch_sizes: int64 ``[T]`` on the CPU, as in ``PackedSequence``; only with a 2-D input.
        cell: "tanh", "relu", "gru", "lstm", "gru_reset_before" or "lstm_peepholes".
        num_directions: 1 or 2.
        precision: "ieee" or "tf32"; has a meaning for fp32 on CUDA only.
        with_cell_states: LSTM only; return the cell state that each step leaves, too.
        recompute_activations: keep nothing but the operands and the output for backward, which
            runs the layer once more to have its activations.
        resets: bool ``[T, B]`` on the device of ``input``, true where a sequence begins inside its
            row: the forward direction enters such a step with zero states, and the reverse one
            leaves it with zero states towards the step before; only with a 3-D input.
        recurrent_mask: ``[D, B, P or H]``, by which h is multiplied, at every step, where it enters
            its product with ``weight_hh``, and nowhere else.
        zoneout_h: ``[T, B, D*(P or H)]`` or packed ``[N, D*(P or H)]``, or one row for all,
            ``[1, 1, D*(P or H)]`` or ``[1, D*(P or H)]``: the share of the h before in each new h.
        zoneout_c: the same of c, LSTM only, with D*H for D*(P or H). An LSTM's h comes of its c
            as it is before zoneout.

    The last three are in the dtype of ``input``; there is no gradient of them.

    Returns:
        ``output`` (``[T, B, D*(P or H)]`` or ``[N, D*(P or H)]``), ``h_n`` (``[D, B, P or H]``)
        and ``c_n`` (``[D, B, H]``; for a cell other than the LSTM of shape ``[0]``); with
        ``with_cell_states`` also the cell states, ``[T, B, D*H]`` or ``[N, D*H]``, zeros past the
        lengths.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit together.
        ValueError: on the CPU, a length outside ``[0, T]``, or a reset past a length.
    """
    regularisers = (recurrent_mask, zoneout_h, zoneout_c)
    tensors = (input, hx, cx, lengths, resets, *regularisers, *weights)
    if has_torch_function(tensors):
        overridden: tuple[Tensor, ...] = handle_torch_function(
            recurrent_layer,
            tensors,
            input,
            hx,
            cx,
            weights,
            lengths=lengths,
            batch_sizes=batch_sizes,
            cell=cell,
            num_directions=num_directions,
            precision=precision,
            with_cell_states=with_cell_states,
            recompute_activations=recompute_activations,
            resets=resets,
            recurrent_mask=recurrent_mask,
            zoneout_h=zoneout_h,
            zoneout_c=zoneout_c,
        )
        return overridden
    if in_forward_mode():
        with torch.autocast(input.device.type, enabled=False):
            results = reference.forward_with_cell_states(
                input,
                hx,
                cx,
                weights,
                lengths,
                batch_sizes,
                cell,
                num_directions,
                resets,
                *regularisers,
            )
        return results if with_cell_states else results[:3]
    options = (cell, num_directions, precision, with_cell_states, recompute_activations)
    if not _is_transformed():
        # A trace records the operator; called directly, the function behind it is the quicker.
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
        run: Any = ops.layer if is_traced else ops.extension.eager_layer
        eager: tuple[Tensor, ...] = run(
            input, hx, cx, weights, lengths, batch_sizes, *options, resets, *regularisers
        )
        return eager if with_cell_states else eager[:3]
    if may_need_grad((input, hx, cx, *weights)):
        output, h_n, c_n, _, *cell_states = _Layer.apply(
            input, hx, cx, lengths, batch_sizes, resets, *regularisers, *options, *weights
        )
        return output, h_n, c_n, *cell_states
    output, h_n, c_n, reserve = ops.forward(
        input,
        hx,
        cx,
        weights,
        lengths,
        batch_sizes,
        cell,
        num_directions,
        with_cell_states,  # the reserve holds them
        precision,
        resets,
        *regularisers,
    )
    if with_cell_states:
        return output, h_n, c_n, ops.cell_states(input, c_n, reserve, lengths, batch_sizes)
    return output, h_n, c_n


def recurrent_cell(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Run one step of one direction.

    Args:
        input: ``[B, I]`` or ``[I]``.
        hx, cx: ``[B, H]`` or ``[H]``, as ``input``; None is zeros.
        weights, cell, precision: as of :func:`recurrent_layer`.

    Returns:
        ``h`` and ``c`` in the form of ``hx``; c of shape ``[0]`` for a cell other than the LSTM.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit together.
    """
    is_eager = not (
        has_torch_function((input, hx, cx, *weights))
        or in_forward_mode()
        or _is_transformed()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )
    if is_eager:
        step: tuple[Tensor, Tensor] = ops.extension.eager_cell(
            input, hx, cx, weights, cell, precision
        )
        return step
    added = (0,) if input.dim() == 2 else (0, 0)

    def as_layer(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[(None,) * len(added)]

    _, h, c = recurrent_layer(
        input[(None,) * len(added)],
        as_layer(hx),
        as_layer(cx),
        weights,
        cell=cell,
        num_directions=1,
        precision=precision,
    )
    return h[added], c[added] if cell == "lstm" else c


def in_forward_mode() -> bool:
    """Whether a forward-mode level is open (torch.autograd.forward_ad, torch.func.jvp)."""
    return forward_ad._current_level >= 0


def _is_transformed() -> bool:
    """Whether this call is compiled, exported or transformed by torch.func.

    None of these knows the Function in C++ (csrc/layer/autograd.cpp), which is for eager code:
    there the way through Python makes a training step of a small layer (B=1, H=64) a third longer.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def may_need_grad(tensors: Sequence[Tensor | None]) -> bool:
    if not torch.is_grad_enabled():
        return False
    # Inside a torch.func transform a tensor does not tell whether one of the levels below it is
    # being differentiated, so there the answer is always yes.
    if torch._C._are_functorch_transforms_active():
        return True
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Layer(Function):
    """The layer where it is compiled, exported or transformed.

    Differentiable once by ``birnn_cuda::backward`` and again by `_LayerBackward`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        cell: str,
        num_directions: int,
        precision: str,
        with_cell_states: bool,
        recompute_activations: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        options = (cell, num_directions, with_cell_states or not recompute_activations, precision)
        regularisers = recurrent_mask, zoneout_h, zoneout_c
        output, h_n, c_n, reserve = ops.forward(
            input, hx, cx, weights, lengths, batch_sizes, *options, resets, *regularisers
        )
        if with_cell_states:
            cell_states = ops.cell_states(input, c_n, reserve, lengths, batch_sizes)
            if recompute_activations:
                reserve = reserve.new_empty(0)
            return output, h_n, c_n, reserve, cell_states
        return output, h_n, c_n, reserve

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        *operands, cell, num_directions, precision, _, recompute_activations = inputs[:14]
        output, _, c_n, reserve = outputs[:4]
        kept = None if recompute_activations else reserve
        ctx.save_for_backward(*operands, output, kept, *inputs[14:])
        ctx.options = cell, num_directions, precision
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*((reserve,) if reference.is_lstm(cell) else (c_n, reserve)))

    @staticmethod
    def backward(
        ctx: Any,
        d_output: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        _: None,
        d_cell_states: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        *operands, output, reserve = ctx.saved_tensors[:11]
        weights = ctx.saved_tensors[11:]
        needs_grad = (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[14:])
        if not reference.is_lstm(ctx.options[0]):
            d_c_n = None  # compiled code hands zeros even where there is no gradient
        # The Function is for second derivatives. Dynamo cannot trace it inside a backward, and
        # refuses them anyway.
        differentiable = not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        )
        apply: Any = _LayerBackward.apply if differentiable else _LayerBackward.forward
        gradients = apply(
            d_output,
            d_h_n,
            d_c_n,
            d_cell_states,
            *operands,
            output,
            reserve,
            *ctx.options,
            needs_grad,
            *weights,
        )
        d_input, d_hx, d_cx, *d_weights = (
            gradient if needed else None
            for gradient, needed in zip(gradients, needs_grad, strict=True)
        )
        return d_input, d_hx, d_cx, *[None] * 11, *d_weights


class _LayerBackward(Function):
    """The gradients of the layer; its own backward differentiates the reference.

    ``output`` and ``reserve`` only spare the op some work: they are functions of the operands, and
    the reference computes them again, so no gradient goes through them. A reserve that was not kept
    is computed again here.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        d_output: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        d_cell_states: Tensor | None,
        input: Tensor,
        hx: Tensor | None,
        cx: Tensor | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
        zoneout_h: Tensor | None,
        zoneout_c: Tensor | None,
        output: Tensor,
        reserve: Tensor | None,
        cell: str,
        num_directions: int,
        precision: str,
        needs_grad: tuple[bool, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        regularisers = recurrent_mask, zoneout_h, zoneout_c
        if reserve is None:
            options = (cell, num_directions, True, precision)
            *_, reserve = ops.forward(
                input, hx, cx, weights, lengths, batch_sizes, *options, resets, *regularisers
            )
        defaults = d_cell_states, resets, *regularisers
        d_input, d_hx, d_cx, d_weights = ops.backward(
            d_output,
            d_h_n,
            d_c_n,
            input,
            hx,
            cx,
            weights,
            lengths,
            batch_sizes,
            output,
            reserve,
            cell,
            num_directions,
            precision,
            needs_grad,
            *(() if all(tensor is None for tensor in defaults) else defaults),
        )
        return d_input, d_hx, d_cx, *d_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        *tensors, _, _, cell, num_directions, _, needs_grad = inputs[:19]
        ctx.save_for_backward(*tensors, *inputs[19:])
        ctx.options = cell, num_directions
        ctx.needs_grad = needs_grad
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gg: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangents = ctx.saved_tensors[:4]
        input, hx, cx, lengths, batch_sizes, *constants = ctx.saved_tensors[4:13]
        weights = ctx.saved_tensors[13:]
        cell, num_directions = ctx.options

        def outputs_of(input: Tensor, hx: Any, cx: Any, *weights: Tensor) -> Any:
            return reference.forward_with_cell_states(
                input, hx, cx, weights, lengths, batch_sizes, cell, num_directions, *constants
            )

        d_cotangents, d_operands = differentiate_twice(
            outputs_of,
            cotangents,
            (input, hx, cx, *weights),
            gg,
            ctx.needs_grad,
            (*ctx.needs_input_grad[4:7], *ctx.needs_input_grad[19:]),
        )
        return (*d_cotangents, *d_operands[:3], *[None] * 12, *d_operands[3:])


class _Positional(inspect.Signature):
    """The signature of a function that is called with every argument, each by position.

    Function.apply binds its arguments to forward's signature to fill in defaults. Deriving the
    signature anew in every call takes as long as a small layer, 0.1 ms, and binding the arguments
    a fifth of that; here they are what they are bound to.
    """

    def bind(self, *args: Any) -> Any:
        return _Bound(args)


class _Bound:
    """What Function.apply asks of inspect.BoundArguments."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.kwargs: dict[str, Any] = {}

    def apply_defaults(self) -> None:
        pass


_functions: tuple[Any, ...] = (_Layer, _LayerBackward)
for _function in _functions:
    _signature = inspect.signature(_function.forward)
    _function.forward.__signature__ = _Positional(list(_signature.parameters.values()))


ops.extension.set_python_functions(_LayerBackward.apply, ops.cell_states)
