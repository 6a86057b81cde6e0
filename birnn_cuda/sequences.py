"""Sequences of different lengths: padded with ``lengths``, ``PackedSequence``, nested tensors.

A padded batch is time-major, ``[T, B, ...]``, with ``lengths`` ``[B]``. A packed batch is what
:class:`torch.nn.utils.rnn.PackedSequence` holds: ``data`` ``[N, ...]``, the rows of step 0 first,
and ``batch_sizes`` ``[T]`` (int64, on the CPU, non-increasing, sum N): how many sequences are
still running at each step. A nested tensor of layout ``torch.jagged``, ``[B, ragged, ...]``, holds
the sequences one after another: ``values`` ``[N, ...]``, those of sequence b from ``offsets[b]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "check_lengths",
    "check_lengths_form",
    "check_nested_form",
    "check_resets_form",
    "nested_to_padded",
    "packed_lengths",
    "packed_to_padded",
    "padded_to_nested",
    "padded_to_packed",
    "padding_mask",
]


def check_lengths(lengths: Tensor, seq_len: int) -> None:
    """Check that every length lies in ``[0, seq_len]``.

    The layers check the values of ``lengths`` only where the tensor lies on the CPU: on a device
    that would make the host wait, so the kernels clamp to ``[0, seq_len]`` instead. This function
    is for those who want the error all the same: it synchronises with the device.

    Args:
        lengths: int64 or int32 ``[B]``, on any device.
        seq_len: T, the number of steps of the padded batch.

    Raises:
        TypeError: ``lengths`` is not a tensor.
        ValueError: wrong dtype or number of dimensions, or a value outside ``[0, seq_len]``;
            the message names the first such value and its index.
    """
    check_lengths_form(lengths)
    for index, value in enumerate(lengths.tolist()):
        if not 0 <= value <= seq_len:
            raise ValueError(
                f"lengths[{index}] is {value} but must be between 0 and the {seq_len} steps of "
                "the input"
            )


def check_lengths_form(
    lengths: Tensor, batch_size: int | None = None, is_batched: bool = True
) -> None:
    """Check type, dtype, dimensions and, given ``batch_size``, count: all but the values."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"lengths must be int64 or int32, got {lengths.dtype}")
    if lengths.dim() != int(is_batched):
        expected = "1 dimension" if is_batched else "no dimension for an unbatched input"
        raise ValueError(f"lengths must have {expected}, got {lengths.dim()}")
    if not is_batched or batch_size is None or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # a trace would keep the example's answer: there the operator itself counts
    if lengths.size(0) != batch_size:
        raise ValueError(
            f"lengths must hold one length for each of the {batch_size} sequences of the batch, "
            f"got {lengths.size(0)}"
        )


def check_resets_form(resets: Tensor, input: Tensor, is_batched: bool) -> None:
    """Check type, dtype, device, dimensions and sizes of ``resets`` for a padded ``input``."""
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets must be a tensor, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise ValueError(
            f"resets must be bool, true where a sequence begins, got {resets.dtype}: "
            "resets.bool() is true where a number is not 0"
        )
    sizes = input.shape[:-1]
    if resets.dim() != len(sizes):
        expected = "2 dimensions" if is_batched else "1 dimension for an unbatched input"
        raise ValueError(f"resets must have {expected}, got {resets.dim()}")
    if resets.device != input.device:
        raise RuntimeError(
            "Input and resets tensors are not at the same device, found input tensor at "
            f"{input.device} and resets tensor at {resets.device}"
        )
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # a trace would keep the example's answer: there the operator itself compares
    if resets.shape != sizes:
        raise ValueError(
            f"resets must have the sizes {tuple(sizes)} of the input without its features, got "
            f"{tuple(resets.shape)}"
        )


def padding_mask(lengths: Tensor, seq_len: int) -> Tensor:
    """Bool ``[T, B]``, true where a step lies inside its sequence; ``[T]`` of a single length."""
    steps = torch.arange(seq_len, device=lengths.device)
    return steps.view(-1, *[1] * lengths.dim()) < lengths


def packed_lengths(batch_sizes: Tensor) -> Tensor:
    """The length of each packed sequence, int64 ``[B]`` on the CPU, non-increasing."""
    sequences = torch.arange(int(batch_sizes[0]))
    return (batch_sizes.unsqueeze(1) > sequences).sum(0)


