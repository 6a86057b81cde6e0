"""The ops ``birnn_cuda::forward`` and ``birnn_cuda::backward``: what torch needs to know of them.

Importing this module loads the compiled extension, which registers the ops and their kernels.
Here they get their fake kernels (shapes, strides and dtypes without data: torch.compile,
torch.export, the meta device) and their batching rules (vmap). Their autograd is in
``functional.py``.

One call is one layer, one or two directions; shapes are those of :func:`reference.forward`.
``forward`` returns ``(output, h_n, c_n, reserve)``; with ``training`` the reserve
``[D, rows, reserve_width]`` holds the activations that ``backward`` needs, rows being T*B, or N of
a packed batch on the CPU.
With ``resets``, bool ``[T, B]``, a row holds several sequences (see :func:`reference.forward`);
``recurrent_mask``, ``zoneout_h`` and ``zoneout_c`` are there too.
``backward`` returns ``(d_input, d_hx, d_cx, d_weights)``, a tensor of shape ``[0]`` standing for
each gradient that ``needs_grad`` (input, hx, cx, *weights) did not ask for. It also takes the
gradient of what :func:`cell_states` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from . import reference
from .sequences import padded_to_packed, padding_mask

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "birnn_cuda: the compiled extension birnn_cuda._C could not be loaded "
        f"({error}). Build it with `pip install --no-build-isolation .`, or in a source tree "
        "with `python setup.py build_ext --inplace`; it has to be built against the torch that "
        f"imports it (here {torch.__version__})."
    ) from error

__all__ = [
    "backward",
    "batch_size_of",
    "build_info",
    "cell_states",
    "cost_constants",
    "divisions",
    "extension",
    "forced_kernel",
    "forward",
    "known_devices",
    "layer",
    "normalised_backward",
    "normalised_forward",
    "pack_quantized",
    "plan",
    "quantized_forward",
]

extension = _C
build_info: Callable[[], dict[str, Any]] = _C.build_info
known_devices: Callable[[], list[dict[str, Any]]] = _C.known_devices
plan: Callable[..., dict[str, Any]] = _C.plan
divisions: Callable[..., tuple[list[dict[str, Any]], int]] = _C.divisions
cost_constants: Callable[[], dict[str, float]] = _C.cost_constants
forward = torch.ops.birnn_cuda.forward
backward = torch.ops.birnn_cuda.backward
quantized_forward = torch.ops.birnn_cuda.quantized_forward
pack_quantized = torch.ops.birnn_cuda.pack_quantized
normalised_forward = torch.ops.birnn_cuda.normalised_forward
normalised_backward = torch.ops.birnn_cuda.normalised_backward
layer = torch.ops.birnn_cuda.layer


@contextmanager
def forced_kernel(
    kernel: str = "",
    backward_parts: int = 0,
    forward: dict[str, Any] | None = None,
    backward: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Have every call on a GPU run one kernel: for tests and benchmarks.

    It holds for the whole process, whose backward passes run in threads of their own. A call that
    the kernel does not take raises an error that names those that do.

    Args:
        kernel: "block", "cluster", "grid" or "stepwise"; "" chooses as always.
        backward_parts: into how many parts a backward pass divides its steps, for the weight
            gradients of one to overlap with the recurrence of the next; 0 chooses as always.
        forward, backward: one of :func:`divisions` each, by which that pass is run whatever
            ``kernel`` says; None chooses as always.

    Raises:
        ValueError: there is no such kernel, or a negative number of parts.
    """
    before = _C.forced()
    _C.force(kernel, backward_parts, forward, backward)
    try:
        yield
    finally:
        _C.force(*before)


# Activations kept for backward, in units of H: i, f, g, o, c and r, z, n, W_hn h + b_hn or r * h.
# With zoneout the state that it mixes with the one before, too.
_RESERVE_WIDTH = {"tanh": 0, "relu": 0, "gru": 4, "lstm": 5}
_RESERVE_WIDTH |= {"gru_reset_before": 4, "lstm_peepholes": 5}
_RESERVE_WIDTH_WITH_ZONEOUT = {"tanh": 1, "relu": 1, "gru": 4, "lstm": 6}
_RESERVE_WIDTH_WITH_ZONEOUT |= {"gru_reset_before": 4, "lstm_peepholes": 6}


