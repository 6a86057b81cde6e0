"""onnxruntime's RNN, GRU and LSTM operators, in inference.

The model is the bare operator: [T, B, I] in, [T, 2, B, H] out. onnxruntime is spared the
transposition to torch's [T, B, 2*H] layout, input and outputs stay bound to its own memory, and
it runs on the same number of threads as torch, without spinning: its idle threads would take the
cores from whoever runs next.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.problem import Problem, Tensors

OPSET = 17
IR_VERSION = 8

# ONNX's gate order as indices into torch's: LSTM i, o, f, c of i, f, g, o; GRU z, r, h of r, z, n.
GATE_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class OnnxPeer:
    """onnxruntime on the CPU."""

    name = "onnxruntime"

    def absent(self) -> str | None:
        for module in ("onnxruntime", "onnx"):
            try:
                importlib.import_module(module)
            except ImportError as error:
                return f"cannot be imported: {error}"
        return None

    def declines(self, case: Case) -> str | None:
        if case.training:
            return "inference only"
        if case.dtype != "fp32":
            return "its recurrent operators take fp32"
        return None

    def build(self, problem: Problem) -> OnnxRun:
        return OnnxRun(problem)


class OnnxRun:
    """One session, bound to one problem's input."""

    def __init__(self, problem: Problem) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            serialized_model(problem.case, problem.weights),
            options,
            providers=["CPUExecutionProvider"],
        )
        self.names = [output.name for output in self.session.get_outputs()]
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("X", problem.input.numpy())
        for name in self.names:
            self.binding.bind_output(name)

    def step(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def results(self, returned: None) -> Tensors:
        arrays = dict(zip(self.names, self.binding.copy_outputs_to_cpu(), strict=True))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors["output"] = tensors.pop("Y").transpose(1, 2).flatten(2)  # [T, B, 2*H]
        return tensors


def serialized_model(case: Case, weights: Tensors) -> bytes:
    """The layer as an ONNX model of a single node."""
    from onnx import TensorProto, helper, numpy_helper

    def gates_reordered(name: str) -> np.ndarray:
        gates = weights[name].float().numpy()
        gates = gates.reshape(len(GATE_ORDER[case.cell]), case.hidden_size, -1)
        reordered: np.ndarray = gates[list(GATE_ORDER[case.cell])].reshape(
            -1, *weights[name].shape[1:]
        )
        return reordered

    def both_directions(*names: str) -> np.ndarray:
        """The parameters `names`, joined, of each direction: [2, ...]."""
        return np.stack(
            [
                np.concatenate([gates_reordered(f"{name}_l0{suffix}") for name in names])
                for suffix in ("", "_reverse")
            ]
        )

    constants = {
        "W": both_directions("weight_ih"),  # [2, G*H, I]
        "R": both_directions("weight_hh"),  # [2, G*H, H]
        "B": both_directions("bias_ih", "bias_hh"),  # [2, 2*G*H]
    }
    outputs = ["Y", "h_n"] + (["c_n"] if case.cell == "lstm" else [])
    attributes: dict[str, Any] = {"direction": "bidirectional", "hidden_size": case.hidden_size}
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1  # r applies after the recurrent product
    node = helper.make_node(case.cell.upper(), ["X", *constants], outputs, **attributes)
    input_shape = [case.seq_len, case.batch_size, case.input_size]
    graph = helper.make_graph(
        [node],
        case.cell,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    serialized: bytes = model.SerializeToString()
    return serialized
