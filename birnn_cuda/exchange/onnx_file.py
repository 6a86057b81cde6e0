"""RNN, GRU and LSTM nodes of ONNX files.

Shapes and equations: ONNX operator schemas, RNN-14, GRU-14 and LSTM-14, and DynamicQuantizeLSTM-1
of com.microsoft.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..layers import GRU, LSTM, RNN
from ._layers import Imported, Reversed, Weights, make_layer, reorder

__all__ = ["load_onnx"]

# Where each of torch's gates stands in ONNX: LSTM i, o, f, c; GRU z, r, h.
_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1), "DynamicQuantizeLSTM": (0, 2, 3, 1)}

_PEEPHOLES = (0, 2, 1)  # ONNX: i, o, f

_ACTIVATIONS = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "DynamicQuantizeLSTM": ("sigmoid", "tanh", "tanh"),
}

# Beyond it a float32 tanh and sigmoid no longer move: a clip this large changes nothing.
_SATURATED = 100.0

_Find = Callable[[str], Any]  # the constant of a name, None where it is none


def load_onnx(file: Any) -> list[Imported]:
    """The recurrent layers of an ONNX file, as layers of this package.

    Weights may be initialisers or what constants fold to; the branches of If and the bodies of
    Loop and Scan are entered. A ``DynamicQuantizeLSTM`` is dequantised, with a warning: near to
    what the file computes, not equal to it.

    Args:
        file: a path, the bytes of a file, or an ``onnx.ModelProto``.

    Returns:
        One :class:`Imported` for each node, in the order of the file, with the initial states
        that it holds as constants (None for zeros). ``layout=1`` becomes ``batch_first``; a node
        of direction "reverse" becomes a :class:`Reversed` layer. A GRU with
        ``linear_before_reset=0`` has ``reset_after=False``, an LSTM with P ``peepholes=True``.

    Raises:
        NotImplementedError: a node that is no layer of this package, naming it and why: a clip
            that clips, ``input_forget``, other activations than the usual ones, or weights that
            are not constant.
        ValueError: the file holds no recurrent node, or weights of the wrong shape.
        ImportError: the package onnx is missing.
    """
    import onnx

    if isinstance(file, onnx.ModelProto):
        model = file
    elif isinstance(file, bytes):
        model = onnx.load_from_string(file)
    else:
        model = onnx.load(os.fspath(file))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    found = [
        _layer_of(node, name, find) for node, name, find in _nodes(model.graph, "", None, opsets)
    ]
    if not found:
        raise ValueError("the file holds no RNN, GRU or LSTM node")
    return found


def _nodes(
    graph: Any, prefix: str, outer: _Find | None, opsets: Mapping[str, int]
) -> Iterator[tuple[Any, str, _Find]]:
    """Each recurrent node of a graph and of the graphs in it, its name, and its constants."""
    find = _constants(graph, outer, opsets)
    for node in graph.node:
        name = prefix + (node.name or next(filter(None, node.output), node.op_type))
        if node.op_type in _ORDER:
            yield node, name, find
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, f"{name}/{attribute.name}/", find, opsets)


def _constants(graph: Any, outer: _Find | None, opsets: Mapping[str, int]) -> _Find:
    import onnx
    from onnx.reference import ReferenceEvaluator

    initializers = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output if output}
    inputs = {value.name for value in graph.input} - set(initializers)
    known: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name in known:
            return known[name]
        known[name] = None
        if name in initializers:
            known[name] = onnx.numpy_helper.to_array(initializers[name])
        elif name in makers:
            known[name] = fold(makers[name], name)
        elif name not in inputs and outer is not None:
            known[name] = outer(name)
        return known[name]

    def fold(node: Any, name: str) -> Any:
        if node.op_type in _ORDER or any(a.HasField("g") for a in node.attribute):
            return None
        operands = {operand: find(operand) for operand in node.input if operand}
        if any(value is None for value in operands.values()):
            return None
        if node.op_type.startswith("Random"):
            return None
        version = opsets.get(node.domain, 1)
        evaluator = ReferenceEvaluator(
            onnx.helper.make_model(
                onnx.helper.make_graph(
                    [node],
                    "fold",
                    [onnx.helper.make_value_info(key, onnx.TypeProto()) for key in operands],
                    [onnx.helper.make_value_info(name, onnx.TypeProto())],
                ),
                opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
            )
        )
        results: Any = evaluator.run([name], operands)
        return results[0]

    return find


def _layer_of(node: Any, name: str, find: _Find) -> Imported:
    import onnx

    kind = node.op_type
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def refuse(reason: str) -> NotImplementedError:
        return NotImplementedError(f"{kind} node {name!r}: {reason}")

    def operand(index: int, what: str) -> Any:
        """A constant operand, None where it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return None
        value = find(node.input[index])
        if value is None:
            raise refuse(f"its {what} is computed by the graph, not a constant")
        return value

    direction = attributes.get("direction", b"forward").decode().lower()
    num_directions = 2 if direction == "bidirectional" else 1
    cell = _cell_of(kind, attributes, num_directions, refuse)
    if attributes.get("input_forget", 0):
        raise refuse("input_forget couples its input and forget gates")
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        cell = "gru_reset_before"
    clip = attributes.get("clip", 0.0)
    if 0 < clip < (_SATURATED if cell != "relu" else float(np.finfo(np.float32).max)):
        raise refuse(f"clip={clip:g} clips what its activations read")
    peepholes = operand(7, "P") if kind.endswith("LSTM") else None
    if peepholes is not None:
        peepholes = peepholes if np.any(peepholes) else None
        cell = cell if peepholes is None else "lstm_peepholes"

    w, r, b = (operand(index, what) for index, what in ((1, "W"), (2, "R"), (3, "B")))
    if w is None or r is None:
        raise refuse("it has no weights")
    if kind == "DynamicQuantizeLSTM":
        warnings.warn(
            f"{kind} node {name!r} is dequantised: near to what the file computes, not equal",
            stacklevel=3,
        )
        w = _dequantise(w, operand(8, "W_scale"), operand(9, "W_zero_point"))
        r = _dequantise(r, operand(10, "R_scale"), operand(11, "R_zero_point"))
    if w.shape[0] != num_directions:
        raise ValueError(f"{kind} node {name!r}: W of shape {w.shape}, direction {direction!r}")
    order = _ORDER[kind]
    directions = []
    for index in range(num_directions):
        b_ih, b_hh = (
            (None, None) if b is None else (reorder(x, order) for x in np.split(b[index], 2))
        )
        w_ch = None if peepholes is None else reorder(peepholes[index], _PEEPHOLES)
        weights = (reorder(w[index], order), reorder(r[index], order), b_ih, b_hh)
        directions.append(Weights(*weights, w_ch))
    batch_first = bool(attributes.get("layout", 0))
    layer: RNN | GRU | LSTM | Reversed = make_layer(cell, [directions], batch_first)
    if direction == "reverse":
        layer = Reversed(layer)  # type: ignore[arg-type]
    states = []
    for index in (5, 6) if kind.endswith("LSTM") else (5,):
        given = find(node.input[index]) if index < len(node.input) and node.input[index] else None
        if given is not None and batch_first:
            given = np.swapaxes(given, 0, 1)
        states.append(None if given is None or not np.any(given) else torch.tensor(given))
    return Imported(name, layer, *states)


def _cell_of(
    kind: str,
    attributes: Mapping[str, Any],
    num_directions: int,
    refuse: Callable[[str], NotImplementedError],
) -> str:
    usual = _ACTIVATIONS[kind]
    named = [text.decode() for text in attributes.get("activations", [])]
    given = tuple(text.lower() for text in named) or usual * num_directions
    if kind == "RNN" and set(given) == {"relu"}:
        return "relu"
    if given != usual * num_directions:
        raise refuse(f"its activations are {named}")
    return "tanh" if kind == "RNN" else kind.removeprefix("DynamicQuantize").lower()


def _dequantise(values: Any, scale: Any, zero_point: Any) -> Any:
    """``[D, in, 4*H]`` of bytes, scaled by the tensor or by the column, as ``[D, 4*H, in]``."""
    shape = (values.shape[0], 1, -1)
    exact = values.astype(np.float32) - zero_point.astype(np.float32).reshape(shape)
    return (exact * scale.reshape(shape)).swapaxes(1, 2)