def cell_states(
    input: Tensor,
    c_n: Tensor,
    reserve: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
) -> Tensor:
    """The cell state that every step of an LSTM left, taken from the reserve of ``forward``.

    Args:
        input, lengths, batch_sizes: as given to ``forward``.
        c_n, reserve: what ``forward`` returned with ``training``.

    Returns:
        ``[T, B, D*H]``, zeros past the lengths, or packed ``[N, D*H]``, in the dtype of ``input``
        and memory of its own.
    """
    hidden_size = c_n.size(2)
    rows = reserve[..., 4 * hidden_size : 5 * hidden_size]  # [D, N, H]
    on_cuda = input.device.type == "cuda"
    if batch_sizes is not None and on_cuda:  # its rows are padded
        padded = torch.unflatten(rows, 1, (batch_sizes.size(0), -1)).movedim(0, 2)
        return padded_to_packed(padded.flatten(2), batch_sizes)
    states = torch.cat(rows.unbind(0), -1).to(input.dtype)  # [N, D*H]
    if batch_sizes is not None:
        return states
    seq_len, batch_size = input.size(0), input.size(1)
    if lengths is None:
        return torch.unflatten(states, 0, (seq_len, batch_size))
    inside = padding_mask(lengths.to(input.device), seq_len)
    if on_cuda:
        states = torch.unflatten(states, 0, (seq_len, batch_size))
    else:  # the rows are those of the batch packed, longest sequences first
        rank = lengths.argsort(descending=True, stable=True).argsort()
        running = inside.sum(1)
        row = (running.cumsum(0) - running).unsqueeze(1) + rank  # [T, B]
        states = states[torch.where(inside, row, 0)]
    return torch.where(inside.unsqueeze(2), states, 0)


def batch_size_of(input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None) -> int:
    """The number of sequences of a padded or a packed input."""
    if batch_sizes is None:
        return input.size(1)
    if hx is not None:
        return hx.size(1)
    return batch_sizes[0].item()  # type: ignore[return-value]  # an unbacked size when traced


def _hidden_size(weights: Sequence[Tensor], num_directions: int) -> int:
    last = weights[len(weights) // num_directions - 1]
    # An odd number of weights: the last is weight_hr, or the vector of peepholes.
    projected = len(weights) // num_directions in (3, 5) and last.dim() == 2
    return last.size(1) if projected else weights[1].size(1)


def _reserve_dtype(input: Tensor) -> torch.dtype:
    is_16_bit = input.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if is_16_bit and input.device.type != "cuda" else input.dtype


def _check_devices(input: Tensor, lengths: Tensor | None, *tensors: Tensor | None) -> None:
    """Raise where a meta tensor is among others: it is what brings such a call to a fake kernel."""
    for tensor in tensors:
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"birnn_cuda: expected all tensors on {input.device} like the input, got one on "
                f"{tensor.device}"
            )
    if lengths is not None and lengths.is_meta and not input.is_meta:
        raise RuntimeError(f"birnn_cuda: lengths are on meta, but the input is on {input.device}")


