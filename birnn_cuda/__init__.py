"""birnn_cuda: the bidirectional recurrent layer for PyTorch, as CUDA kernels.

``RNN``, ``GRU`` and ``LSTM`` stand where those of ``torch.nn`` stood; ``BiRNN`` is the complete
network of Schuster & Paliwal (1997); ``replace_rnns`` swaps the layers of a model that exists.
"""

from .convert import replace_rnns, to_torch
from .layers import GRU, LSTM, RNN
from .model import BiRNN
from .sequences import check_lengths

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BiRNN",
    "__version__",
    "check_lengths",
    "replace_rnns",
    "to_torch",
]
