"""The oracle of the regularisers and norms: a stack of layers, one sequence and step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Drawn = Sequence[Tensor | None]  # recurrent_mask, zoneout_h, zoneout_c


def call_step_by_step(
    layer: Any,
    input: Tensor,
    states: Sequence[Tensor],
    regularisers: Sequence[Drawn],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    input_masks: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Output ``[T, B, D*S]``, final states, and of an LSTM the last layer's cell states.

    layer: in fp64; its options are not looked at. regularisers: of each layer of the stack.
    input_masks: ``[1, B, features]`` of each layer above the first.
    """
    D, B = 2 if layer.bidirectional else 1, input.size(1)
    S, H = layer.proj_size or layer.hidden_size, layer.hidden_size
    values = cells = input
    finals: list[list[Tensor]] = []
    for index in range(layer.num_layers):
        if index > 0 and input_masks:
            values = values * input_masks[index - 1]
        mask, shares_h, shares_c = regularisers[index]
        parts = []
        for d in range(D):
            columns = []
            for b in range(B):
                row = slice(b, b + 1)
                columns.append(
                    _one_sequence(
                        layer,
                        index * D + d,
                        values[:, b],
                        [state[index * D + d, b] for state in states],
                        None if mask is None else mask[d, b],
                        [
                            None if x is None else x[:, row if x.size(1) > 1 else 0, columns_of]
                            for x, columns_of in (
                                (shares_h, slice(d * S, (d + 1) * S)),
                                (shares_c, slice(d * H, (d + 1) * H)),
                            )
                        ],
                        input.size(0) if lengths is None else int(lengths[b]),
                        None if resets is None else resets[:, b].tolist(),
                    )
                )
            output, cell_states, *final = (
                torch.stack(part, -2) for part in zip(*columns, strict=True)
            )
            parts.append((output, cell_states))
            finals.append(final)
        values, cells = (torch.cat(list(each), 2) for each in zip(*parts, strict=True))
    final_states = [torch.stack(list(each)) for each in zip(*finals, strict=True)]
    if layer.mode == "LSTM":
        return [values, *final_states, cells]
    return [values, final_states[0]]


def _one_sequence(
    layer: Any,
    number: int,  # of the direction in the stack
    input: Tensor,  # [T, I]
    states: Sequence[Tensor],
    mask: Tensor | None,  # [S]
    shares: Sequence[Tensor | None],  # of h and c: [T or 1, ..., S or H]
    length: int,
    begins: Sequence[bool] | None,
) -> list[Tensor]:
    """h and c of every step, zeros past the end, and of the last."""
    weights = list(layer.all_weights[number])
    weight_ih, weight_hh = weights[:2]
    bias_ih, bias_hh = weights[2:4] if layer.bias else (0.0, 0.0)
    H, S = layer.hidden_size, layer.proj_size or layer.hidden_size
    h = states[0] if states else input.new_zeros(S)
    c = states[1] if len(states) == 2 else input.new_zeros(H)
    is_reverse = layer.bidirectional and number % 2 == 1
    suffix = f"l{number // 2 if layer.bidirectional else number}" + "_reverse" * is_reverse
    outputs = [input.new_zeros(S)] * len(input)
    cells = [input.new_zeros(H)] * len(input)

    def norm(name: str, values: Tensor) -> Tensor:
        if not layer.layer_norm:
            return values
        normalised: Tensor = getattr(layer, f"norm_{name}_{suffix}")(values)
        return normalised

    def mixed(new: Tensor, old: Tensor, kept: Tensor | None, t: int) -> Tensor:
        if kept is None:
            return new
        d = kept[min(t, len(kept) - 1)].reshape(-1)
        return d * old + (1 - d) * new

    for t in reversed(range(length)) if is_reverse else range(length):
        border = t + 1 if is_reverse else t
        if begins is not None and border < length and begins[border]:
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        x = norm("ih", weight_ih @ input[t]) + bias_ih
        q = norm("hh", weight_hh @ (h if mask is None else mask * h)) + bias_hh
        new_c = c
        if layer.mode == "RNN_TANH":
            new_h = torch.tanh(x + q)
        elif layer.mode == "RNN_RELU":
            new_h = torch.relu(x + q)
        elif layer.mode == "GRU":
            r, z = torch.sigmoid(x[:H] + q[:H]), torch.sigmoid(x[H : 2 * H] + q[H : 2 * H])
            n = torch.tanh(x[2 * H :] + r * q[2 * H :])
            if not layer.reset_after:
                reset = r * h if mask is None else r * mask * h
                n = torch.tanh(x[2 * H :] + weight_hh[2 * H :] @ reset + (bias_hh + 0 * q)[2 * H :])
            new_h = (1 - z) * n + z * h
        else:
            i, f, g, o = (x + q).chunk(4)
            w_i, w_f, w_o = weights[-1].chunk(3) if layer.peepholes else (0.0, 0.0, 0.0)
            i, f = i + w_i * c, f + w_f * c
            new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            new_h = torch.sigmoid(o + w_o * new_c) * torch.tanh(norm("c", new_c))
            if layer.proj_size:
                new_h = weights[-1] @ new_h
        h, c = mixed(new_h, h, shares[0], t), mixed(new_c, c, shares[1], t)
        outputs[t], cells[t] = h, c
    return [torch.stack(outputs), torch.stack(cells), h, c]
