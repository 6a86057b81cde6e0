"""TorchRL's LSTMModule and GRUModule, in recurrent mode: `is_init` is what `resets=` is here.

They cut rows into sequences, pad these, and call torch's own layer on them packed. The tensordict,
batch first, is laid out outside the timing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import DTYPES, LayerRun, Tensors
from benchmarks.measure.rows import Rows
from benchmarks.peers.peer import import_failure

NAME = "torchrl"


def absent() -> str | None:
    """Why it cannot take part on this machine, or None."""
    return import_failure("tensordict", "torchrl.modules")


def declines(case: Case) -> str | None:
    """Why it does not take part in this case, or None."""
    return None if case.cell in ("gru", "lstm") else "it has LSTM and GRU alone"


class TorchRlRun(LayerRun):
    """One module around one layer of torch.nn."""

    def __init__(self, rows: Rows) -> None:
        from tensordict import TensorDict  # type: ignore[import-not-found,unused-ignore]
        from torchrl import modules  # type: ignore[import-not-found,unused-ignore]

        super().__init__(nn, rows, DTYPES[rows.case.dtype])
        self.layer.batch_first = True
        is_lstm = self.cell == "lstm"
        states = ["h", "c"] if is_lstm else ["h"]
        module_class = modules.LSTMModule if is_lstm else modules.GRUModule
        self.module: Any = module_class(
            in_keys=["input", *states],
            out_keys=["output", *(f"{state}_after" for state in states)],
            default_recurrent_mode=True,
            **{self.cell: self.layer},
        )
        assert isinstance(self.input, torch.Tensor)
        self.leaf = self.input.detach().transpose(0, 1).contiguous().requires_grad_(self.training)
        self.d_output = self.d_output.transpose(0, 1).contiguous()
        self.leaves = [self.leaf, *self.layer.parameters()]
        is_init = rows.resets.t().unsqueeze(2).contiguous()
        self.given: Any = TensorDict({"input": self.leaf, "is_init": is_init}, is_init.shape[:2])
        self.ends_of_first = torch.tensor([own[0] - 1 for own in rows.sizes()])

    def step(self) -> Any:
        if not self.training:
            with torch.inference_mode():
                return self.forward()
        returned = self.forward()
        torch.autograd.backward(returned["output"], self.d_output)
        return returned

    def forward(self) -> Any:
        self.clear_gradients()
        return self.module(self.given.copy())

    def results(self, returned: Any) -> Tensors:
        """Time-major. It leaves the final states of each sequence at its last step."""
        rows = torch.arange(len(self.ends_of_first))
        tensors = {"output": returned["output"].transpose(0, 1)}
        for name, key in (("h_n", "h_after"), ("c_n", "c_after")):
            if key in returned.keys():  # noqa: SIM118 - a tensordict is not iterated by its keys
                states = returned[key]  # [B, T, D, H]
                final = [states[:, -1, 0]]
                if self.layer.bidirectional:
                    final.append(states[rows, self.ends_of_first, 1])
                tensors[name] = torch.stack(final)
        if self.training:
            assert self.leaf.grad is not None
            tensors["d_input"] = self.leaf.grad.transpose(0, 1)
            for name, parameter in self.layer.named_parameters():
                assert parameter.grad is not None
                tensors[f"d_{name}"] = parameter.grad
        return {name: tensor.detach() for name, tensor in tensors.items()}