@torch.library.register_fake("birnn_cuda::forward")  # type: ignore[untyped-decorator]
def _forward_fake(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    training: bool,
    precision: str,
    resets: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    regularisers = recurrent_mask, zoneout_h, zoneout_c
    _check_devices(input, lengths, hx, cx, resets, *regularisers, *weights)
    batch_size = batch_size_of(input, hx, batch_sizes)
    hidden_size = _hidden_size(weights, num_directions)
    state_size = weights[1].size(1)  # P or H
    output = input.new_empty(*input.shape[:-1], num_directions * state_size)
    h_n = input.new_empty(num_directions, batch_size, state_size)
    is_lstm = reference.is_lstm(cell)
    c_n = input.new_empty((num_directions, batch_size, hidden_size) if is_lstm else (0,))
    if not training:
        return output, h_n, c_n, input.new_empty(0)
    if batch_sizes is None:
        rows = input.size(0) * input.size(1)
    elif input.device.type == "cuda":  # its kernels walk padded rows
        rows = batch_sizes.size(0) * batch_size
    else:
        rows = input.size(0)
    has_zoneout = zoneout_h is not None or zoneout_c is not None
    width = (_RESERVE_WIDTH_WITH_ZONEOUT if has_zoneout else _RESERVE_WIDTH)[cell]
    reserve = input.new_empty(
        num_directions, rows, width * hidden_size, dtype=_reserve_dtype(input)
    )
    return output, h_n, c_n, reserve


@torch.library.register_fake("birnn_cuda::quantized_forward")  # type: ignore[untyped-decorator]
def _quantized_forward_fake(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    with_reserve: bool,
    resets: Tensor | None = None,
    packed_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = lengths, batch_sizes, cell, num_directions, with_reserve, "ieee", resets
    results: tuple[Tensor, Tensor, Tensor, Tensor] = _forward_fake(input, hx, cx, weights, *options)
    return results


@torch.library.register_fake("birnn_cuda::backward")  # type: ignore[untyped-decorator]
def _backward_fake(
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
    resets: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    gradients = (d_output, d_h_n, d_c_n, d_cell_states)
    regularisers = recurrent_mask, zoneout_h, zoneout_c
    _check_devices(input, lengths, hx, cx, resets, *regularisers, *weights, output, reserve)
    _check_devices(input, None, *gradients)
    d_input, d_hx, d_cx, *d_weights = (
        input.new_empty(operand.shape if operand is not None and needed else (0,))
        for operand, needed in zip((input, hx, cx, *weights), needs_grad, strict=True)
    )
    return d_input, d_hx, d_cx, d_weights


@torch.library.register_fake("birnn_cuda::normalised_forward")  # type: ignore[untyped-decorator]
def _normalised_forward_fake(
    gates_x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    cell: str,
    num_directions: int,
    eps: float,
    training: bool,
    resets: Tensor | None = None,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(gates_x, lengths, hx, cx, resets, *weights)
    seq_len, batch_size, hidden_size = *gates_x.shape[:2], weights[0].size(1)
    output = gates_x.new_empty(seq_len, batch_size, num_directions * hidden_size)
    h_n = gates_x.new_empty(num_directions, batch_size, hidden_size)
    c_n = gates_x.new_empty((num_directions, batch_size, hidden_size) if cell == "lstm" else (0,))
    if not training:
        return output, h_n, c_n, gates_x.new_empty(0)
    # r z n q or i f g o c, then what was normalised and two scales (csrc/recurrence.h).
    width = (10 if cell == "lstm" else 7) * hidden_size + 2
    return output, h_n, c_n, gates_x.new_empty(num_directions, seq_len * batch_size, width)


@torch.library.register_fake("birnn_cuda::normalised_backward")  # type: ignore[untyped-decorator]
def _normalised_backward_fake(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    d_cell_states: Tensor | None,
    gates_x: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    cell: str,
    num_directions: int,
    eps: float,
    needs_grad: Sequence[bool],
    resets: Tensor | None = None,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    d_gates, d_hx, d_cx, *d_weights = (
        gates_x.new_empty(operand.shape if operand is not None and needed else (0,))
        for operand, needed in zip((gates_x, hx, cx, *weights), needs_grad, strict=True)
    )
    return d_gates, d_hx, d_cx, d_weights


def _is_batched(in_dim: Any) -> bool:
    """Whether vmap maps this argument, given its entry of ``in_dims``."""
    return any(map(_is_batched, in_dim)) if isinstance(in_dim, list | tuple) else in_dim is not None


def _loop_over_batch(
    op: Callable[..., tuple[Any, ...]], batch_size: int, in_dims: tuple[Any, ...], args: Any
) -> tuple[Any, Any]:
    """The batching rule that always holds: one call for each entry, results stacked at 0."""

    if batch_size == 0:
        raise RuntimeError("birnn_cuda: vmap over a dimension of size 0 is not supported")

    def entry(arg: Any, in_dim: Any, index: int) -> Any:
        if isinstance(in_dim, list | tuple):
            return [entry(a, d, index) for a, d in zip(arg, in_dim, strict=True)]
        return arg if in_dim is None else arg.select(in_dim, index).contiguous()

    def stack(results: Sequence[Any]) -> Any:
        if isinstance(results[0], list):
            return [stack(parts) for parts in zip(*results, strict=True)]
        return torch.stack(tuple(results))

    calls = [
        op(*(entry(arg, in_dim, index) for arg, in_dim in zip(args, in_dims, strict=True)))
        for index in range(batch_size)
    ]
    outputs = tuple(stack(results) for results in zip(*calls, strict=True))
    return outputs, tuple([0] * len(o) if isinstance(o, list) else 0 for o in outputs)


@torch.library.register_vmap("birnn_cuda::forward")  # type: ignore[untyped-decorator]
def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Fold the mapped dimension into the batch where the weights are shared.

    Not with both lengths and a reserve: only without lengths are the rows of the reserve known to
    be those of the batch, step by step. Nor with zoneout, whose shares may stand for all rows.
    """
    # The arguments that have defaults may be left out.
    args, in_dims = ((*given, None, None, None, None)[:14] for given in (args, in_dims))
    input, hx, cx, weights, lengths, batch_sizes, *options, resets, mask, zoneout_h, zoneout_c = (
        args
    )
    input_dim, hx_dim, cx_dim, weights_dim, lengths_dim, *_, resets_dim, mask_dim, _, _ = in_dims
    training = options[2]
    if (
        batch_sizes is not None
        or _is_batched(weights_dim)
        or (lengths is not None and training)
        or zoneout_h is not None
        or zoneout_c is not None
        or info.batch_size == 0
    ):
        return _loop_over_batch(forward, info.batch_size, in_dims, args)

    def fold(tensor: Tensor | None, in_dim: int | None, before: int) -> Tensor | None:
        """Move the mapped dimension V to just before the batch dimension and merge the two."""
        if tensor is None:
            return None
        if in_dim is None:
            shape = tensor.shape
            tensor = tensor.unsqueeze(before)
            tensor = tensor.expand(*shape[:before], info.batch_size, *shape[before:])
        else:
            tensor = tensor.movedim(in_dim, before)
        return tensor.flatten(before, before + 1)

    output, h_n, c_n, reserve = forward(
        fold(input, input_dim, 1),
        fold(hx, hx_dim, 1),
        fold(cx, cx_dim, 1),
        weights,
        fold(lengths, lengths_dim, 0),
        None,
        *options,
        fold(resets, resets_dim, 1),
        fold(mask, mask_dim, 1),
    )
    mapped = info.batch_size
    batch_size = output.size(1) // mapped

    def unfold(state: Tensor) -> Tensor:
        if state.dim() == 1:  # shape [0]: not an LSTM, not training
            return state.unsqueeze(0).expand(mapped, 0)
        return torch.unflatten(state, 1, (mapped, batch_size)).movedim(1, 0)

    if reserve.dim() == 1:
        reserve = reserve.unsqueeze(0).expand(mapped, 0)
    else:  # [D, T*V*B, W] to [V, D, T*B, W]
        reserve = torch.unflatten(reserve, 1, (output.size(0), mapped, batch_size))
        reserve = reserve.movedim(2, 0).flatten(2, 3)
    return (unfold(output), unfold(h_n), unfold(c_n), reserve), (0, 0, 0, 0)


@torch.library.register_vmap("birnn_cuda::backward")  # type: ignore[untyped-decorator]
def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _loop_over_batch(backward, info.batch_size, in_dims, args)


@torch.library.register_vmap("birnn_cuda::normalised_forward")  # type: ignore[untyped-decorator]
def _normalised_forward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _loop_over_batch(normalised_forward, info.batch_size, in_dims, args)


@torch.library.register_vmap("birnn_cuda::normalised_backward")  # type: ignore[untyped-decorator]
def _normalised_backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    return _loop_over_batch(normalised_backward, info.batch_size, in_dims, args)


# torch.autograd.grad(..., is_grads_batched=True), torch.autograd.functional.jacobian(...,
# vectorize=True) and gradcheck still map over the backward by the vmap that came before
# torch.func's. Its fallback takes no op that returns a list, so it needs a rule of its own.


def _older_vmap_rule(op: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    def rule(*args: Any) -> tuple[Any, ...]:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        # A tensor that is not mapped at this level is given a dimension of size 1 instead.
        plain, spec = tree_flatten(args)
        plain = [
            torch._remove_batch_dim(x, level, 1, 0) if isinstance(x, Tensor) else x for x in plain
        ]
        mapped = max(x.size(0) for x in plain if isinstance(x, Tensor))
        plain = [x.expand(mapped, *x.shape[1:]) if isinstance(x, Tensor) else x for x in plain]
        in_dims = [0 if isinstance(x, Tensor) else None for x in plain]
        torch._C._vmapmode_decrement_nesting()
        try:
            outputs, _ = _loop_over_batch(
                op, mapped, tree_unflatten(in_dims, spec), tree_unflatten(plain, spec)
            )
        finally:
            torch._C._vmapmode_increment_nesting()
        batched: tuple[Any, ...] = tree_map(lambda x: torch._add_batch_dim(x, 0, level), outputs)
        return batched

    return rule


_older_vmap = torch.library.Library("birnn_cuda", "IMPL")
_older_vmap.impl("forward", _older_vmap_rule(forward), "Batched")
_older_vmap.impl("backward", _older_vmap_rule(backward), "Batched")
_older_vmap.impl("normalised_forward", _older_vmap_rule(normalised_forward), "Batched")
_older_vmap.impl("normalised_backward", _older_vmap_rule(normalised_backward), "Batched")
