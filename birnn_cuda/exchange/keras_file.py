"""Recurrent weights in HDF5 files of Keras: Keras 2 models and weights, Keras 3 weights.

A file of Keras 2, or of Keras 3 in that form, has for each layer a group whose attribute
``weight_names`` lists its arrays; a file of a whole model says in ``model_config`` what the layers
are. A Keras 3 ``.weights.h5`` keeps ``vars/0``, ``vars/1`` ... below each layer's ``cell``.

The layers ``CuDNNLSTM`` and ``CuDNNGRU`` stored what cuDNN reads: their bias is twice as long (8*H,
6*H), each gate's ``[I, H]`` holds the numbers of an ``[H, I]`` in their order, and each gate of the
recurrent kernel is torch's. Source: ``_convert_rnn_weights`` in
tf_keras/src/saving/legacy/hdf5_format.py.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ._layers import Weights

__all__ = ["KerasLayer", "from_cudnn", "read_keras_file"]

_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
_KINDS = {gates: kind for kind, gates in _GATES.items()}
_HALVES = ("forward_layer", "backward_layer")
_CUDNN = {"CuDNNGRU": "GRU", "CuDNNLSTM": "LSTM"}


@dataclasses.dataclass
class KerasLayer:
    """What a file holds of one recurrent layer.

    Attributes:
        name: what the file calls it.
        kind: "SimpleRNN", "GRU" or "LSTM".
        is_cudnn: it was a CuDNNGRU or CuDNNLSTM, whose activations are tanh and sigmoid.
        halves: of each direction the kernel ``[I, G*H]``, the recurrent kernel ``[H, G*H]`` and the
            bias, if it has one.
        config: of the layer of one direction, None where the file holds weights alone.
        merge_mode: of a Bidirectional; None too where the file holds weights alone.
    """

    name: str
    kind: str
    is_cudnn: bool
    halves: list[list[Any]]
    config: Mapping[str, Any] | None = None
    merge_mode: str | None = None


def read_keras_file(path: str) -> list[KerasLayer]:
    """The recurrent layers of an ``.h5`` or ``.hdf5`` file, in its order.

    Raises:
        NotImplementedError: arrays that are no SimpleRNN, GRU or LSTM; says what they look like.
        ImportError: the package h5py is missing.
    """
    h5py: Any = importlib.import_module("h5py")

    with h5py.File(path, "r") as file:
        configs: dict[str, tuple[str, Mapping[str, Any]]] = {}
        if "model_config" in file.attrs:
            _collect(json.loads(_text(file.attrs["model_config"])), configs)
        group = file.get("model_weights", file)
        found = _legacy(group) if "layer_names" in group.attrs else _by_cells(group)
        return [_layer(name, halves, configs.get(name)) for name, halves in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _collect(config: Any, found: dict[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Of a model's configuration, by name, the class and the configuration of each layer."""
    inner = config["config"]
    layers = inner if isinstance(inner, list) else inner.get("layers", [])
    for layer in layers:
        name = layer["config"].get("name", layer.get("name", ""))
        found[name] = layer["class_name"], layer["config"]
        if "layers" in layer["config"]:
            _collect(layer, found)


def _listed(group: Any, name: str) -> list[str]:
    """A list that may be cut into attributes ``name0``, ``name1`` ..., since one holds 64 KB."""
    if name in group.attrs:
        return [_text(value) for value in group.attrs[name]]
    pieces: list[str] = []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(f"{name}{len(pieces)}")
    return [_text(value) for piece in pieces for value in group.attrs[piece]]


def _legacy(group: Any) -> Iterator[tuple[str, list[list[Any]]]]:
    for layer_name in _listed(group, "layer_names"):
        layer = group[layer_name]
        cells: dict[str, dict[str, Any]] = {}
        for path in _listed(layer, "weight_names"):
            *parts, last = path.split("/")
            if parts and parts[-1].startswith(("lstm_cell", "gru_cell", "simple_rnn_cell")):
                parts.pop()
            cells.setdefault("/".join(parts), {})[last.partition(":")[0]] = np.asarray(layer[path])
        recurrent = {cell: arrays for cell, arrays in cells.items() if "recurrent_kernel" in arrays}
        layers = _layers_of(recurrent, lambda last: last.partition("_")[0] + "_layer")
        for name, halves in layers.items():
            yield (layer_name if len(layers) == 1 else name.rpartition("/")[2]), halves


