"""Keras layers and files: SimpleRNN, GRU, LSTM, and Bidirectional of them.

Keras multiplies from the right, so its matrices are torch's transposed; an LSTM has one bias, as a
GRU with ``reset_after=False``, one with ``reset_after=True`` two, and its gates are z, r, h.
Sources: keras/src/layers/rnn of Keras 3; for files keras_file.py.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..variants import cell_of
from ._layers import Imported, Weights, make_layer, read_layers, reorder
from .keras_file import KerasLayer, from_cudnn, read_keras_file

__all__ = ["load_keras", "to_keras"]

_ORDER = {"tanh": (0,), "relu": (0,), "gru": (1, 0, 2), "lstm": (0, 1, 2, 3)}
_ORDER["gru_reset_before"] = _ORDER["gru"]
_KINDS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}


def load_keras(
    source: Any,
    *,
    activation: str | None = None,
    recurrent_activation: str | None = None,
    merge_mode: str | None = "concat",
) -> Any:
    """Recurrent layers of Keras 3 and 2, as layers of this package.

    A Keras layer gives zeros or repeats its last output past a mask's end; these layers give zeros.
    Its ``Bidirectional`` is a layer of two directions with the same ``merge_mode``.
    ``return_sequences`` says which output is wanted, not what is computed, and is not kept; nor are
    ``stateful``, whose states are passed as hx here, and dropout.

    Of a file that holds weights alone (``save_weights``) the caller says what the layers are: in
    Keras 2 the default of ``recurrent_activation`` was "hard_sigmoid" for years. That a layer goes
    backwards nothing in such a file tells either.

    Args:
        source: a layer that is built (SimpleRNN, GRU, LSTM, Bidirectional), a model, or the path of
            a file: ``.keras``, ``.h5`` or ``.hdf5`` of Keras 2 (``CuDNNGRU`` and ``CuDNNLSTM``
            too) and 3, ``.weights.h5``.
        activation: of a file of weights alone, that of its SimpleRNN ("tanh" or "relu"), GRU and
            LSTM layers; None is "tanh" for GRU and LSTM.
        recurrent_activation: of a file of weights alone, that of its GRU and LSTM layers.
        merge_mode: of a file of weights alone, that of its Bidirectional layers.

    Returns:
        Of a layer, the layer, with ``batch_first=True``; of a model or a file a list of
        :class:`Imported`, one for each recurrent layer, in order.

    Raises:
        NotImplementedError: a layer that is none of this package, naming it and why: other
            activations, ``go_backwards`` (whose outputs run backwards while its mask does not),
            arrays of other shapes, a GRU without biases in a file of weights alone, which does not
            say where its reset gate stands.
        ValueError: a layer that is not built, a model without a recurrent layer, or a file of
            weights alone whose activations are not given.
        ImportError: the package keras, or for an HDF5 file h5py, is missing.
    """
    if isinstance(source, str | os.PathLike) and os.fspath(source).endswith((".h5", ".hdf5")):
        given = _Given(activation, recurrent_activation, merge_mode)
        layers = [
            Imported(layer.name, _layer_of_file(layer, given))
            for layer in read_keras_file(os.fspath(source))
        ]
        if not layers:
            raise ValueError(f"the file {os.fspath(source)!r} has no SimpleRNN, GRU or LSTM layer")
        return layers
    if activation or recurrent_activation or merge_mode != "concat":
        raise ValueError(
            "activation, recurrent_activation and merge_mode are for a file of weights alone: "
            f"{type(source).__name__} says what its layers are"
        )
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
        _check_direction(f"{kind} {layer.name!r}", layer.go_backwards)
    else:
        raise NotImplementedError(f"{kind} {layer.name!r} is no SimpleRNN, GRU or LSTM")
    cells = {_cell_of_layer(half) for half in halves}
    if len(cells) != 1:
        raise NotImplementedError(f"{layer.name!r}: its halves are of two cells, {sorted(cells)}")
    (cell,) = cells
    return make_layer(
        cell,
        [[_weights_of(half, cell) for half in halves]],
        batch_first=True,
        merge_mode=layer.merge_mode if kind == "Bidirectional" else "concat",
    )


def _cell_of_layer(layer: Any) -> str:
    kind = type(layer).__name__
    label = f"{kind} {layer.name!r}"
    if kind not in _KINDS:
        raise NotImplementedError(f"{label} is no SimpleRNN, GRU or LSTM")
    if not layer.built:
        raise ValueError(f"{label} has no weights yet: build it, or call it once")
    recurrent = "" if kind == "SimpleRNN" else layer.recurrent_activation.__name__
    return _cell_of(
        label, kind, layer.activation.__name__, recurrent, getattr(layer, "reset_after", True)
    )


def _check_direction(label: str, go_backwards: bool) -> None:
    if go_backwards:
        raise NotImplementedError(
            f"{label}: go_backwards returns its outputs last step first, while its mask stays as "
            "it was; load it as the backward half of a Bidirectional"
        )


def _cell_of(
    label: str, kind: str, activation: str, recurrent_activation: str, reset_after: bool
) -> str:
    """The cell that a layer so described is."""
    if kind == "SimpleRNN":
        if activation not in ("tanh", "relu"):
            raise NotImplementedError(f"{label}: its activation is {activation}")
        return activation
    if activation != "tanh":
        raise NotImplementedError(f"{label}: its activation is {activation}")
    if recurrent_activation != "sigmoid":
        raise NotImplementedError(f"{label}: its recurrent_activation is {recurrent_activation}")
    return "gru_reset_before" if kind == "GRU" and not reset_after else kind.lower()


class _Given(NamedTuple):
    """What the caller says of a file that does not."""

    activation: str | None
    recurrent_activation: str | None
    merge_mode: str | None


def _layer_of_file(layer: KerasLayer, given: _Given) -> nn.Module:
    label = f"{layer.kind} {layer.name!r}"
    config = layer.config
    columns = layer.halves[0][1].shape[1]
    bias = layer.halves[0][2] if len(layer.halves[0]) == 3 else None
    # The bias of a GRU tells; without one the file's own word is needed.
    reset_after = bias.shape != (columns,) if bias is not None else None
    if config is not None:
        if given != _Given(None, None, "concat"):
            raise ValueError(f"{label}: the file says what it is: leave out {given._fields}")
        _check_direction(label, config.get("go_backwards", False))
        activation = config.get("activation", "tanh")
        recurrent = config.get("recurrent_activation", "sigmoid")
        merge_mode = layer.merge_mode if len(layer.halves) == 2 else "concat"
        if reset_after is None:
            reset_after = config.get("reset_after", False)
    else:
        activation = given.activation or ("" if layer.kind == "SimpleRNN" else "tanh")
        recurrent = "sigmoid" if layer.is_cudnn else given.recurrent_activation
        missing = "activation" if not activation else "recurrent_activation"
        if not activation or (recurrent is None and layer.kind != "SimpleRNN"):
            raise ValueError(
                f"{label}: the file holds weights alone: give the layer's {missing}, as its model "
                f'had it ({missing}="{"tanh" if not activation else "sigmoid"}", say)'
            )
        merge_mode = given.merge_mode if len(layer.halves) == 2 else "concat"
        if reset_after is None and layer.kind == "GRU":
            raise NotImplementedError(
                f"{label}: it has no bias, whose shape would tell reset_after, and the file holds "
                "weights alone: load the model's own file"
            )
    cell = _cell_of(label, layer.kind, activation, recurrent or "", bool(reset_after))
    directions = []
    for half in layer.halves:
        if layer.is_cudnn:
            weights = from_cudnn(half, layer.kind)
            arrays = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
            directions.append(Weights(*(reorder(array, _ORDER[cell]) for array in arrays)))
        else:
            kernel, recurrent_kernel, *rest = half
            directions.append(
                _from_keras(kernel, recurrent_kernel, rest[0] if rest else None, cell)
            )
    return make_layer(cell, [directions], batch_first=True, merge_mode=merge_mode)


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
        NotImplementedError: a layer with ``proj_size`` or ``peepholes``, or with dropout between
            its layers.
        ImportError: the package keras is missing.
    """
    keras: Any = importlib.import_module("keras")

    if layer.dropout and layer.num_layers > 1:
        raise NotImplementedError("dropout between layers is no part of a Keras recurrent layer")
    cell = cell_of(layer.mode, getattr(layer, "reset_after", True))
    built: list[Any] = []
    for directions in read_layers(layer, merges=True, variants=("reset_after=False",)):
        options: dict[str, Any] = {"return_sequences": True, "use_bias": layer.bias}
        if layer.mode == "GRU":
            made = keras.layers.GRU(layer.hidden_size, reset_after=cell == "gru", **options)
        elif cell == "lstm":
            made = keras.layers.LSTM(layer.hidden_size, **options)
        else:
            made = keras.layers.SimpleRNN(layer.hidden_size, activation=cell, **options)
        halves = [made]
        if layer.bidirectional:
            is_last = len(built) == layer.num_layers - 1
            mode = getattr(layer, "merge_mode", "concat") if is_last else "concat"
            made = keras.layers.Bidirectional(made, merge_mode=mode)
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
