"""birnn_cuda: the bidirectional recurrent layer for PyTorch, as CUDA kernels.

``RNN``, ``GRU``, ``LSTM`` and their cells stand where those of ``torch.nn`` stood; ``BiRNN`` is the
complete network of Schuster & Paliwal (1997); ``replace_rnns`` swaps the layers of a model that
exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cells import GRUCell, LSTMCell, RNNCell
from .convert import replace_rnns, to_torch
from .layers import GRU, LSTM, RNN
from .model import BiRNN
from .quantized import QuantizedGRU, QuantizedLSTM, QuantizedRNN, quantize
from .rows import PackedRows, pack_rows
from .sequences import check_lengths

if TYPE_CHECKING:
    from .exchange import (
        load_dynet,
        load_flax,
        load_jax,
        load_keras,
        load_mlx,
        load_onnx,
        load_paddle,
        to_flax,
        to_keras,
        to_mlx,
        to_paddle,
    )

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BiRNN",
    "GRUCell",
    "LSTMCell",
    "PackedRows",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedRNN",
    "RNNCell",
    "__version__",
    "check_lengths",
    "load_dynet",
    "load_flax",
    "load_jax",
    "load_keras",
    "load_mlx",
    "load_onnx",
    "load_paddle",
    "pack_rows",
    "quantize",
    "replace_rnns",
    "to_flax",
    "to_keras",
    "to_mlx",
    "to_paddle",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    """The readers and writers of other formats, which need numpy as nothing else here does."""
    if name.startswith(("load_", "to_")) and name in __all__:
        from . import exchange

        return getattr(exchange, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
