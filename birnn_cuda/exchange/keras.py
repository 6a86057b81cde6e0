"""Keras layers and files: SimpleRNN, GRU, LSTM, and Bidirectional of them.

Keras multiplies from the right, so its matrices are torch's transposed; an LSTM has one bias, a GRU
with ``reset_after=True`` two, and its gates are z, r, h.
Source: keras/src/layers/rnn of Keras 3.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ._layers import Imported, Weights, make_layer, read_layers, reorder

__all__ = ["load_keras", "to_keras"]

_ORDER = {"tanh": (0,), "relu": (0,), "gru": (1, 0, 2), "lstm": (0, 1, 2, 3)}
_KINDS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}


def load_keras(source: Any) -> Any:
    """Recurrent layers of Keras 3, as layers of this package.

    A Keras layer gives zeros or repeats its last output past a mask's end; these layers give zeros.
    Its ``Bidirectional`` with ``merge_mode="concat"`` is a layer of two directions; with another
    one it is too, and merging the halves of its output stays to the caller. ``return_sequences``
    says which output is wanted, not what is computed, and is not kept; nor are ``stateful``, whose
    states are passed as hx here, and dropout.

    Args:
        source: a layer that is built (SimpleRNN, GRU, LSTM, Bidirectional), a model, or the path
            of a ``.keras`` file.

    Returns:
        Of a layer, the layer, with ``batch_first=True``; of a model or a file a list of
        :class:`Imported`, one for each recurrent layer, in order.

    Raises:
        NotImplementedError: a layer that is none of this package, naming it and why: other
            activations, a GRU with ``reset_after=False``, ``go_backwards`` (whose outputs run
            backwards while its mask does not).
        ValueError: a layer that is not built, or a model without a recurrent layer.
        ImportError: the package keras is missing.
    """
    keras: Any = importlib.import_module("keras")

    if isinstance(source, str | os.PathLike):
        source = keras.saving.load_model(os.fspath(source), compile=False)
    if isinstance(source, keras.Model):
        found = [Imported(layer.name, _layer_of(layer)) for layer in _recurrent(source)]
        if not found:
            raise ValueError(f"the model {source.name!r} has no SimpleRNN, GRU or LSTM layer")
        return found
    return _layer_of(source)


def _recurrent(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        kind = type(layer).__name__
        if kind in _KINDS or (
            kind == "Bidirectional" and type(layer.forward_layer).__name__ in _KINDS
        ):
            yield layer
        elif hasattr(layer, "layers"):
            yield from _recurrent(layer)


def _layer_of(layer: Any) -> nn.Module:
    kind = type(layer).__name__
    if kind == "Bidirectional":
        halves = [layer.forward_layer, layer.backward_layer]
        if halves[0].go_backwards or not halves[1].go_backwards:
            raise NotImplementedError(f"{layer.name!r}: its forward layer goes backwards")
    elif kind in _KINDS:
        halves = [layer]
        if layer.go_backwards:
            raise NotImplementedError(
                f"{kind} {layer.name!r}: go_backwards returns its outputs last step first, while "
                "its mask stays as it was; load it as the backward half of a Bidirectional"
            )
    else:
        raise NotImplementedError(f"{kind} {layer.name!r} is no SimpleRNN, GRU or LSTM")
    cells = {_cell_of(half) for half in halves}
    if len(cells) != 1:
        raise NotImplementedError(f"{layer.name!r}: its halves are of two cells, {sorted(cells)}")
    (cell,) = cells
    return make_layer(cell, [[_weights_of(half, cell) for half in halves]], batch_first=True)


def _cell_of(layer: Any) -> str:
    kind = type(layer).__name__

    def refuse(reason: str) -> NotImplementedError:
        return NotImplementedError(f"{kind} {layer.name!r}: {reason}")

    if kind not in _KINDS:
        raise NotImplementedError(f"{kind} {layer.name!r} is no SimpleRNN, GRU or LSTM")
    if not layer.built:
        raise ValueError(f"{kind} {layer.name!r} has no weights yet: build it, or call it once")
    activation: str = layer.activation.__name__
    if kind == "SimpleRNN":
        if activation not in ("tanh", "relu"):
            raise refuse(f"its activation is {activation}")
        return activation
    if activation != "tanh":
        raise refuse(f"its activation is {activation}")
    if layer.recurrent_activation.__name__ != "sigmoid":
        raise refuse(f"its recurrent_activation is {layer.recurrent_activation.__name__}")
    if kind == "GRU" and not layer.reset_after:
        raise refuse(
            "reset_after=False applies the reset gate before the recurrent product; "
            "birnn_cuda.GRU applies it after"
        )
    return kind.lower()


def _weights_of(layer: Any, cell: str) -> Weights:
    kernel, recurrent, *bias = (np.asarray(value) for value in layer.cell.get_weights())
    return _from_keras(kernel, recurrent, bias[0] if bias else None, cell)


def _from_keras(kernel: Any, recurrent: Any, bias: Any, cell: str) -> Weights:
    """Keras's ``kernel [I, G*H]``, ``recurrent_kernel [H, G*H]`` and bias, in torch's order."""
    order = _ORDER[cell]
    biases = (None, None)
    if bias is not None:
        both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
        biases = tuple(reorder(row, order) for row in both)
    return Weights(reorder(kernel.T, order), reorder(recurrent.T, order), *biases)


def to_keras(layer: nn.RNNBase) -> Any:
    """A layer as Keras 3 layers that compute the same.

    Args:
        layer: an RNN, GRU or LSTM of this package or of ``torch.nn``; its float32 weights are
            copied.

    Returns:
        For each of its layers a built Keras layer, ``Bidirectional`` or not, that returns every
        step, to be called one after the other on ``[B, T, I]``; a list.

    Raises:
        NotImplementedError: a layer with ``proj_size``, or with dropout between its layers.
        ImportError: the package keras is missing.
    """
    keras: Any = importlib.import_module("keras")

    if layer.dropout and layer.num_layers > 1:
        raise NotImplementedError("dropout between layers is no part of a Keras recurrent layer")
    cell = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(layer.mode, layer.mode.lower())
    built = []
    for directions in read_layers(layer):
        options: dict[str, Any] = {"return_sequences": True, "use_bias": layer.bias}
        if cell == "gru":
            made = keras.layers.GRU(layer.hidden_size, reset_after=True, **options)
        elif cell == "lstm":
            made = keras.layers.LSTM(layer.hidden_size, **options)
        else:
            made = keras.layers.SimpleRNN(layer.hidden_size, activation=cell, **options)
        halves = [made]
        if layer.bidirectional:
            made = keras.layers.Bidirectional(made)
        made.build((None, None, directions[0].w_ih.shape[1]))
        if layer.bidirectional:
            halves = [made.forward_layer, made.backward_layer]
        for half, weights in zip(halves, directions, strict=True):
            half.cell.set_weights(_to_keras(weights, cell))
        built.append(made)
    return built


def _to_keras(weights: Weights, cell: str) -> Sequence[Any]:
    order = tuple(np.argsort(_ORDER[cell]))
    arrays = [reorder(weights.w_ih, order).T, reorder(weights.w_hh, order).T]
    if weights.b_ih is not None:
        b_ih, b_hh = (reorder(bias, order) for bias in (weights.b_ih, weights.b_hh))
        # Where one bias serves, the two of torch are its sum.
        arrays.append(np.stack([b_ih, b_hh]) if cell == "gru" else b_ih + b_hh)
    return arrays
