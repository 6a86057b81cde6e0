"""MLX layers: RNN, GRU, LSTM, each of one direction.

Matrices and gates are torch's; one bias serves both sides, and a GRU has a second one, ``bhn``, for
the candidate's recurrent product alone. Source: mlx/nn/layers/recurrent.py.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from torch import nn

from ..layers import GRU, LSTM, RNN
from ._layers import Weights, make_layer, read_layers

__all__ = ["load_mlx", "to_mlx"]


def load_mlx(forward: Any, backward: Any = None) -> RNN | GRU | LSTM:
    """An MLX layer, or two as the directions of one.

    Args:
        forward: an ``mlx.nn.RNN``, ``GRU`` or ``LSTM``.
        backward: that of the reverse direction (in MLX it reads the reversed sequence); None makes
            a layer of one direction.

    Returns:
        The layer, with ``batch_first=True`` as MLX has it.

    Raises:
        NotImplementedError: an RNN whose nonlinearity is neither tanh nor relu, or another layer.
        ValueError: the two directions do not fit together.
    """
    read = [_read(layer) for layer in (forward, backward) if layer is not None]
    cells = {cell for cell, _ in read}
    if len(cells) != 1:
        raise ValueError(f"the directions are of two cells, {sorted(cells)}")
    return make_layer(cells.pop(), [[weights for _, weights in read]], batch_first=True)


def _read(layer: Any) -> tuple[str, Weights]:
    kind = type(layer).__name__
    if kind == "RNN":
        name = getattr(layer.nonlinearity, "__name__", "?")
        if name not in ("tanh", "relu"):
            raise NotImplementedError(f"mlx.nn.RNN: its nonlinearity is {name}")
        return name, _weights(layer.Wxh, layer.Whh, layer.bias)
    if kind == "GRU":
        return "gru", _weights(layer.Wx, layer.Wh, layer.b, layer.bhn)
    if kind == "LSTM":
        return "lstm", _weights(layer.Wx, layer.Wh, layer.bias)
    raise NotImplementedError(f"{kind} is no RNN, GRU or LSTM of mlx.nn")


def _weights(w_ih: Any, w_hh: Any, bias: Any, last: Any = None) -> Weights:
    w_ih, w_hh = np.array(w_ih), np.array(w_hh)
    if bias is None:
        return Weights(w_ih, w_hh)
    b_ih = np.array(bias)
    b_hh = np.zeros_like(b_ih)
    if last is not None:
        b_hh[-len(last) :] = np.array(last)
    return Weights(w_ih, w_hh, b_ih, b_hh)


def to_mlx(layer: nn.RNNBase) -> list[list[Any]]:
    """A layer as MLX layers that compute the same.

    Args:
        layer: an RNN, GRU or LSTM of this package or of ``torch.nn``.

    Returns:
        Of each layer, of each direction, an ``mlx.nn`` layer; that of the reverse direction is to
        be given the reversed sequence.

    Raises:
        NotImplementedError: a layer with ``proj_size``.
        ImportError: the package mlx is missing.
    """
    mx: Any = importlib.import_module("mlx.core")
    library: Any = importlib.import_module("mlx.nn")

    def one(weights: Weights) -> Any:
        sizes = (weights.w_ih.shape[1], layer.hidden_size)
        w_ih, w_hh = mx.array(weights.w_ih), mx.array(weights.w_hh)
        if layer.mode.startswith("RNN"):
            nonlinearity = library.relu if layer.mode == "RNN_RELU" else None
            made = library.RNN(*sizes, bias=layer.bias, nonlinearity=nonlinearity)
            made.Wxh, made.Whh = w_ih, w_hh
        else:
            made = getattr(library, layer.mode)(*sizes, bias=layer.bias)
            made.Wx, made.Wh = w_ih, w_hh
        if not layer.bias:
            return made
        if layer.mode == "GRU":
            shared = 2 * layer.hidden_size
            b_hh = np.where(np.arange(len(weights.b_hh)) < shared, weights.b_hh, 0)
            made.b, made.bhn = mx.array(weights.b_ih + b_hh), mx.array(weights.b_hh[shared:])
        else:
            made.bias = mx.array(weights.b_ih + weights.b_hh)
        return made

    return [[one(weights) for weights in directions] for directions in read_layers(layer)]
