"""Tensors for kernels between guard zones: bytes that no kernel may write, and that spoil what
reads them. As kernels/guard_zones.h, which keeps the workspaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GUARD = -3  # of 16 bits: NaN in every float format, but not the one tensors are filled with
ALIGNMENT = 256


class GuardZones:
    def __init__(self) -> None:
        self.memories: list[tuple[Tensor, int, int]] = []  # of 16 bits; of them, the tensor's

    def full(self, shape: Sequence[int], value: float, dtype: torch.dtype) -> Tensor:
        """A tensor between zones of its own size and of 64 of its rows."""
        tensor_bytes = dtype.itemsize
        for size in shape:
            tensor_bytes *= size
        row_bytes = dtype.itemsize * (shape[-1] if shape else 1)
        zone = (tensor_bytes + 64 * row_bytes + 4096) // ALIGNMENT * ALIGNMENT
        size = (tensor_bytes + 1) // 2
        memory = torch.full((zone + size,), GUARD, dtype=torch.int16)
        first, last = zone // 2, zone // 2 + size
        self.memories.append((memory, first, last))
        own = memory[first:last].view(torch.uint8)[:tensor_bytes]
        return own.view(dtype).view(*shape).fill_(value)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.full(tensor.shape, 0, tensor.dtype).copy_(tensor)

    def check(self) -> None:
        for memory, first, last in self.memories:
            for name, zone in (("before", memory[:first]), ("past", memory[last:])):
                assert (zone == GUARD).all(), f"a write {name} a tensor of {2 * (last - first)} B"
