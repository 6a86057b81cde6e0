"""A recurrent layer in fp64 with the errors of one that rounds: the draws of rounding.py.

Draws lie along a dimension of their own, M below: of 1 where all are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rounding import DRAWS, Format, Rounding
from torch import Tensor, nn

from birnn_cuda.reference import is_lstm
from birnn_cuda.variants import cell_of


@dataclass
class Operands:
    """What one layer's recurrence is given, of D directions, in fp64. A dimension of draws, of one
    or as many as there are, stands behind D where the shapes say M."""

    cell: str
    gates: Tensor  # W_ih x: [D, M, T, B, G*H]
    weight_hh: Tensor  # [D, G*H, S]
    weight_hr: Tensor | None = None  # [D, S, H]
    bias: Tensor | None = None  # bias_ih, bias_hh: [2, D, G*H]
    hx: Tensor | None = None  # [D, B, S]
    cx: Tensor | None = None  # [D, B, H]
    lengths: Tensor | None = None  # [B], in 0..T
    resets: Tensor | None = None  # bool [T, B], true where a sequence begins inside its row
    recurrent_mask: Tensor | None = None  # [D, B, S], of h in its product
    zoneout_h: Tensor | None = None  # [D, T, B, S], the share of the h before; T and B may be 1
    zoneout_c: Tensor | None = None  # the same of c, H for S
    weight_ch: Tensor | None = None  # [D, 3*H]: the peepholes of i, f, o


class Model:
    """The recurrence of one layer, forward and backward, in fp64 with the errors of a format.

    forward_factors, backward_factors, weight_factors: whether the factors are rounded of the
    products of one pass, and of those that the gradients of the weights are.
    """

    def __init__(
        self,
        operands: Operands,
        rounding: Rounding,
        draws: int = 1,
        forward_factors: bool = True,
        backward_factors: bool = True,
        weight_factors: bool = True,
    ) -> None:
        self.op, self.rounding, self.draws = operands, rounding, draws
        exact = Rounding(None)
        self.forward_factors = rounding if forward_factors else exact
        self.backward_factors = rounding if backward_factors else exact
        self.weight_factors = rounding if weight_factors else exact
        of_all = rounding.weight(operands.weight_hh, draws)
        self.weight_hh_forward, self.weight_hh_backward = (
            of_all if rounds else operands.weight_hh.unsqueeze(1)
            for rounds in (forward_factors, backward_factors)
        )
        D, _, T, B, _ = operands.gates.shape
        device = operands.gates.device
        lengths = operands.lengths
        if lengths is None:
            lengths = torch.full((B,), T, device=device)
        step = torch.arange(T, device=device).unsqueeze(1)
        self.active = (step < lengths).view(T, 1, 1, B, 1)
        there = step.expand(T, B)
        back = torch.where(step < lengths, lengths - 1 - step, step)
        # [D, 1, T, B, 1]: the time of each step, and the step of each time.
        self.rows = torch.stack([there, back][:D]).view(D, 1, T, B, 1)
        # [D, 1, T, B, 1], by step: whether it continues zeros.
        self.anew = torch.zeros(D, 1, T, B, 1, dtype=torch.bool, device=device)
        if operands.resets is not None:
            begins = operands.resets & (step < lengths)
            before = torch.cat([begins[1:], torch.zeros_like(begins[:1])])  # of reverse steps
            self.anew = self._turn(torch.stack([begins, before][:D]).view(D, 1, T, B, 1))
        self.peepholes: Sequence[Tensor | float] = (0.0, 0.0, 0.0)
        if operands.weight_ch is not None:
            self.peepholes = operands.weight_ch.view(D, 1, 1, -1).chunk(3, -1)
        mask = operands.recurrent_mask
        self.mask: Tensor | float = 1.0 if mask is None else mask.unsqueeze(1)
        self.share_h, self.share_c = (
            None if shares is None else self._turn(shares.expand(-1, T, B, -1).unsqueeze(1))
            for shares in (operands.zoneout_h, operands.zoneout_c)
        )

    def _turn(self, by_time: Tensor) -> Tensor:
        """[D, M, T, B, n] by step in place of by time, and back."""
        return torch.take_along_dim(by_time, self.rows, 2)

    def _mix(self, state: Tensor, before: Tensor, shares: Tensor | None, t: int) -> Tensor:
        if shares is None:
            return state
        return shares[:, :, t] * before + (1 - shares[:, :, t]) * state

    def forward(self) -> dict[str, Tensor]:
        """output [D, M, T, B, S], hy [D, M, B, S], for an LSTM cy [D, M, B, H] and the cell state
        of every step, cells [D, M, T, B, H]."""
        op, stored = self.op, self.rounding.stored
        D, _, T, B, _ = op.gates.shape
        S = op.weight_hh.size(2)
        H = S if op.weight_hr is None else op.weight_hr.size(2)
        gates = self._turn(op.gates)

        def state(given: Tensor | None, size: int) -> Tensor:
            if given is None:
                given = gates.new_zeros(D, B, size)
            return given.unsqueeze(1).expand(D, self.draws, B, size)

        h, c = state(op.hx, S), state(op.cx, H)
        weight_t = self.weight_hh_forward.transpose(2, 3)
        biases: list[Tensor | float] = [0.0, 0.0]
        if op.bias is not None:
            biases = [bias.view(D, 1, 1, -1) for bias in op.bias]
        w_i, w_f, w_o = self.peepholes
        self.before: list[Tensor] = []  # h
        self.kept: list[tuple[Tensor, ...]] = []
        outputs, cells = [], []
        # h as it enters its product: times the mask, rounded for it.
        entering = h if op.recurrent_mask is None else stored(h * self.mask)
        for t in range(T):
            active = self.active[t]
            h, c, entering = (
                torch.where(self.anew[:, :, t], 0, state) for state in (h, c, entering)
            )
            self.before.append(h)
            x = gates[:, :, t] + biases[0]
            q = self.forward_factors.product(entering, weight_t) + biases[1]
            new_c = c
            if op.cell == "tanh":
                exact_h = torch.tanh(x + q)
                new_h = stored(exact_h)
                kept: tuple[Tensor, ...] = (new_h,)
            elif op.cell == "relu":
                exact_h = torch.relu(x + q)
                new_h = stored(exact_h)
                kept = (new_h,)
            elif op.cell == "gru":
                r, z = torch.sigmoid((x + q)[..., : 2 * H]).chunk(2, -1)
                q_n = q[..., 2 * H :]
                n = torch.tanh(x[..., 2 * H :] + r * q_n)
                exact_h = n + z * (h - n)
                new_h = stored(exact_h)
                kept = tuple(stored(a) for a in (r, z, n, q_n))
            elif op.cell == "gru_reset_before":
                r, z = torch.sigmoid((x + q)[..., : 2 * H]).chunk(2, -1)
                reset = stored(r * (h * self.mask))
                q_n = self.forward_factors.product(reset, weight_t[..., 2 * H :])
                if op.bias is not None:
                    q_n = q_n + biases[1][..., 2 * H :]  # type: ignore[index]
                n = torch.tanh(x[..., 2 * H :] + q_n)
                exact_h = n + z * (h - n)
                new_h = stored(exact_h)
                kept = (*(stored(a) for a in (r, z, n)), reset)
            else:
                i, f, g, o = (x + q).chunk(4, -1)
                i, f, g = torch.sigmoid(i + w_i * c), torch.sigmoid(f + w_f * c), torch.tanh(g)
                new_c = f * c + i * g
                o = torch.sigmoid(o + w_o * new_c)
                exact_h = o * torch.tanh(new_c)
                new_h = stored(exact_h)
                kept = tuple(stored(a) for a in (i, f, g, o, new_c))
                new_c = self._mix(new_c, c, self.share_c, t)
                kept += (kept[4] if self.share_c is None else stored(new_c),)
                if op.weight_hr is not None:
                    weight_hr_t = op.weight_hr.unsqueeze(1).transpose(2, 3)
                    exact_h = self.forward_factors.product(new_h, weight_hr_t)
                    new_h = stored(exact_h)
            if self.share_h is not None:
                exact_h = self._mix(new_h, h, self.share_h, t)
                new_h = stored(exact_h)
            self.kept.append(kept)
            h, c = torch.where(active, new_h, h), torch.where(active, new_c, c)
            entering = h if op.recurrent_mask is None else stored(exact_h * self.mask)
            outputs.append(torch.where(active, new_h, 0))
            cells.append(torch.where(active, kept[5] if is_lstm(op.cell) else new_c, 0))
        results = {"output": self._turn(torch.stack(outputs, 2)), "hy": h}
        if is_lstm(op.cell):
            results |= {"cy": c, "cells": self._turn(torch.stack(cells, 2))}
        return results

    def backward(
        self, dy: Tensor, dhy: Tensor, dcy: Tensor | None = None, dc: Tensor | None = None
    ) -> dict[str, Tensor]:
        """dgates [D, M, T, B, G*H], dhx, dweight_hh [D, M, G*H, S]; of a GRU also drecurrent, the
        gradients of W_hh h, otherwise dgates; of an LSTM dcx; dweight_hr. Given: the gradients of
        output, hy, cy and cells; [D, M, ...], M of 1 or all draws."""
        op, stored = self.op, self.rounding.stored
        cx = op.gates.new_zeros(()) if op.cx is None else op.cx.unsqueeze(1)
        dy = self._turn(dy)
        dc_of_step = None if dc is None else self._turn(dc)
        D, _, T, B, _ = op.gates.shape
        dh = dhy.expand(D, self.draws, B, dhy.size(-1))
        dcarried = None if dcy is None else dcy.expand(D, self.draws, B, dcy.size(-1))
        H = op.gates.size(4) // (4 if is_lstm(op.cell) else 3 if op.cell.startswith("gru") else 1)
        w_i, w_f, w_o = self.peepholes
        all_dgates, all_recurrent, projections = [], [], []
        c_befores: list[Tensor] = []
        for t in reversed(range(T)):
            active, kept, before = self.active[t], self.kept[t], self.before[t]
            d = dh + dy[:, :, t]
            direct: Tensor | float = 0.0
            if self.share_h is not None:
                direct = self.share_h[:, :, t] * d
                d = d - direct
            if op.weight_hr is not None:
                dproj = torch.where(active, stored(d), 0)
                wide = torch.where(active, kept[3] * torch.tanh(kept[4]), 0)
                projections.append((dproj, wide))
                d = self.backward_factors.product(dproj, op.weight_hr.unsqueeze(1))
            if op.cell == "tanh":
                dgates = recurrent = stored(d - d * kept[0] * kept[0])
            elif op.cell == "relu":
                dgates = recurrent = stored(torch.where(kept[0] > 0, d, 0))
            elif op.cell == "gru":
                r, z, n, q = kept
                dn = (d - d * z) * (1 - n * n)
                dz = d * z * (before - n) * (1 - z)
                direct = d * z + direct
                dq = dn * r
                dr = dq * q * (1 - r)
                dr, dz, dn, dq = stored(dr), stored(dz), stored(dn), stored(dq)
                dgates, recurrent = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dq], -1)
            elif op.cell == "gru_reset_before":
                r, z, n, reset = kept
                dz, dn = stored(d * z * (before - n) * (1 - z)), stored((d - d * z) * (1 - n * n))
                direct = d * z + direct
                of_n = self.weight_hh_backward[:, :, 2 * H :]
                d_reset = self.backward_factors.product(dn, of_n)
                direct = direct + d_reset * r * self.mask
                dr = stored(d_reset * reset * (1 - r))
                dgates = recurrent = torch.cat([dr, dz, dn], -1)
            else:
                i, f, g, o, c, _ = kept
                assert dcarried is not None
                c_before = cx if t == 0 else self.kept[t - 1][5]
                c_before = torch.where(self.anew[:, :, t], 0, c_before)
                total = dcarried if dc_of_step is None else dcarried + dc_of_step[:, :, t]
                direct_c: Tensor | float = 0.0
                if self.share_c is not None:
                    direct_c = self.share_c[:, :, t] * total
                    total = total - direct_c
                tanh_c = torch.tanh(c)
                d_o = d * tanh_c * o * (1 - o)
                total = total + d * o * (1 - tanh_c * tanh_c) + w_o * d_o
                d_i, d_f = total * g * i * (1 - i), total * c_before * f * (1 - f)
                dgates = recurrent = stored(torch.cat([d_i, d_f, total * i * (1 - g * g), d_o], -1))
                handed_back = total * f + direct_c + w_i * d_i + w_f * d_f
                handed_back = torch.where(self.anew[:, :, t], 0, handed_back)
                c_befores.append(c_before.expand_as(c))
                dcarried = torch.where(active, handed_back, dcarried)
            if op.cell == "gru_reset_before":
                of_h = recurrent[..., : 2 * H], self.weight_hh_backward[:, :, : 2 * H]
                back = self.backward_factors.product(*of_h)
            else:
                back = self.backward_factors.product(recurrent, self.weight_hh_backward)
            back = back * self.mask + direct
            back = torch.where(self.anew[:, :, t], 0, back)
            dh = torch.where(active, back, dh)
            all_dgates.append(torch.where(active, dgates, 0))
            all_recurrent.append(torch.where(active, recurrent, 0))

        def stack(by_step: list[Tensor]) -> Tensor:  # [D, M, T, B, n]
            return torch.stack(by_step[::-1], 2)

        by_step = stack(all_recurrent)
        before = torch.stack([h * self.mask for h in self.before], 2)
        results = {
            "dgates": self._turn(stack(all_dgates)),
            "drecurrent": self._turn(by_step),
            "dhx": dh,
            "dweight_hh": self.weight_factors.outer(by_step, before),
        }
        if op.cell == "gru_reset_before":
            resets = torch.stack([kept[3] for kept in self.kept], 2)
            of_n = self.weight_factors.outer(by_step[..., 2 * H :], resets)
            of_h = self.weight_factors.outer(by_step[..., : 2 * H], before)
            results["dweight_hh"] = torch.cat([of_h, of_n], 2)
        if op.weight_ch is not None:
            d_i, d_f, _, d_o = by_step.chunk(4, -1)
            c_before = stack(c_befores)
            c_new = torch.stack([kept[4] for kept in self.kept], 2)
            sums = [
                (d_gate * c).sum((2, 3))
                for d_gate, c in ((d_i, c_before), (d_f, c_before), (d_o, c_new))
            ]
            results["dweight_ch"] = torch.cat(sums, -1)
        if dcarried is not None:
            results["dcx"] = dcarried
        if projections:
            dprojs, wides = (stack(list(parts)) for parts in zip(*projections, strict=True))
            results["dweight_hr"] = self.weight_factors.outer(dprojs, wides)
        return results


class Layer:
    """One layer: what Model is, and the products around it.

    weights: of each direction, in torch's order. stores_gates: W_ih x is stored on its way to the
    recurrence.
    """

    def __init__(
        self,
        cell: str,
        weights: Sequence[Sequence[Tensor]],
        rounding: Rounding,
        draws: int,
        lengths: Tensor | None = None,
        stores_gates: bool = True,
        resets: Tensor | None = None,
        regularisers: Sequence[Tensor | None] = (),
    ) -> None:
        self.cell, self.rounding, self.draws, self.lengths = cell, rounding, draws, lengths
        self.stores_gates, self.resets = stores_gates, resets
        self.regularisers = regularisers
        stacked = [torch.stack(list(each)).double() for each in zip(*weights, strict=True)]
        self.weight_ih, self.weight_hh = stacked[:2]
        self.bias = torch.stack(stacked[2:4]) if len(stacked) >= 4 else None
        self.weight_ch = stacked[-1] if cell == "lstm_peepholes" else None
        has_hr = len(stacked) in (3, 5) and self.weight_ch is None
        self.weight_hr = stacked[-1] if has_hr else None

    def forward(self, input: Tensor, hx: Tensor | None, cx: Tensor | None) -> list[Tensor]:
        """output [M, T, B, D*S], h_n [M, D, B, S], and c_n of an LSTM; of input [M, T, B, I]."""
        D = len(self.weight_ih)
        if self.lengths is not None:
            inside = torch.arange(input.size(1), device=input.device).unsqueeze(1) < self.lengths
            input = torch.where(inside.unsqueeze(2), input, 0)
        self.x = input.double().expand(self.draws, *input.shape[1:]).expand(D, -1, -1, -1, -1)
        self.factor_ih = self.rounding.weight(self.weight_ih, self.draws)
        gates = self.rounding.product(self.x, self.factor_ih.transpose(2, 3))
        if self.stores_gates:
            gates = self.rounding.stored(gates)
        states = (None if state is None else state.double() for state in (hx, cx))
        inside = self.lengths, self.resets
        operands = Operands(
            self.cell,
            gates,
            self.weight_hh,
            self.weight_hr,
            self.bias,
            *states,
            *inside,
            *regularisers_by_direction(*self.regularisers, num_directions=D),
            self.weight_ch,
        )
        self.model = Model(operands, self.rounding, self.draws)
        results = self.model.forward()
        if is_lstm(self.cell):
            self.cells = torch.cat(list(results["cells"]), 3)  # [M, T, B, D*H]
        outputs = [torch.cat(list(results["output"]), 3), results["hy"].transpose(0, 1)]
        if is_lstm(self.cell):
            outputs.append(self.rounding.stored(results["cy"]).transpose(0, 1))
        return outputs

    def backward(
        self,
        d_output: Tensor,
        d_h_n: Tensor,
        d_c_n: Tensor | None,
        d_cells: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
        """The gradients of the input [M, T, B, I]; of hx and cx [M, D, B, .]; of each direction's
        weights [M, ...]. Given: those of the outputs, and of every step's cell state, [M, ...]."""
        D, rounding = len(self.weight_ih), self.rounding
        results = self.model.backward(
            torch.stack(d_output.double().chunk(D, 3)),
            d_h_n.double().transpose(0, 1),
            None if d_c_n is None else d_c_n.double().transpose(0, 1),
            None if d_cells is None else torch.stack(d_cells.double().chunk(D, 3)),
        )
        dgates, drecurrent = results["dgates"], results["drecurrent"]
        d_input = rounding.stored(rounding.product(dgates, self.factor_ih).sum(0))
        d_states = [results[name] for name in ("dhx", "dcx") if name in results]
        d_weights = [rounding.outer(dgates, self.x), results["dweight_hh"]]
        if self.bias is not None:
            d_weights += [dgates.sum((2, 3)), drecurrent.sum((2, 3))]
        if self.weight_hr is not None:
            d_weights.append(results["dweight_hr"])
        if self.weight_ch is not None:
            d_weights.append(results["dweight_ch"])
        d_weights = [rounding.stored(d) for d in d_weights]
        return (
            d_input,
            [rounding.stored(d).transpose(0, 1) for d in d_states],
            [[d[direction] for d in d_weights] for direction in range(D)],
        )


