"""Many short sequences in few long rows: what `resets=` of the layers is given.

A row holds one sequence after another. No step of a batch is padding but at the ends of rows, and
all its steps have the same number of rows::

    row 0   a a a a a|c c c|d d d d|e e .        resets  1 0 0 0 0 1 0 0 1 0 0 0 1 0 1
    row 1   b b b b b b b b b|f f f f|. .                1 0 0 0 0 0 0 0 0 1 0 0 0 1 0

Sequences go into rows first-fit (Johnson 1973, "Near-optimal bin packing algorithms", MIT): each
into the first row that has room for it, in the order given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PackedRows", "pack_rows"]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Sequences in rows, and the way back; made by :func:`pack_rows`.

    Attributes:
        input: ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``), zeros where no sequence lies.
        resets: bool ``[T, B]`` as ``input`` lies: true at each sequence's first step, and where the
            padding at the end of a row begins.
        lengths: of the sequences, in the order given.
        rows, starts: of each sequence its row and its first step there.
        batch_first: how ``input`` and ``resets`` lie.
        places: int64 ``[sum(lengths)]``: of each step of the sequences, one after another, its
            place among all steps of all rows, ``step * B + row``.
    """

    input: Tensor
    resets: Tensor
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    starts: tuple[int, ...]
    batch_first: bool
    places: Tensor

    def pack(self, sequences: Sequence[Tensor], padding_value: float = 0.0) -> Tensor:
        """Put other sequences where these lie: labels beside texts. Differentiable.

        Args:
            sequences: as many and as long as those that were packed, ``[length, ...]`` each.
            padding_value: where no sequence lies.

        Returns:
            ``[T, B, ...]``, or ``[B, T, ...]``, as :attr:`input` lies.

        Raises:
            TypeError, ValueError: something else than that.
        """
        _check_sequences(sequences)
        if len(sequences) != len(self.lengths):
            raise ValueError(
                f"sequences must be {len(self.lengths)}, as were packed, got {len(sequences)}"
            )
        for index, (sequence, length) in enumerate(zip(sequences, self.lengths, strict=True)):
            if len(sequence) != length:
                raise ValueError(
                    f"sequences[{index}] must have {length} steps, as was packed, got "
                    f"{len(sequence)}"
                )
        return _put(sequences, self.places, self.resets.shape, self.batch_first, padding_value)

    def unpack(self, output: Tensor) -> list[Tensor]:
        """Take the sequences out of rows: of an output, say. Differentiable.

        Args:
            output: ``[T, B, ...]``, or ``[B, T, ...]``, as :attr:`input` lies.

        Returns:
            ``[length, ...]`` of each sequence, in the order given: views of :meth:`values`.

        Raises:
            ValueError: other sizes.
        """
        return list(self.values(output).split(self.lengths))

    def values(self, output: Tensor) -> Tensor:
        """As :meth:`unpack`, the sequences one after another: ``[sum(lengths), ...]``."""
        by_time = self._by_time(output)
        return by_time.flatten(0, 1).index_select(0, self.places)

    def final_states(self, output: Tensor, num_directions: int = 2) -> Tensor:
        """Each sequence's own final state, what ``h_n`` is of a batch of them. Differentiable.

        The forward direction's is what it left at the sequence's last step, the reverse one's at
        its first.

        Args:
            output: of the layer, ``[T, B, D*H]`` or ``[B, T, D*H]`` as :attr:`input` lies; for an
                LSTM's c its cell states (``return_cell_states=True``).
            num_directions: D, 1 or 2.

        Returns:
            ``[D, N, H]`` of N sequences, in the order given: of the layer of a stack whose output
            was given (``return_all_layers=True`` returns every layer's).

        Raises:
            ValueError: other sizes, or number of directions.
        """
        if num_directions not in (1, 2):
            raise ValueError(f"num_directions must be 1 or 2, got {num_directions}")
        by_time = self._by_time(output)
        if output.dim() != 3 or output.size(2) % num_directions:
            raise ValueError(
                f"output must have 3 dimensions, the last a multiple of {num_directions}, got "
                f"{tuple(output.shape)}"
            )
        directions = by_time.flatten(0, 1).chunk(num_directions, 1)
        ends = torch.tensor(self.lengths).cumsum(0)
        first = self.places[(ends - torch.tensor(self.lengths)).to(self.places.device)]
        last = self.places[(ends - 1).to(self.places.device)]
        chosen = zip(directions, (last, first), strict=False)
        return torch.stack([states.index_select(0, places) for states, places in chosen])

    def _by_time(self, output: Tensor) -> Tensor:
        if output.shape[:2] != self.resets.shape:
            raise ValueError(
                f"output must begin with the sizes {tuple(self.resets.shape)} of the rows, got "
                f"{tuple(output.shape)}"
            )
        return output.transpose(0, 1) if self.batch_first else output


