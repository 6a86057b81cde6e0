"""One layer in several dtypes: this package's, torch.nn's and onnxruntime's.

All are given the same numbers in fp32, and rounded to what they compute in when they are built.
int8 is inference: `birnn_cuda.quantize`, `torch.ao.quantization.quantize_dynamic` (LSTM and GRU),
`onnxruntime.quantization.quantize_dynamic` (LSTM).
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import DTYPES, LayerRun, Problem
from benchmarks.peers.onnxruntime import OnnxRun, serialized_model
from benchmarks.peers.peer import SUBJECT, TORCH, Run, import_failure

ONNX = "onnxruntime"
FORMATS = ("fp32", "bf16", "int8")


def builders(case: Case) -> dict[str, Callable[[Problem], Run]]:
    """How each entrant of a case of fp32 is built, by its name: who, and in which dtype."""
    found: dict[str, Callable[[Problem], Run]] = {}
    for name in (SUBJECT, TORCH):
        for dtype in ("fp32", "bf16"):
            found[f"{name} {dtype}"] = _layer_in(name, DTYPES[dtype])
    if not case.training:
        found[f"{SUBJECT} int8"] = QuantizedRun
        if case.cell != "rnn":  # quantize_dynamic leaves nn.RNN in fp32
            found[f"{TORCH} int8"] = TorchQuantizedRun
        if import_failure("numpy", "onnxruntime", "onnx") is None:
            found[f"{ONNX} fp32"] = OnnxRun
            if case.cell == "lstm":
                found[f"{ONNX} int8"] = OnnxQuantizedRun
    return found


def _layer_in(package: str, dtype: torch.dtype) -> Callable[[Problem], Run]:
    return lambda problem: LayerRun(importlib.import_module(package), problem, dtype)


class QuantizedRun(LayerRun):
    """This package's int8 layer."""

    def __init__(self, problem: Problem) -> None:
        import birnn_cuda

        super().__init__(birnn_cuda, problem, torch.float32)
        self.layer = birnn_cuda.quantize(self.layer)


class TorchQuantizedRun(LayerRun):
    """torch.nn's, quantized dynamically."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(torch.nn, problem, torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only what lies inside a module is quantized.
            model = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(self.layer), {type(self.layer)}
            )
        self.layer = model[0]


class OnnxQuantizedRun(OnnxRun):
    """onnxruntime's DynamicQuantizeLSTM."""

    def model(self, problem: Problem) -> bytes:
        from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
            source.write_bytes(serialized_model(problem.case, problem.weights))
            quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
            return target.read_bytes()
