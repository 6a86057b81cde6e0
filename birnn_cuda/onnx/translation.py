"""The operator ``birnn_cuda::forward`` in ONNX: one RNN, GRU or LSTM node for each layer.

ONNX orders gates in its own way: an LSTM's are i, o, f, c (torch: i, f, g, o), a GRU's z, r, h
(torch: r, z, n). Its GRU with ``linear_before_reset=1`` is torch's, with 0 that of
``reset_after=False``; peepholes are its P, i, o, f (here: i, f, o). Operators: ONNX operator
schemas, RNN-14, GRU-14, LSTM-14.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..reference import is_lstm
from .targets import Target, parts_of, target_of

__all__ = ["ONNX_GATES", "translations"]

# Of each cell, where the gates that ONNX wants, in its order, stand in torch's.
ONNX_GATES = {"tanh": (0,), "relu": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
ONNX_GATES |= {"gru_reset_before": ONNX_GATES["gru"], "lstm_peepholes": ONNX_GATES["lstm"]}
_PEEPHOLES = (0, 2, 1)

_NODES = {"tanh": "RNN", "relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
_NODES |= {"gru_reset_before": "GRU", "lstm_peepholes": "LSTM"}

_INT32, _INT64 = 6, 7  # onnx.TensorProto


def translations(target: str = "onnxruntime") -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export(..., dynamo=True)`` needs to know of this package's layers.

    For those who call the exporter themselves; :func:`export` does, and finishes the file. ::

        program = torch.onnx.export(
            model, (input,), dynamo=True, dynamic_shapes=...,
            custom_translation_table=birnn_cuda.onnx.translations(),
        )

    Args:
        target: the runtime that the file is for, as in :func:`export`.

    Returns:
        A dictionary for the argument ``custom_translation_table``. Its functions raise
        ``NotImplementedError`` for what ONNX does not have or the target does not run right.

    Raises:
        ValueError: there is no such target.
        ImportError: onnxscript is missing.
    """
    return table(target_of(target))


def table(target: Target) -> dict[Callable[..., Any], Callable[..., Any]]:
    op: Any = importlib.import_module("onnxscript").opset18

    def birnn_cuda_forward(
        input: Any,
        hx: Any,
        cx: Any,
        weights: Sequence[Any],
        lengths: Any,
        batch_sizes: Any,
        cell: str,
        num_directions: int,
        training: bool,
        precision: str,
        resets: Any = None,
        recurrent_mask: Any = None,
        zoneout_h: Any = None,
        zoneout_c: Any = None,
    ) -> tuple[Any, Any, Any, Any]:
        num_weights = len(weights) // num_directions
        regularisers = recurrent_mask, zoneout_h, zoneout_c
        is_regularised = any(given is not None for given in regularisers)
        refuse_what_onnx_lacks(
            cell, num_weights, batch_sizes is not None, resets is not None, is_regularised
        )
        target.check(parts_of(cell, num_directions, lengths, hx))
        hidden_size = weights[1].shape[1]
        directions = [
            weights[d * num_weights : (d + 1) * num_weights] for d in range(num_directions)
        ]

        peepholes = None
        if cell == "lstm_peepholes":
            peepholes = [group[-1] for group in directions]
            directions = [group[:-1] for group in directions]

        def reordered(weight: Any, gates: Sequence[int] = ONNX_GATES[cell]) -> Any:
            if len(gates) == 1:
                return weight
            rows = [gate * hidden_size + row for gate in gates for row in range(hidden_size)]
            return op.Gather(weight, op.Constant(value_ints=rows), axis=0)

        def stacked(values: Sequence[Any]) -> Any:
            first = op.Constant(value_ints=[0])
            values = [op.Unsqueeze(value, first) for value in values]
            return values[0] if len(values) == 1 else op.Concat(*values, axis=0)

        operands = [stacked([reordered(group[k]) for group in directions]) for k in (0, 1)]
        biases = None
        if len(directions[0]) == 4:
            biases = stacked(
                [
                    op.Concat(reordered(b_ih), reordered(b_hh), axis=0)
                    for *_, b_ih, b_hh in directions
                ]
            )
        node, has_c = _NODES[cell], is_lstm(cell)
        attributes: dict[str, Any] = {
            "hidden_size": hidden_size,
            "direction": "bidirectional" if num_directions == 2 else "forward",
        }
        if cell == "relu":
            attributes["activations"] = ["Relu"] * num_directions
        if node == "GRU":
            attributes["linear_before_reset"] = int(cell == "gru")
        if lengths is not None and target.clip_with_lengths is not None:
            attributes["clip"] = target.clip_with_lengths
        sequence_lens = None if lengths is None else op.Cast(lengths, to=_INT32)
        states = [hx, cx] if has_c else [hx]
        given = [input, *operands, biases, sequence_lens, *states]
        if peepholes is not None:
            given.append(stacked([reordered(weight, _PEEPHOLES) for weight in peepholes]))
        y, *finals = getattr(op, node)(*given, **attributes)
        # [T, D, B, H] to [T, B, D*H]
        output = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        if lengths is not None and hx is not None:
            # Runtimes give zeros for a sequence of length 0, whose state should stay.
            empty = op.Unsqueeze(
                op.Equal(op.Cast(lengths, to=_INT64), op.Constant(value_ints=[0])),
                op.Constant(value_ints=[0, 2]),
            )
            finals = [op.Where(empty, s, f) for s, f in zip(states, finals, strict=True)]
        nothing = op.Constant(value_floats=[])
        c_n = finals[1] if has_c else nothing
        # Unused, as it nearly always is, it goes. Where cell states are made of it, text among
        # numbers is what every runtime refuses.
        reserve = op.Constant(value_strings=["birnn_cuda: cell states are not exported"])
        return output, finals[0], c_n, reserve

    return {torch.ops.birnn_cuda.forward.default: birnn_cuda_forward}


def refuse_what_onnx_lacks(
    cell: str, num_weights: int, packed: bool, has_resets: bool, is_regularised: bool
) -> None:
    """Refuse a layer of ``num_weights`` operands a direction that no node of ONNX is.

    Raises:
        NotImplementedError: the layer is projected, or its input packed, or has resets; it has
            zoneout, or recurrent dropout in training mode.
    """
    if is_regularised:
        raise NotImplementedError(
            "no node of ONNX drops or mixes the states between steps: export the model in eval "
            "mode, with layers whose zoneout is 0"
        )
    if has_resets:
        raise NotImplementedError(
            "no node of ONNX begins a sequence inside a row: export the model without resets=, one "
            "sequence a row, with lengths="
        )
    if packed:
        raise NotImplementedError(
            "ONNX has no packed sequences: export the model with a padded input and lengths="
        )
    if num_weights in (3, 5) and cell != "lstm_peepholes":
        raise NotImplementedError(
            "ONNX's LSTM has no projection: a layer with proj_size feeds the projected state back "
            "at every step, which no node of ONNX does"
        )
