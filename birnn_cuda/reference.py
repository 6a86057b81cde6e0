"""The recurrence in plain, differentiable torch: the oracle, and the double backward.

One layer, one or two directions, written for reading. Each direction walks its own way through
time (Schuster & Paliwal 1997, "Bidirectional recurrent neural networks", IEEE Transactions on
Signal Processing 45(11)); the reverse one starts at each sequence's own end. With ``h`` the hidden
state of the step before, ``c`` the cell state, ``*`` elementwise:

tanh, relu (Elman 1990, "Finding structure in time", Cognitive Science 14(2))::

    h' = tanh(W_ih x + b_ih + W_hh h + b_hh)                     (or relu)

GRU (Cho et al. 2014, arXiv 1406.1078; the reset gate after the recurrent product, as in cuDNN)::

    r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

gru_reset_before, Cho et al.'s own form, has ``n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)``.

LSTM (Hochreiter & Schmidhuber 1997, Neural Computation 9(8); forget gate: Gers et al. 2000;
projection W_hr: Sak et al. 2014, arXiv 1402.1128)::

    i, f, o = sigmoid(W_i. x + b_i. + W_h. h + b_h.)    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c' = f * c + i * g
    h' = o * tanh(c')                                   or W_hr (o * tanh(c'))

lstm_peepholes (Gers, Schraudolph & Schmidhuber 2002, JMLR 3; diagonal: Graves 2013, arXiv
1308.0850) adds ``w_ci * c``, ``w_cf * c`` and ``w_co * c'`` to what i, f and o are sigmoids of.

Recurrent dropout (Gal & Ghahramani 2016, arXiv 1512.05287): the h of each product ``W_hh h`` above
is times a mask; in ``z * h`` it is not.

Zoneout (Krueger et al. 2017, arXiv 1606.01305), of shares ``d_h`` and ``d_c``; the h' of an LSTM
comes of its c' as above, before it is mixed::

    h' <- d_h * h + (1 - d_h) * h'          c' <- d_c * c + (1 - d_c) * c'

The rows of the weights hold the gates in PyTorch's order: r, z, n and i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .sequences import packed_lengths, packed_to_padded, padded_to_packed, padding_mask

__all__ = ["forward", "forward_with_cell_states", "gru", "is_lstm", "walk"]


def is_lstm(cell: str) -> bool:
    """Whether the state has a c."""
    return cell in ("lstm", "lstm_peepholes")


def forward(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    resets: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer; the arguments are those of the op ``birnn_cuda::forward``.

    Args:
        input: ``[T, B, I]``, or packed ``[N, I]`` together with ``batch_sizes``.
        hx: ``[D, B, P or H]``; None is zeros.
        cx: ``[D, B, H]``, LSTM only; None is zeros.
        weights: for each direction ``weight_ih [G*H, I]``, ``weight_hh [G*H, P or H]``, then if
            biased ``bias_ih [G*H]``, ``bias_hh [G*H]``, then if projected ``weight_hr [P, H]``,
            or of "lstm_peepholes" ``weight_ch [3*H]``, of i, f and o.
        lengths: int64 or int32 ``[B]``; only with a 3-D input.
        batch_sizes: int64 ``[T]`` on the CPU; only with a 2-D input.
        cell: "tanh", "relu", "gru", "lstm", "gru_reset_before" or "lstm_peepholes".
        num_directions: 1 or 2.
        resets: bool ``[T, B]``, true where a sequence begins inside a row: nothing crosses from
            one sequence to the other, in either direction; only with a 3-D input.
        recurrent_mask: ``[D, B, P or H]``, of h where it is multiplied by ``weight_hh``.
        zoneout_h: in the form of ``output``, or one row for all (``[1, 1, D*(P or H)]``, ``[1,
            D*(P or H)]``): the share of the h before in each new one.
        zoneout_c: the same of c, with D*H features.

    Returns:
        ``output`` (``[T, B, D*(P or H)]``, zeros past the lengths, or packed ``[N, D*(P or H)]``),
        ``h_n`` (``[D, B, P or H]``) and ``c_n`` (``[D, B, H]``; for a cell other than the LSTM of
        shape ``[0]``), in the dtype of ``input``; fp16 and bf16 are computed in fp32.
    """
    regularisers = recurrent_mask, zoneout_h, zoneout_c
    options = lengths, batch_sizes, cell, num_directions, resets, *regularisers
    return forward_with_cell_states(input, hx, cx, weights, *options)[:3]