def _by_cells(group: Any) -> Iterator[tuple[str, list[list[Any]]]]:
    cells: dict[str, dict[str, Any]] = {}
    names = ("kernel", "recurrent_kernel", "bias")

    def visit(path: str, _: Any) -> None:
        layer, _, variables = path.rpartition("/cell/")
        if layer and variables == "vars":
            arrays = [np.asarray(group[path][str(i)]) for i in range(len(group[path]))]
            cells[layer] = dict(zip(names, arrays, strict=False))

    group.visititems(visit)
    # Keras numbers its layers: lstm, lstm_1, ..., lstm_10.
    ordered = dict(sorted(cells.items(), key=lambda item: _numbered(item[0])))
    for name, halves in _layers_of(ordered, lambda last: last).items():
        yield name.rpartition("/")[2], halves


def _numbered(path: str) -> list[Any]:
    parts = []
    for part in path.split("/"):
        stem, _, number = part.rpartition("_")
        parts.append((stem, int(number)) if stem and number.isdigit() else (part, 0))
    return parts


def _layers_of(
    cells: Mapping[str, Mapping[str, Any]], half_of: Callable[[str], str]
) -> dict[str, list[list[Any]]]:
    """By path, the halves of each layer: one, or the two of a Bidirectional.

    half_of: makes "forward_layer" or "backward_layer" of the last part of such a half's path.
    """
    layers: dict[str, list[list[Any]]] = {}
    for path, arrays in cells.items():
        if arrays["kernel"].ndim != 2:  # a ConvLSTM
            continue
        values = [arrays[key] for key in ("kernel", "recurrent_kernel", "bias") if key in arrays]
        parent, _, last = path.rpartition("/")
        half = half_of(last)
        partners = {half_of(p.rpartition("/")[2]) for p in cells if p.rpartition("/")[0] == parent}
        if parent and half in _HALVES and partners.issuperset(_HALVES):
            layers.setdefault(parent, []).insert(_HALVES.index(half), values)
        else:
            layers[path] = [values]
    return layers


def _layer(
    name: str, halves: list[list[Any]], described: tuple[str, Mapping[str, Any]] | None
) -> KerasLayer:
    kernel, recurrent, *bias = halves[0]
    hidden_size, columns = recurrent.shape
    shapes = [array.shape for array in halves[0]]
    kind = _KINDS.get(columns // hidden_size, "")
    if not kind or columns % hidden_size or kernel.shape[1] != columns:
        raise NotImplementedError(
            f"layer {name!r}: arrays of shapes {shapes} are of no SimpleRNN, GRU or LSTM"
        )
    if kind == "LSTM" and bias and bias[0].shape == (7 * hidden_size,):
        raise NotImplementedError(
            f"layer {name!r}: a bias of 7*H holds peepholes, through which its gates read the cell "
            "state"
        )
    is_cudnn = bool(bias) and kind != "SimpleRNN" and bias[0].shape == (2 * columns,)
    allowed = {(columns,), (2, columns), (2 * columns,)}
    if bias and bias[0].shape not in (allowed if kind == "GRU" else {(columns,), (2 * columns,)}):
        raise NotImplementedError(f"layer {name!r}: a {kind} has no bias of shape {bias[0].shape}")
    layer = KerasLayer(name, kind, is_cudnn, halves)
    if described is not None:
        class_name, config = described
        if class_name == "Bidirectional":
            layer.merge_mode = config["merge_mode"]
            class_name, config = config["layer"]["class_name"], config["layer"]["config"]
        class_name = _CUDNN.get(class_name, class_name)
        if class_name != kind:
            raise NotImplementedError(f"{class_name} {name!r} is no SimpleRNN, GRU or LSTM")
        layer.config = config
    return layer


def from_cudnn(arrays: list[Any], kind: str) -> Weights:
    """What a CuDNNGRU or CuDNNLSTM stored, in torch's form but with Keras's order of gates."""
    kernel, recurrent, bias = arrays
    gates = _GATES[kind]
    hidden_size = recurrent.shape[0]
    w_ih = [block.reshape(hidden_size, -1) for block in np.split(kernel, gates, 1)]
    w_hh = np.split(recurrent, gates, 1)
    return Weights(np.concatenate(w_ih), np.concatenate(w_hh), *np.split(bias, 2))