def packed_to_padded(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """``[N, ...]`` to ``[T, B, ...]``, zeros past the end of each sequence. Differentiable."""
    seq_len, batch_size = batch_sizes.numel(), int(batch_sizes[0])
    mask = padding_mask(packed_lengths(batch_sizes), seq_len)
    step_start = batch_sizes.cumsum(0) - batch_sizes
    rows = torch.where(mask, step_start.unsqueeze(1) + torch.arange(batch_size), 0)
    padded = data.index_select(0, rows.flatten().to(data.device))
    padded = torch.unflatten(padded, 0, (seq_len, batch_size))
    inside = mask.to(data.device).reshape(seq_len, batch_size, *[1] * (data.dim() - 1))
    return torch.where(inside, padded, 0)


def padded_to_packed(padded: Tensor, batch_sizes: Tensor) -> Tensor:
    """``[T, B, ...]`` to ``[N, ...]``, dropping what lies past the ends. Differentiable."""
    mask = padding_mask(packed_lengths(batch_sizes), batch_sizes.numel())
    rows = mask.flatten().nonzero().squeeze(1)
    return padded.flatten(0, 1).index_select(0, rows.to(padded.device))


def check_nested_form(nested: Tensor) -> None:
    """Check that a nested tensor is ``[B, ragged, features]`` in the layout ``torch.jagged``."""
    if nested.layout != torch.jagged:
        raise ValueError(
            f"a NestedTensor must have the layout torch.jagged, got {nested.layout}: make it with "
            "torch.nested.nested_tensor(sequences, layout=torch.jagged), or convert it with "
            "torch.nested.as_nested_tensor(list(nested.unbind()), layout=torch.jagged)"
        )
    ragged_dim = nested._ragged_idx  # type: ignore[attr-defined]
    if nested.dim() != 3 or ragged_dim != 1:
        raise ValueError(
            "a NestedTensor must have the dimensions [batch, ragged, features], got "
            f"{nested.dim()} dimensions of which number {ragged_dim} is ragged"
        )


def nested_to_padded(nested: Tensor) -> tuple[Tensor, Tensor]:
    """Jagged ``[B, ragged, ...]`` to ``[T, B, ...]`` and int64 lengths ``[B]``. Differentiable.

    Past a sequence's end stand rows of other sequences. T is the greatest length: where the nested
    tensor does not know it, the host waits for the device to find it.
    """
    values, offsets, lengths = _jagged_parts(nested)
    seq_len = 0
    if lengths.size(0) > 0:
        seq_len = nested._get_max_seqlen()  # type: ignore[attr-defined]
    steps = torch.arange(seq_len, device=values.device).unsqueeze(1)
    # Other rows, not one row for all: in backward each thread adds its zeros to a row of its own.
    rows = (offsets[:-1] + steps).clamp(max=values.size(0) - 1)  # [T, B]
    padded = values.index_select(0, rows.flatten())
    return torch.unflatten(padded, 0, (seq_len, lengths.size(0))), lengths


def padded_to_nested(padded: Tensor, like: Tensor) -> Tensor:
    """``[T, B, ...]`` to the form of the nested tensor ``like``, whose ragged size it shares.

    Differentiable; nobody waits for a device. Rows of ``like`` in no sequence become zeros.
    """
    values, offsets, lengths = _jagged_parts(like)
    seq_len, batch_size = padded.size(0), padded.size(1)
    row = torch.arange(values.size(0), device=padded.device)
    sequence = torch.bucketize(row, offsets[1:], right=True)
    gaps = like.lengths()  # type: ignore[attr-defined]
    if gaps is not None:
        sequence = sequence.clamp(max=batch_size - 1)
    step = row - offsets[sequence]
    rows = step.clamp(0, seq_len - 1) * batch_size + sequence
    result = padded.flatten(0, 1).index_select(0, rows)
    if gaps is not None:
        inside = (step >= 0) & (step < lengths[sequence])
        result = torch.where(inside.view(-1, *[1] * (result.dim() - 1)), result, 0)
    return torch.nested.nested_tensor_from_jagged(result, offsets, gaps, max_seqlen=seq_len)


def _jagged_parts(nested: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``values [N, ...]``, ``offsets [B + 1]`` and lengths ``[B]``."""
    offsets: Tensor = nested.offsets()  # type: ignore[attr-defined]
    lengths = nested.lengths()  # type: ignore[attr-defined]
    return nested.values(), offsets, offsets.diff() if lengths is None else lengths
