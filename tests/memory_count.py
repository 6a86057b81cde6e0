"""What one layer takes on a GPU, by count: tensors that a call makes, and what the plan asks for.

What a recorded call of the emulated layer allocates is compared with it, and what torch's allocator
counts on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
DGATES_BLOCKS = {"tanh": 1, "relu": 1, "gru": 4, "lstm": 4}  # csrc/recurrence.h


@dataclass
class Count:
    """Bytes of one layer without projection, all its sequences full and no state given."""

    cell: str
    element_bytes: int
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    reserve_bytes: int  # this and the workspaces as the plan says
    forward_workspace: int
    backward_workspace: int
    library_bytes: int  # of the workspaces of the library, in one call
    directions: int = 2

    def _states(self, bytes_each: int) -> int:
        states = 2 if self.cell == "lstm" else 1
        return states * self.directions * self.batch_size * self.hidden_size * bytes_each

    def _rows(self, columns: int) -> int:
        return self.seq_len * self.batch_size * columns * self.element_bytes

    def kept(self) -> int:
        """The outputs, and what backward needs of forward."""
        output = self._rows(self.directions * self.hidden_size)
        return output + self._states(self.element_bytes) + self.reserve_bytes

    def forward_peak(self) -> int:
        """While forward runs, above what was there before."""
        return self.kept() + self.forward_workspace + self.library_bytes

    def backward_peak(self) -> int:
        """While backward runs, above what was there before."""
        D, H, input_size = self.directions, self.hidden_size, self.input_size
        columns = D * DGATES_BLOCKS[self.cell] * H
        of_direction = GATES[self.cell] * H * (input_size + H + 2) * self.element_bytes
        # dx is one product of the gate gradients and all rows of the weights, side by side.
        stacked = 0 if D == 1 and self.cell != "gru" else columns * input_size * self.element_bytes
        return (
            self._rows(columns)
            + self._rows(input_size)
            + self._states(max(self.element_bytes, 4))
            + D * of_direction
            + stacked
            + self.backward_workspace
            + self.library_bytes
        )
