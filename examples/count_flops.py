"""Operations of a model by thop and by ptflops, before and after replace_rnns: the same.

    pip install --no-deps thop==0.1.1.post2209072238 ptflops==0.7.5     (or: make real-models)
    python examples/count_flops.py

Both look up the exact class of a layer in a table of their own, and count 0 for one that is not
there: each call says what of the table serves for the layers of this package. The exit status is 1
if a count is not that of torch.nn's layers. (torch's own FlopCounterMode needs no table.)
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch
from published_networks import describe_torchvision
from torch import Tensor, nn

import birnn_cuda

STEPS, BATCH, SIZE = 9, 3, 8
LINEAR = BATCH * STEPS * (32 + 1) * 5  # what a tagger's other layer is counted for, at most


class Tagger(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.rnn = layer(SIZE, 16, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(32, 5)

    def forward(self, input: Tensor) -> Tensor:
        output, _ = self.rnn(input)
        tags: Tensor = self.linear(output)
        return tags


def by_thop(model: nn.Module) -> float:
    """Multiply-adds, as thop counts them."""
    thop = import_module("thop")
    hooks = import_module("thop.rnn_hooks")
    operations, _ = thop.profile(
        model,
        (torch.randn(BATCH, STEPS, SIZE),),
        custom_ops={
            birnn_cuda.RNN: hooks.count_rnn,
            birnn_cuda.GRU: hooks.count_gru,
            birnn_cuda.LSTM: hooks.count_lstm,
        },
        verbose=False,
    )
    return float(operations)


def by_ptflops(model: nn.Module) -> float:
    """Multiply-adds, as ptflops counts them; it makes a batch of one itself."""
    ptflops = import_module("ptflops")
    hook = import_module("ptflops.pytorch_ops").rnn_flops_counter_hook
    layers = (birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM)
    operations, _ = ptflops.get_model_complexity_info(
        model,
        (STEPS, SIZE),
        print_per_layer_stat=False,
        as_strings=False,
        custom_modules_hooks=dict.fromkeys(layers, hook),
    )
    return float(operations)


def main() -> int:
    """Count the operations of a tagger of each kind; returns the exit status."""
    describe_torchvision()  # ptflops imports it
    status = 0
    for layer in (nn.RNN, nn.GRU, nn.LSTM):
        for name, count in (("thop", by_thop), ("ptflops", by_ptflops)):
            model = Tagger(layer)
            before = count(model)
            after = count(birnn_cuda.replace_rnns(model))
            print(f"{layer.__name__} by {name}: {before:.0f}, with our layers {after:.0f}")
            if after != before or not after > LINEAR:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
