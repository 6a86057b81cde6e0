"""OpenVINO's RNN, GRU and LSTM sequences, in inference, on CPU cores.

It reads the very ONNX model that onnxruntime is given, T and B fixed, and computes in fp32 (its
default on a processor with bf16 is bf16), in one stream on the same number of threads as torch.
Input and outputs stay where they lie.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem, Tensors
from benchmarks.peers.onnxruntime import serialized_model, torchs_layout
from benchmarks.peers.peer import import_failure


class OpenVinoPeer:
    """OpenVINO on the CPU."""

    name = "openvino"
    compiles = False

    def absent(self) -> str | None:
        return import_failure("numpy", "openvino", "onnx")

    def declines(self, case: Case) -> str | None:
        if case.training:
            return "inference only"
        if case.dtype != "fp32":
            return "it is asked for fp32 alone"
        return None

    def build(self, problem: Problem) -> OpenVinoRun:
        return OpenVinoRun(problem)


class OpenVinoRun:
    """One compiled model, bound to one problem's input."""

    def __init__(self, problem: Problem) -> None:
        import openvino  # type: ignore[import-untyped]

        core: Any = openvino.Core()
        compiled = core.compile_model(
            core.read_model(serialized_model(problem.case, problem.weights)),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            },
        )
        self.request = compiled.create_infer_request()
        self.input = problem.input.contiguous().numpy()
        self.request.set_input_tensor(openvino.Tensor(self.input, shared_memory=True))
        self.names = [output.any_name for output in compiled.outputs]

    def step(self) -> None:
        self.request.infer()

    def results(self, returned: None) -> Tensors:
        return torchs_layout(
            {
                name: torch.from_numpy(self.request.get_tensor(name).data.copy())
                for name in self.names
            }
        )
