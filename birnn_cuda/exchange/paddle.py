"""Paddle's SimpleRNN, GRU and LSTM: torch's matrices, gates and names.

Their state dict holds each weight twice, once under the name of the cell ("0.cell_fw.weight_ih").
Source: python/paddle/nn/layer/rnn.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from ..layers import GRU, LSTM, RNN
from ._layers import Weights, make_layer, read_layers

__all__ = ["load_paddle", "to_paddle"]

_NAME = re.compile(r"(?:weight|bias)_(?:ih|hh)_l(\d+)(_reverse)?")
_GATES = {1: "tanh", 3: "gru", 4: "lstm"}


def load_paddle(
    state_dict: Mapping[str, Any], *, activation: str = "tanh", time_major: bool = False
) -> RNN | GRU | LSTM:
    """The weights of a Paddle SimpleRNN, GRU or LSTM.

    Args:
        state_dict: by name, what the layer's ``state_dict()`` gives, tensors or arrays.
        activation: of a SimpleRNN, "tanh" or "relu": the weights do not say.
        time_major: as of the Paddle layer.

    Returns:
        The layer, with ``batch_first`` the opposite of ``time_major``.

    Raises:
        NotImplementedError: parameters of ``fluid.layers.dynamic_lstm`` with peepholes, or of
            ``dynamic_gru``, which are other layers.
        ValueError: names that are none of such a layer, or shapes that do not fit.
    """
    arrays = {
        name: np.asarray(getattr(value, "numpy", lambda value=value: value)())
        for name, value in state_dict.items()
        if not re.match(r"\d+\.", name)
    }
    unknown = sorted(name for name in arrays if not _NAME.fullmatch(name))
    _refuse_fluid(arrays)
    if unknown or "weight_hh_l0" not in arrays:
        raise ValueError(f"these are not the weights of one recurrent layer: {sorted(arrays)}")
    rows, hidden_size = arrays["weight_hh_l0"].shape
    cell = _GATES.get(rows // hidden_size, "")
    if not cell or rows % hidden_size:
        raise ValueError(f"weight_hh_l0 of shape {(rows, hidden_size)} is of no RNN, GRU or LSTM")
    num_layers = 1 + max(int(_NAME.fullmatch(name)[1]) for name in arrays)  # type: ignore[index]
    suffixes = ("", "_reverse") if "weight_hh_l0_reverse" in arrays else ("",)
    layers = [
        [
            Weights(
                *(
                    arrays.get(f"{name}_l{index}{suffix}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
            )
            for suffix in suffixes
        ]
        for index in range(num_layers)
    ]
    return make_layer(activation if cell == "tanh" else cell, layers, not time_major)


def _refuse_fluid(arrays: Mapping[str, Any]) -> None:
    """The older layers, by their shapes, for their names are the model's: python/paddle/fluid/
    layers/nn.py of Paddle 1."""
    shapes = {array.shape for array in arrays.values()}
    for name, array in arrays.items():
        if array.ndim != 2 or _NAME.fullmatch(name):
            continue
        rows, columns = array.shape
        if rows == 1 and not columns % 7 and (columns // 7, 4 * (columns // 7)) in shapes:
            raise NotImplementedError(
                f"{name} of shape {(rows, columns)} is a bias of 7*H: its last 3*H are peepholes, "
                "through which the gates read the cell state"
            )
        if rows > 1 and columns == 3 * rows:
            raise NotImplementedError(
                f"{name} of shape {(rows, columns)} is no [H, 3*H], but an [H, 2*H] and an [H, H] "
                "one after the other, of a GRU whose reset gate stands before the recurrent product"
            )


def to_paddle(layer: nn.RNNBase) -> dict[str, Any]:
    """The state dict of the Paddle layer that computes the same: names and arrays.

    Args:
        layer: an RNN, GRU or LSTM of this package or of ``torch.nn``.

    Raises:
        NotImplementedError: a layer with ``proj_size``.
    """
    read_layers(layer)  # refuses what has no form there
    return {name: value.detach().cpu().numpy() for name, value in layer.state_dict().items()}