def regularisers_by_direction(
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
    *,
    num_directions: int,
) -> list[Tensor | None]:
    """As Operands has them, of a layer's: [D, B, S], [T, B, D*S] and [T, B, D*H]."""
    mask = None if recurrent_mask is None else recurrent_mask.double()
    shares = [
        None if each is None else torch.stack(each.double().chunk(num_directions, 2))
        for each in (zoneout_h, zoneout_c)
    ]
    return [mask, *shares]


@torch.no_grad()
def drawn(
    module: nn.RNNBase,
    format: Format,
    operands: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    lengths: Tensor | None = None,
    stores_gates: bool = True,
    resets: Tensor | None = None,
    regularisers: Sequence[Sequence[Tensor | None]] | None = None,
) -> list[Tensor]:
    """What a module, of torch.nn or ours, makes of a batch: [draws, ...] of output, h_n and c_n,
    and the gradients of input, hx, cx if they are given, and the parameters.

    operands: input, and hx, or hx and cx. cotangents: of output, h_n and c_n. resets: [T, B].
    regularisers: of each layer, as functional.recurrent_layer takes them.
    """
    D = 2 if module.bidirectional else 1
    options = getattr(module, "reset_after", True), getattr(module, "peepholes", False)
    cell = cell_of(module.mode, *options)
    rounding = Rounding(format, str(operands[0].device))
    values = operands[0].detach().unsqueeze(0)
    values = values.transpose(1, 2) if module.batch_first else values
    draws = number_of_draws(values[0].numel() // values.size(3) * module.hidden_size)
    states = [state.detach().unflatten(0, (-1, D)) for state in operands[1:]]  # [layers, D, B, .]
    layers, finals = [], []
    for index in range(module.num_layers):
        weights = [
            [weight.detach() for weight in module.all_weights[index * D + d]] for d in range(D)
        ]
        own = () if regularisers is None else regularisers[index]
        layer = Layer(cell, weights, rounding, draws, lengths, stores_gates, resets, own)
        given = [state[index] for state in states] + [None, None]
        values, *final = layer.forward(values, given[0], given[1])
        layers.append(layer)
        finals.append(final)
    outputs = [values, *(torch.cat(list(final), 1) for final in zip(*finals, strict=True))]
    d_output, *d_finals = (d.detach().unsqueeze(0) for d in cotangents)
    d_output = d_output.transpose(1, 2) if module.batch_first else d_output
    if lengths is not None:
        inside = torch.arange(values.size(1), device=values.device).unsqueeze(1) < lengths
        d_output = torch.where(inside.unsqueeze(2), d_output, 0)
    d_states: list[list[Tensor]] = []
    d_weights: list[Tensor] = []
    for index, layer in reversed(list(enumerate(layers))):
        of_layer = [d[:, index * D : (index + 1) * D] for d in d_finals] + [None]
        d_output, d_state, d_weight = layer.backward(d_output, of_layer[0], of_layer[1])
        d_states.insert(0, d_state)
        d_weights = [weight for direction in d_weight for weight in direction] + d_weights
    if module.batch_first:
        outputs[0], d_output = outputs[0].transpose(1, 2), d_output.transpose(1, 2)
    by_state = [torch.cat(list(each), 1) for each in zip(*d_states, strict=True)]
    return [*outputs, d_output, *by_state[: len(states)], *d_weights]


def number_of_draws(elements: int) -> int:
    """Fewer of large tensors, whose norm varies less."""
    return DRAWS if elements <= 1024 else DRAWS // 2 if elements <= 4096 else DRAWS // 4