def pack_rows(
    sequences: Sequence[Tensor], row_length: int, *, batch_first: bool = False
) -> PackedRows:
    """Pack sequences into rows, first-fit, for ``resets=`` of the layers.

    ::

        rows = birnn_cuda.pack_rows(sequences, row_length=256)
        output, _ = layer(rows.input, resets=rows.resets)
        outputs = rows.unpack(output)        # of each sequence what the layer gives it alone
        h_n = rows.final_states(output)      # [D, N, H]

    Args:
        sequences: tensors ``[length, ...]`` of one dtype, on one device, that differ in their
            length alone: features, or numbers of words for an embedding.
        row_length: the most steps of a row; at least the longest sequence's.
        batch_first: rows lie as ``[B, T, ...]``.

    Returns:
        The rows, as many as it takes, as long as the fullest; and the way back. Gradients flow back
        to the sequences.

    Raises:
        TypeError: ``sequences`` holds something else than tensors, or ``row_length`` is no int.
        ValueError: there is no sequence, one is empty or longer than a row, or they differ in
            dtype, device or sizes.
    """
    _check_sequences(sequences)
    if isinstance(row_length, bool) or not isinstance(row_length, int):
        raise TypeError(f"row_length must be an int, got {type(row_length).__name__}")
    lengths = tuple(len(sequence) for sequence in sequences)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > row_length:
        raise ValueError(
            f"sequences[{longest}] has {lengths[longest]} steps, which do not fit into a row of "
            f"{row_length}: give row_length={lengths[longest]} or more, or split the sequence"
        )
    rows, starts, filled = _first_fit(lengths, row_length)
    device = sequences[0].device
    seq_len, batch_size = max(filled), len(filled)
    resets = torch.zeros(seq_len, batch_size, dtype=torch.bool)
    resets[torch.tensor(starts), torch.tensor(rows)] = True
    ends = torch.tensor(filled)
    has_padding = ends < seq_len
    resets[ends[has_padding], has_padding.nonzero().squeeze(1)] = True
    counts = torch.tensor(lengths)
    before = counts.cumsum(0) - counts
    steps = torch.arange(int(counts.sum())) - before.repeat_interleave(counts)
    first = torch.tensor(starts) * batch_size + torch.tensor(rows)
    places = (first.repeat_interleave(counts) + steps * batch_size).to(device)
    if batch_first:
        resets = resets.t().contiguous()
    input = _put(sequences, places, resets.shape, batch_first, 0.0)
    return PackedRows(input, resets.to(device), lengths, rows, starts, batch_first, places)


def _put(
    sequences: Sequence[Tensor],
    places: Tensor,
    sizes: torch.Size,  # of the rows, as they lie
    batch_first: bool,
    padding_value: float,
) -> Tensor:
    values = torch.cat(list(sequences))
    batch_size, seq_len = sizes if batch_first else sizes[::-1]
    packed = values.new_full((seq_len * batch_size, *values.shape[1:]), padding_value)
    packed = packed.index_copy(0, places.to(values.device), values)
    packed = torch.unflatten(packed, 0, (seq_len, batch_size))
    return packed.transpose(0, 1) if batch_first else packed


def _first_fit(
    lengths: Sequence[int], row_length: int
) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """The row and the first step of each sequence, and the steps that each row holds.

    A tree of the most room among rows finds the first with enough in the logarithm of their number.
    """
    leaves = 1 << (len(lengths) - 1).bit_length()
    room = [row_length] * (2 * leaves)  # node n over 2n and 2n + 1; row r is leaf leaves + r
    rows, starts = [], []
    filled: list[int] = []
    for length in lengths:
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        row = node - leaves
        if row == len(filled):
            filled.append(0)
        rows.append(row)
        starts.append(filled[row])
        filled[row] += length
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return tuple(rows), tuple(starts), filled


def _check_sequences(sequences: Sequence[Tensor]) -> None:
    if isinstance(sequences, Tensor):
        raise TypeError("sequences must be a list of tensors, got a tensor: its unbind() is one")
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one tensor, got none")
    for index, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor):
            raise TypeError(f"sequences[{index}] must be a tensor, got {type(sequence).__name__}")
        if sequence.dim() == 0 or len(sequence) == 0:
            raise ValueError(
                f"sequences[{index}] must have at least one step, got the sizes "
                f"{tuple(sequence.shape)}: leave it out"
            )
        first = sequences[0]
        for what, own, others in (
            ("the dtype", sequence.dtype, first.dtype),
            ("the device", sequence.device, first.device),
            ("the sizes of a step", tuple(sequence.shape[1:]), tuple(first.shape[1:])),
        ):
            if own != others:
                raise ValueError(
                    f"sequences[{index}] must have {what} {others} of sequences[0], got {own}"
                )
