"""Random masks and shares of a layer, as functional.recurrent_layer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


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


def drawn_by_hand(
    layer: Any,
    input: Tensor | PackedSequence,
    probabilities: Sequence[float],
    training: bool = True,
) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """The masks that a stack draws, in the order in which it does: of the outputs between layers,
    [1, B, D*S] by the sequence, and of each layer, of the sequences as they are before packing.

    input: [T, B, I] or packed. probabilities: of recurrent dropout and of zoneout of h and of c.
    """
    D, H = 2 if layer.bidirectional else 1, layer.hidden_size
    S = layer.proj_size or H
    like, order = input.data, None
    B = like.size(-2)
    if isinstance(input, PackedSequence):
        B, order = int(input.batch_sizes[0]), input.unsorted_indices

    def mask_of(leading: int, size: int, p: float) -> Tensor:
        mask = dropout(like.new_ones(leading, B, size), p)
        return mask if order is None else mask.index_select(1, order)

    def shares_of(size: int, p: float) -> Tensor | None:
        if p == 0:
            return None
        if not training:
            return like.new_full((1, 1, D * size), p)
        shares = (torch.rand(*like.shape[:-1], D * size) < p).to(like.dtype)
        if isinstance(input, PackedSequence):
            shares, _ = pad_packed_sequence(input._replace(data=shares))
        return shares

    input_masks: list[Tensor] = []
    regularisers: list[list[Tensor | None]] = []
    recurrent, of_h, of_c = probabilities
    for index in range(layer.num_layers):
        if index > 0 and layer.dropout > 0 and training:
            input_masks.append(mask_of(1, D * S, layer.dropout))
        mask = mask_of(D, S, recurrent) if recurrent > 0 and training else None
        shares = [shares_of(S, of_h), shares_of(H, of_c if layer.mode == "LSTM" else 0.0)]
        regularisers.append([mask, *shares])
    return input_masks, regularisers
