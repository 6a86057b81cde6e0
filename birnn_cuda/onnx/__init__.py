"""Models with this package's layers as ONNX files, each in the form that a runtime runs right.

Needs the packages onnx and onnxscript, which are imported when a function is called.
"""

from .translation import translations
from .writer import export

__all__ = ["export", "translations"]
