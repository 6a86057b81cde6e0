"""Layers with torch.nn's interface around somebody else's recurrence.

The input projection of all steps is one product, as in every good implementation; each direction's
recurrence is a call of the given function, the reverse one on the steps in reverse order.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# (cell, x @ W_ih^T [T, B, G*H], W_hh [G*H, H], b_ih [G*H], b_hh [G*H]) to the output [T, B, H] and
# the final states [B, H]: h, or h and c. The biases are the function's to add.
Recurrence = Callable[[str, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]]

SUFFIXES = ("_l0", "_l0_reverse")


def layers_of(recurrence: Recurrence) -> SimpleNamespace:
    """RNN, GRU and LSTM that compute by `recurrence`: one layer, one or both directions."""

    def forward(self: Any, input: Tensor) -> tuple[Tensor, Any]:
        outputs, states = [], []
        for suffix in SUFFIXES[: 2 if self.bidirectional else 1]:
            weight_ih, weight_hh, bias_ih, bias_hh = (
                getattr(self, name + suffix)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            reverse = suffix.endswith("reverse")
            gates_x = linear(input, weight_ih)
            if reverse:
                gates_x = gates_x.flip(0)
            cell = self.mode.split("_")[0].lower()
            output, final = recurrence(cell, gates_x, weight_hh, bias_ih, bias_hh)
            outputs.append(output.flip(0) if reverse else output)
            states.append(final)
        finals = [torch.stack(state) for state in zip(*states, strict=True)]  # each [D, B, H]
        return torch.cat(outputs, -1), tuple(finals) if len(finals) > 1 else finals[0]

    def layer(name: str) -> type:
        return type(name, (getattr(torch.nn, name),), {"forward": forward})

    return SimpleNamespace(RNN=layer("RNN"), GRU=layer("GRU"), LSTM=layer("LSTM"))
