"""What torch.compile makes of the cell: the step compiled, the loop over time in a CUDA graph.

A compiled loop over all T steps would take minutes to compile for each T; a compiled step called
from Python would spend its time in the calls. Captured, the loop is as good as a compiler of one
step can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.measure.cases import Case
from benchmarks.measure.cuda_graph import GraphRun
from benchmarks.measure.problem import DTYPES, LayerRun, Problem
from benchmarks.peers.peer import GRAPH, import_failure
from benchmarks.peers.recurrences import Recurrence, layers_of

Step = Callable[..., tuple[Tensor, Tensor]]


def rnn_step(gates_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return torch.tanh(gates_x + linear(h, weight, bias)), c


def gru_step(gates_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Any:
    r_x, z_x, n_x = gates_x.float().chunk(3, -1)
    r_h, z_h, n_h = linear(h, weight, bias).float().chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (n + z * (h.float() - n)).to(h.dtype), c


def lstm_step(gates_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Any:
    i, f, g, o = (gates_x.float() + linear(h, weight, bias).float()).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return (torch.sigmoid(o) * torch.tanh(c)).to(h.dtype), c


STEPS: dict[str, Step] = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def looped(steps: dict[str, Step]) -> Recurrence:
    """The recurrence that calls its cell's step T times. The LSTM's c stays in fp32."""

    def recurrence(
        cell: str, gates_x: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch_size, hidden_size = gates_x.size(1), weight_hh.size(1)
        h = gates_x.new_zeros(batch_size, hidden_size)
        c = torch.zeros(batch_size, hidden_size, device=h.device)
        outputs = []
        for step_gates in (gates_x + bias_ih).unbind(0):
            h, c = steps[cell](step_gates, h, c, weight_hh, bias_hh)
            outputs.append(h)
        return torch.stack(outputs), (h, c.to(h.dtype)) if cell == "lstm" else (h,)

    return recurrence


class CompiledLoopPeer:
    """The cell's step through torch.compile, all T of them in one CUDA graph."""

    name = "torch.compile" + GRAPH
    compiles = True

    def absent(self) -> str | None:
        return import_failure("triton")

    def declines(self, case: Case) -> str | None:
        return None

    def build(self, problem: Problem) -> GraphRun:
        torch.compiler.reset()  # or the shapes of earlier cases count towards its limit
        steps = {
            cell: torch.compile(step, dynamic=False, fullgraph=True) for cell, step in STEPS.items()
        }
        dtype = DTYPES[problem.case.dtype]
        return GraphRun(LayerRun(layers_of(looped(steps)), problem, dtype))
