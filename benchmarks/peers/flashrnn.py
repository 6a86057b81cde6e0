"""FlashRNN (Poeppel, Beck, Hochreiter 2024, arXiv:2412.07752): the package ``flashrnn``.

It knows one direction: two directions are two calls. Its tensors, for one head: gates [B, T, G, 1,
H], recurrent weights [G, 1, H, H], biases [G', 1, H], and states [S, B, T, 1, H] out. Its GRU has
the recurrent n gate first, with a bias of its own: recurrent gates n, r, z; biases n_hh, r, z,
n_ih. It compiles a kernel for every batch size, hidden size and dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure.cases import Case
from benchmarks.measure.flops import NUM_GATES
from benchmarks.measure.problem import DTYPES, LayerRun, Problem
from benchmarks.peers.peer import import_failure
from benchmarks.peers.recurrences import Recurrence, layers_of

FUNCTIONS = {"rnn": "elman", "gru": "gru", "lstm": "lstm"}
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def flashrnn_recurrence(backend: str) -> Recurrence:
    """The recurrence by one of its backends."""

    def recurrence(
        cell: str, gates_x: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        from flashrnn import flashrnn  # type: ignore[import-not-found]

        num_gates, hidden_size = NUM_GATES[cell], weight_hh.size(1)
        weights = weight_hh.view(num_gates, 1, hidden_size, hidden_size)
        if cell == "gru":
            from_input = bias_ih.view(3, 1, hidden_size)
            recurrent = bias_hh.view(3, 1, hidden_size)
            weights = weights.roll(1, 0)
            biases = torch.cat([recurrent[2:], (from_input + recurrent)[:2], from_input[2:]])
        else:
            biases = (bias_ih + bias_hh).view(num_gates, 1, hidden_size)
        states, _ = flashrnn(
            gates_x.transpose(0, 1).unflatten(-1, (num_gates, 1, hidden_size)),
            weights,
            biases,
            function=FUNCTIONS[cell],
            backend=backend,
            dtype=DTYPE_NAMES[gates_x.dtype],
        )
        output = states[0, :, :, 0].transpose(0, 1)  # [T, B, H]
        if cell == "lstm":
            return output, (output[-1], states[1, :, -1, 0])
        return output, (output[-1],)

    return recurrence


class FlashRNNPeer:
    """Its fused kernel; for the GRU, which that does not take, it goes over to its other one."""

    name = "flashrnn"
    compiles = True
    backend = "cuda_fused"

    def absent(self) -> str | None:
        return import_failure("flashrnn")

    def declines(self, case: Case) -> str | None:
        return None

    def build(self, problem: Problem) -> LayerRun:
        layers = layers_of(flashrnn_recurrence(self.backend))
        return LayerRun(layers, problem, DTYPES[problem.case.dtype])
