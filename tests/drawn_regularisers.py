"""Random masks and shares of a layer, as functional.recurrent_layer takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_regularisers(
    kind: str, sizes: tuple[int, int, int], state_size: int, is_lstm: bool, num_directions: int = 2
) -> list[Tensor | None]:
    """recurrent_mask, zoneout_h, zoneout_c of one layer, fp32, by kind: "none", "dropout";
    "zoneout", drawn; "expectation", one row of shares for all; "h", "c": zoneout of one of them."""
    T, B, H = sizes
    D, drops = num_directions, kind in ("dropout", "zoneout")
    mask = (torch.rand(D, B, state_size) < 0.6) / 0.6 if drops else None
    of_h, of_c = kind not in ("none", "dropout", "c"), kind in ("zoneout", "expectation", "c")

    def shares(features: int) -> Tensor:
        if kind == "expectation":
            return torch.rand(1, 1, D * features)
        return (torch.rand(T, B, D * features) < 0.4).float()

    return [
        mask,
        shares(state_size) if of_h else None,
        shares(H) if of_c and is_lstm else None,
    ]