def forward_with_cell_states(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    resets: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`forward`, and the cell state that each step leaves.

    Returns:
        ``output``, ``h_n``, ``c_n``, and in the form of ``output`` the cell states: features D*H,
        zeros past the lengths; for a cell other than the LSTM of shape ``[0]``.
    """
    dtype = input.dtype
    if dtype in (torch.float16, torch.bfloat16):
        input, hx, cx = input.float(), _as_float(hx), _as_float(cx)
        weights = [weight.float() for weight in weights]
        recurrent_mask = _as_float(recurrent_mask)
        zoneout_h, zoneout_c = _as_float(zoneout_h), _as_float(zoneout_c)
    if batch_sizes is not None:
        zoneout_h, zoneout_c = (
            shares
            if shares is None or shares.size(0) < input.size(0)
            else packed_to_padded(shares, batch_sizes)
            for shares in (zoneout_h, zoneout_c)
        )
        input = packed_to_padded(input, batch_sizes)
        lengths = packed_lengths(batch_sizes)
    inside = None
    if lengths is not None:
        inside = padding_mask(lengths.to(input.device), input.size(0)).unsqueeze(2)  # [T, B, 1]
        input = torch.where(inside, input, 0)
    if resets is not None:
        resets = resets.unsqueeze(2)  # [T, B, 1]
        if inside is not None:
            resets = resets & inside

    num_weights = len(weights) // num_directions
    outputs, cell_states, h_n, c_n = [], [], [], []
    for direction in range(num_directions):
        output_d, cell_states_d, h_d, c_d = _one_direction(
            input,
            None if hx is None else hx[direction],
            None if cx is None else cx[direction],
            weights[direction * num_weights : (direction + 1) * num_weights],
            inside,
            resets,
            None if recurrent_mask is None else recurrent_mask[direction],
            _shares_of(zoneout_h, direction, num_directions, input.size(0)),
            _shares_of(zoneout_c, direction, num_directions, input.size(0)),
            cell,
            reverse=direction == 1,
        )
        outputs.append(output_d)
        cell_states.append(cell_states_d)
        h_n.append(h_d)
        c_n.append(c_d)
    by_step = [torch.cat(outputs, 2)]
    c_all = cells = input.new_empty(0)
    if is_lstm(cell):
        by_step.append(torch.cat(cell_states, 2))
        c_all = torch.stack(c_n)
    if batch_sizes is not None:
        by_step = [padded_to_packed(values, batch_sizes) for values in by_step]
    output, cells = [*by_step, cells][:2]
    return output.to(dtype), torch.stack(h_n).to(dtype), c_all.to(dtype), cells.to(dtype)


def _one_direction(
    input: Tensor,  # [T, B, I]
    h: Tensor | None,  # [B, P or H]
    c: Tensor | None,  # [B, H]
    weights: Sequence[Tensor],
    inside: Tensor | None,  # [T, B, 1]
    resets: Tensor | None,  # [T, B, 1]
    mask: Tensor | None,  # [B, P or H]
    zoneout_h: Tensor | None,  # [T, B or 1, P or H]
    zoneout_c: Tensor | None,  # [T, B or 1, H]
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One direction: h [T, B, P or H] and c [T, B, H] of every step, and those of the last."""
    weight_ih, weight_hh = weights[:2]
    bias_ih, bias_hh = weights[2:4] if len(weights) >= 4 else (None, None)
    weight_ch = weights[-1] if cell == "lstm_peepholes" else None
    weight_hr = weights[-1] if len(weights) in (3, 5) and weight_ch is None else None
    seq_len, batch_size, _ = input.shape
    if h is None:
        h = input.new_zeros(batch_size, weight_hh.size(1))
    if c is None:
        hidden_size = weight_hh.size(1) if weight_hr is None else weight_hr.size(1)
        c = input.new_zeros(batch_size, hidden_size)

    gates_x = _linear(input, weight_ih, bias_ih)  # [T, B, G*H]

    def step(t: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        new_h, new_c = _step(cell, gates_x[t], h, c, mask, weight_hh, bias_hh, weight_hr, weight_ch)
        return _mix(new_h, h, zoneout_h, t), _mix(new_c, c, zoneout_c, t)

    return walk(step, seq_len, h, c, inside, resets, reverse)


def walk(
    step: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    seq_len: int,
    h: Tensor,
    c: Tensor,
    inside: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One direction by its step, (t, h, c) to h' and c'.

    Args:
        step, seq_len: T of them.
        h, c: ``[B, ...]``, the states before the first.
        inside, resets: ``[T, B, 1]``, whether a step lies inside its sequence, and begins one.
        reverse: from the last step to the first.

    Returns:
        h and c of every step, ``[T, B, ...]``, and those of the last.
    """
    if seq_len == 0:
        return h.new_empty(0, *h.shape), c.new_empty(0, *c.shape), h, c
    output: list[Tensor] = [h] * seq_len
    cell_states: list[Tensor] = [c] * seq_len
    for t in reversed(range(seq_len)) if reverse else range(seq_len):
        border = (
            t + 1 if reverse else t
        )  # where a sequence begins that the step is not to look past
        if resets is not None and border < seq_len:
            h, c = torch.where(resets[border], 0, h), torch.where(resets[border], 0, c)
        if inside is None:
            h, c = step(t, h, c)
            output[t], cell_states[t] = h, c
            continue
        # Past a sequence's end the state is put aside before the step as well as after it: a NaN
        # in it must not reach the gradients of the weights.
        live_h, live_c = torch.where(inside[t], h, 0), torch.where(inside[t], c, 0)
        live_h, live_c = step(t, live_h, live_c)
        h, c = torch.where(inside[t], live_h, h), torch.where(inside[t], live_c, c)
        output[t] = torch.where(inside[t], live_h, 0)
        cell_states[t] = torch.where(inside[t], live_c, 0)
    return torch.stack(output), torch.stack(cell_states), h, c


def _step(
    cell: str,
    gates_x: Tensor,  # [B, G*H]
    h: Tensor,
    c: Tensor,
    mask: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    weight_ch: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The cell equations of this file's head: h' and c', before zoneout."""
    masked = h if mask is None else h * mask
    if cell == "gru_reset_before":
        size = h.size(1)
        biases = (None, None) if bias_hh is None else (bias_hh[: 2 * size], bias_hh[2 * size :])
        gates_h = _linear(masked, weight_hh[: 2 * size], biases[0])
        r, z = torch.sigmoid(gates_x[:, : 2 * size] + gates_h).chunk(2, 1)
        n = torch.tanh(
            gates_x[:, 2 * size :] + _linear(r * masked, weight_hh[2 * size :], biases[1])
        )
        return (1 - z) * n + z * h, c
    gates_h = _linear(masked, weight_hh, bias_hh)
    if cell == "tanh":
        return torch.tanh(gates_x + gates_h), c
    if cell == "relu":
        return torch.relu(gates_x + gates_h), c
    if cell == "gru":
        return gru(gates_x, gates_h, h), c
    if is_lstm(cell):
        i, f, g, o = (gates_x + gates_h).chunk(4, 1)
        if weight_ch is not None:
            w_i, w_f, w_o = weight_ch.chunk(3)
            c = torch.sigmoid(f + w_f * c) * c + torch.sigmoid(i + w_i * c) * torch.tanh(g)
            return torch.sigmoid(o + w_o * c) * torch.tanh(c), c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if weight_hr is None else _linear(h, weight_hr, None)), c
    raise ValueError(
        'cell must be "tanh", "relu", "gru", "lstm", "gru_reset_before" or "lstm_peepholes", got '
        f'"{cell}"'
    )


def gru(gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
    """A GRU's h' of its two sums, ``[B, 3*H]`` each."""
    x_r, x_z, x_n = gates_x.chunk(3, 1)
    h_r, h_z, h_n = gates_h.chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def _shares_of(
    shares: Tensor | None, direction: int, num_directions: int, seq_len: int
) -> Tensor | None:
    """One direction's share of the state before, [T, B or 1, features]."""
    if shares is None:
        return None
    if shares.dim() == 2:  # one row for all of a packed batch
        shares = shares.unsqueeze(0)
    own = shares.chunk(num_directions, 2)[direction]
    return own if own.size(0) == seq_len else own.expand(seq_len, -1, -1)


def _mix(state: Tensor, before: Tensor, shares: Tensor | None, t: int) -> Tensor:
    return state if shares is None else shares[t] * before + (1 - shares[t]) * state


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.t()
    return product if bias is None else product + bias


def _as_float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
