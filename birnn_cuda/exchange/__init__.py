"""Recurrent weights in from the files and layers of other frameworks, and back out to them.

One module a format; what it reads is imported when its function is called. Needs numpy.
"""

from ._layers import Imported, Reversed
from .dynet import load_dynet
from .flax import load_flax, load_jax, to_flax
from .keras import load_keras, to_keras
from .mlx import load_mlx, to_mlx
from .onnx_file import load_onnx
from .paddle import load_paddle, to_paddle

__all__ = [
    "Imported",
    "Reversed",
    "load_dynet",
    "load_flax",
    "load_jax",
    "load_keras",
    "load_mlx",
    "load_onnx",
    "load_paddle",
    "to_flax",
    "to_keras",
    "to_mlx",
    "to_paddle",
]
