"""Flax cells, of linen and of nnx, and the flat vector of ``jax.experimental.rnn``.

Flax multiplies from the right: its kernels are torch's matrices transposed. An LSTM's biases stand
on the hidden side; linen's GRU has those of the input and of the candidate's recurrent product
(``hn``), that of nnx none on the hidden side. Sources: flax/linen/recurrent.py,
flax/nnx/nn/recurrent.py, jax/experimental/rnn.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..layers import GRU, LSTM, RNN
from ._layers import Weights, make_layer, read_layers

__all__ = ["load_flax", "load_jax", "to_flax"]

_LSTM, _GRU = "ifgo", "rzn"


def load_flax(forward: Any, backward: Any = None) -> RNN | GRU | LSTM:
    """A Flax cell, or two as the directions of one layer.

    A mapping of arrays says nothing of activations and gates: they are taken to be the cell's
    own, tanh and sigmoid. Flax runs a cell by its ``RNN``, whose ``seq_lengths`` are lengths here;
    past them its outputs are not zero.

    Args:
        forward: the parameters of a linen ``SimpleCell``, ``GRUCell``, ``LSTMCell`` or
            ``OptimizedLSTMCell`` (a mapping, the "params" of its variables), or an nnx cell.
        backward: that of the reverse direction; None makes a layer of one direction.

    Returns:
        The layer.

    Raises:
        NotImplementedError: other activations in an nnx cell, ``residual``, or a cell that is none
            of these; names it.
        ValueError: the two directions do not fit together.
    """
    read = [_read(cell) for cell in (forward, backward) if cell is not None]
    cells = {cell for cell, _ in read}
    if len(cells) != 1:
        raise ValueError(f"the directions are of two cells, {sorted(cells)}")
    return make_layer(cells.pop(), [[weights for _, weights in read]])


def _read(cell: Any) -> tuple[str, Weights]:
    if not isinstance(cell, Mapping):
        return _read_nnx(cell)
    names = set(cell)
    if "params" in names:
        return _read(cell["params"])
    kernel = _reader(lambda name, part: cell.get(name, {}).get(part))
    if names == {"i", "h"}:
        return "tanh", _simple(kernel)
    gates = {"lstm": _LSTM, "gru": _GRU}
    for kind, letters in gates.items():
        if names == {side + gate for side in "ih" for gate in letters}:
            return kind, _gated(kernel, kind, letters)
    raise NotImplementedError(f"a cell with the parameters {sorted(names)} is none that is known")


def _read_nnx(cell: Any) -> tuple[str, Weights]:
    kind = type(cell).__name__

    def check(attribute: str, expected: Sequence[str]) -> str:
        name: str = getattr(getattr(cell, attribute), "__name__", "?")
        if name not in expected:
            raise NotImplementedError(f"nnx.{kind}: its {attribute} is {name}")
        return name

    def part(name: str, which: str) -> Any:
        layer = getattr(cell, name + "_" if name == "if" else name)
        value = getattr(layer, which, None)
        return None if value is None or value[...] is None else value[...]

    if kind == "SimpleCell":
        if cell.residual:
            raise NotImplementedError("nnx.SimpleCell: residual adds its input to its state")
        activation = check("activation_fn", ("tanh", "relu"))
        return activation, _simple(
            _reader(lambda n, p: part({"i": "dense_i", "h": "dense_h"}[n], p))
        )
    if kind not in ("LSTMCell", "OptimizedLSTMCell", "GRUCell"):
        raise NotImplementedError(f"{kind} is no cell of nnx that is known")
    check("gate_fn", ("sigmoid",))
    check("activation_fn", ("tanh",))
    if kind == "LSTMCell":
        return "lstm", _gated(_reader(part), "lstm", _LSTM)
    read = _reader(part)
    w_ih, b_ih = read("dense_i")
    w_hh, b_hh = read("dense_h")
    return ("gru" if kind == "GRUCell" else "lstm"), _with_biases(w_ih, w_hh, b_ih, b_hh)


def _reader(part: Any) -> Any:
    """Of a name: its matrix in torch's form and its bias, None where it has none."""

    def read(name: str) -> tuple[Any, Any]:
        bias = part(name, "bias")
        return np.asarray(part(name, "kernel")).T, None if bias is None else np.asarray(bias)

    return read


