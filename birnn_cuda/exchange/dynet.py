"""DyNet's LSTM: gates i, f, o, g, and a forget bias of 1 that no file holds.

Source: dynet/lstm.cc, VanillaLSTMBuilder; dynet's BiRNNBuilder feeds each layer both directions of
the one below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..layers import LSTM
from ._layers import Weights, make_layer, reorder

__all__ = ["load_dynet"]

_ORDER = (0, 1, 3, 2)


def load_dynet(layers: Sequence[Sequence[Sequence[Any]]], *, forget_bias_add: float = 1.0) -> LSTM:
    """The parameters of a ``VanillaLSTMBuilder`` or of a BiRNNBuilder of them.

    Args:
        layers: of each layer, of each direction, the parameters ``_0`` ``[4*H, I]``, ``_1``
            ``[4*H, H]`` and ``_2`` ``[4*H]``.
        forget_bias_add: what the cell adds to the forget gate; DyNet's own is 1.

    Returns:
        The layer.

    Raises:
        NotImplementedError: other parameters than three of those shapes (the coupled or peephole
            builders have more).
        ValueError: shapes that do not fit together.
    """
    return make_layer(  # type: ignore[return-value]
        "lstm", [[_read(direction, forget_bias_add) for direction in layer] for layer in layers]
    )


def _read(parameters: Sequence[Any], forget_bias_add: float) -> Weights:
    arrays = [np.asarray(value) for value in parameters]
    shapes = [array.shape for array in arrays]
    hidden_size = shapes[1][1] if len(shapes) == 3 and len(shapes[1]) == 2 else 0
    rows = 4 * hidden_size
    if not hidden_size or shapes[1:] != [(rows, hidden_size), (rows,)] or shapes[0][0] != rows:
        raise NotImplementedError(
            f"parameters of shapes {shapes} are not the input's, the state's and the bias of a "
            "VanillaLSTMBuilder"
        )
    w_ih, w_hh, bias = (reorder(array, _ORDER) for array in arrays)
    bias[hidden_size : 2 * hidden_size] += forget_bias_add
    return Weights(w_ih, w_hh, bias, np.zeros_like(bias))
