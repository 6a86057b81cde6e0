"""JAX's LSTM through cuDNN: ``jax.experimental.rnn``.

It is called through jit and waited for, since its work is on no stream of torch's: its time holds
one dispatch and one wait of the host, which the others' times do not.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem, Tensors
from benchmarks.peers.peer import import_failure

# cuDNN's order: for each direction both weights, then for each direction both biases.
PARAMETERS = (("weight_ih", "weight_hh"), ("bias_ih", "bias_hh"))


class JaxPeer:
    """cuDNN behind another framework."""

    name = "jax"
    compiles = True

    def absent(self) -> str | None:
        # Or JAX takes most of the GPU's memory when it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        reason = import_failure("jax", "jax.experimental.rnn")
        if reason is not None:
            return reason
        import jax

        if jax.default_backend() != "gpu":
            return f"it runs on {jax.default_backend()} only"
        return None

    def declines(self, case: Case) -> str | None:
        if case.cell != "lstm" or case.dtype not in ("fp32", "tf32"):
            return "it has the LSTM in fp32 and tf32 only"
        return None

    def build(self, problem: Problem) -> JaxRun:
        return JaxRun(problem)


class JaxRun:
    """The layer, its input and, for training, its gradients, as one compiled function."""

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp
        from jax.experimental import rnn

        case = problem.case
        self.case = case
        self.names = parameter_names(case)
        self.shapes = [problem.weights[name].shape for name in self.names]
        self.device = problem.input.device
        flat = torch.cat([problem.weights[name].flatten() for name in self.names])
        state = jnp.zeros((case.num_directions, case.batch_size, case.hidden_size), jnp.float32)
        lengths = jnp.full((case.batch_size,), case.seq_len, jnp.int32)

        def forward(x: Any, weights: Any) -> Any:
            return rnn.lstm(
                x,
                state,
                state,
                weights,
                lengths,
                input_size=case.input_size,
                hidden_size=case.hidden_size,
                num_layers=1,
                dropout=0.0,
                bidirectional=case.bidirectional,
                precision=jax.lax.Precision.HIGHEST if case.dtype == "fp32" else None,
            )

        def forward_and_backward(x: Any, weights: Any, d_output: Any) -> Any:
            results, pull_back = jax.vjp(forward, x, weights)
            no_gradient = jnp.zeros_like(state)
            return *results, *pull_back((d_output, no_gradient, no_gradient))

        def batch_first(tensor: torch.Tensor) -> Any:
            return jnp.asarray(tensor.transpose(0, 1).contiguous().cpu().numpy())

        self.arguments = [batch_first(problem.input), jnp.asarray(flat.cpu().numpy())]
        if case.training:
            self.arguments.append(batch_first(problem.d_output))
        self.function = jax.jit(forward_and_backward if case.training else forward)
        self.wait = jax.block_until_ready

    def step(self) -> Any:
        torch.cuda.current_stream().synchronize()  # the clock has started when this returns
        return self.wait(self.function(*self.arguments))

    def results(self, returned: Any) -> Tensors:
        import numpy as np

        tensors = [torch.from_numpy(np.array(array)).to(self.device) for array in returned]
        results = {"output": tensors[0].transpose(0, 1), "h_n": tensors[1], "c_n": tensors[2]}
        if self.case.training:
            results["d_input"] = tensors[3].transpose(0, 1)
            parts = tensors[4].split([shape.numel() for shape in self.shapes])
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True):
                results[f"d_{name}"] = part.view(shape)
        return results


def parameter_names(case: Case) -> list[str]:
    """torch's names of the parameters in the order in which JAX packs them."""
    suffixes = ("_l0", "_l0_reverse")[: case.num_directions]
    return [name + suffix for kind in PARAMETERS for suffix in suffixes for name in kind]