def _simple(read: Any) -> Weights:
    (w_ih, b_ih), (w_hh, b_hh) = read("i"), read("h")
    return _with_biases(w_ih, w_hh, b_ih, b_hh)


def _gated(read: Any, kind: str, letters: str) -> Weights:
    sides = []
    for side in "ih":
        parts = [read(side + gate) for gate in letters]
        some = any(bias is not None for _, bias in parts)
        zeros = np.zeros(parts[0][0].shape[0], parts[0][0].dtype)
        bias = np.concatenate([zeros if b is None else b for _, b in parts]) if some else None
        sides.append((np.concatenate([w for w, _ in parts]), bias))
    (w_ih, b_ih), (w_hh, b_hh) = sides
    return _with_biases(w_ih, w_hh, b_ih, b_hh)


def _with_biases(w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Weights:
    """Both biases where there is one: the other is zeros."""
    if b_ih is None and b_hh is None:
        return Weights(w_ih, w_hh)
    zeros = np.zeros(w_ih.shape[0], w_ih.dtype)
    return Weights(w_ih, w_hh, zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh)


def to_flax(layer: nn.RNNBase) -> list[list[dict[str, Any]]]:
    """The parameters of Flax linen cells that compute the same.

    Args:
        layer: an RNN, GRU or LSTM of this package or of ``torch.nn``.

    Returns:
        Of each layer, of each direction, the mapping for "params" of a linen ``SimpleCell`` (whose
        ``activation_fn`` is the caller's to give), ``GRUCell``, or ``LSTMCell`` and
        ``OptimizedLSTMCell``; arrays of numpy. A layer without biases gets zeros where those cells
        always have them.

    Raises:
        NotImplementedError: a layer with ``proj_size``.
    """
    return [[_to_cell(layer.mode, w) for w in directions] for directions in read_layers(layer)]


def _to_cell(mode: str, weights: Weights) -> dict[str, Any]:
    zeros = np.zeros(weights.w_ih.shape[0], weights.w_ih.dtype)
    b_ih = zeros if weights.b_ih is None else weights.b_ih
    b_hh = zeros if weights.b_hh is None else weights.b_hh
    if mode.startswith("RNN"):
        return {
            "i": {"kernel": weights.w_ih.T, "bias": b_ih + b_hh},
            "h": {"kernel": weights.w_hh.T},
        }
    letters = _LSTM if mode == "LSTM" else _GRU
    cell: dict[str, Any] = {}
    blocks = [np.split(a, len(letters)) for a in (weights.w_ih, weights.w_hh, b_ih, b_hh)]
    for gate, w_i, w_h, b_i, b_h in zip(letters, *blocks, strict=True):
        cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": w_i.T}, {"kernel": w_h.T}
        if mode == "LSTM":
            cell[f"h{gate}"]["bias"] = b_i + b_h
        elif gate == "n":
            cell["in"]["bias"], cell["hn"]["bias"] = b_i, b_h
        else:
            cell[f"i{gate}"]["bias"] = b_i + b_h
    return cell


def load_jax(
    weights: Any, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> LSTM:
    """The LSTM of ``jax.experimental.rnn``, whose weights are one vector in the form of cuDNN.

    Args:
        weights: ``[n]``, as ``jax.experimental.rnn.init_lstm_weight`` makes it.
        input_size, hidden_size, num_layers, bidirectional: of the LSTM.

    Returns:
        The layer, with ``batch_first=True`` as there.

    Raises:
        ValueError: the vector is not as long as those sizes say.
    """
    flat = np.asarray(weights)
    directions = 2 if bidirectional else 1
    rows = 4 * hidden_size
    shapes: list[tuple[int, ...]] = []
    for index in range(num_layers):
        width = input_size if index == 0 else hidden_size * directions
        shapes += [(rows, width), (rows, hidden_size)] * directions
    shapes += [(rows,)] * (2 * directions * num_layers)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    if flat.shape != (ends[-1],):
        raise ValueError(f"the weights must be a vector of {ends[-1]}, got shape {flat.shape}")
    parts = [p.reshape(s) for p, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    half = len(parts) // 2
    each = [
        Weights(*parts[2 * k : 2 * k + 2], *parts[half + 2 * k : half + 2 * k + 2])
        for k in range(half // 2)
    ]
    layers = [each[k : k + directions] for k in range(0, len(each), directions)]
    return make_layer("lstm", layers, batch_first=True)  # type: ignore[return-value]
