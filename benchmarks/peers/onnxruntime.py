"""onnxruntime's RNN, GRU and LSTM operators, in inference, on CPU cores and through CUDA.

The model is the bare operator: [T, B, I] in, [T, D, B, H] out; of several layers one after the
other, each turned into the next one's input. onnxruntime is spared the last transposition to
torch's [T, B, D*H] layout, and input and outputs stay bound to memory that exists already; a
stream's states lie in two sets of buffers, which calls read and write in turn. On CPU cores it runs
on the same number of threads as torch, without spinning: its idle threads would take the cores from
whoever runs next. On CUDA it runs on a stream of torch's, and does not wait for it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import DTYPES, Problem, Tensors
from benchmarks.measure.streams import CALLS, Stream
from benchmarks.peers.peer import import_failure

if TYPE_CHECKING:
    import numpy as np

OPSET = 17
IR_VERSION = 8
CUDA_PROVIDER = "CUDAExecutionProvider"
CUDA_DEVICE = "cuda"  # as onnxruntime names it

# ONNX's gate order as indices into torch's: LSTM i, o, f, c of i, f, g, o; GRU z, r, h of r, z, n.
GATE_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class OnnxPeer:
    """onnxruntime on the CPU."""

    name = "onnxruntime"
    compiles = False

    def absent(self) -> str | None:
        return import_failure("numpy", "onnxruntime", "onnx")

    def declines(self, case: Case) -> str | None:
        if case.training:
            return "inference only"
        if case.dtype != "fp32":
            return "its recurrent operators take fp32"
        return None

    def build(self, problem: Problem) -> OnnxRun:
        return OnnxRun(problem)

    def build_stream(self, stream: Stream) -> OnnxStreamRun:
        return OnnxStreamRun(stream)


class OnnxCudaPeer:
    """onnxruntime through its CUDA execution provider, which calls cuDNN."""

    name = "onnxruntime"
    compiles = False

    def absent(self) -> str | None:
        reason = import_failure("numpy", "onnxruntime", "onnx")
        if reason is not None:
            return reason
        import onnxruntime  # type: ignore[import-untyped]

        if CUDA_PROVIDER not in onnxruntime.get_available_providers():
            return f"this build of onnxruntime has no {CUDA_PROVIDER}"
        return None

    def declines(self, case: Case) -> str | None:
        if case.training:
            return "inference only"
        if case.dtype == "bf16":
            return "its recurrent operators take fp16 and fp32"
        return None

    def build(self, problem: Problem) -> OnnxCudaRun:
        return OnnxCudaRun(problem)


class OnnxRun:
    """One session on CPU cores, bound to one problem's input."""

    def __init__(self, problem: Problem) -> None:
        self.session = cpu_session(self.model(problem))
        self.names = [output.name for output in self.session.get_outputs()]
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("X", problem.input.numpy())
        for name in self.names:
            self.binding.bind_output(name)

    def model(self, problem: Problem) -> bytes:
        return serialized_model(problem.case, problem.weights)

    def step(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def results(self, returned: None) -> Tensors:
        arrays = dict(zip(self.names, self.binding.copy_outputs_to_cpu(), strict=True))
        return torchs_layout({name: torch.from_numpy(array) for name, array in arrays.items()})


class OnnxStreamRun:
    """One session on CPU cores that is fed a stream: what a call writes, the next one reads."""

    def __init__(self, stream: Stream) -> None:
        import numpy as np

        case = stream.case
        self.session = cpu_session(serialized_model(case, stream.weights, with_states=True))
        directions = case.num_directions
        size = (case.num_layers * directions, case.batch_size, case.hidden_size)
        names = ("h", "c") if case.cell == "lstm" else ("h",)
        # By turn: what is read, and what is written.
        read = [
            {"X": chunk.contiguous(), **{f"{name}_0": torch.empty(size) for name in names}}
            for chunk in stream.chunks(torch.float32)
        ]
        for name, state in zip(names, stream.states, strict=True):
            read[0][f"{name}_0"].copy_(state)
        self.written = [
            {
                "Y": torch.empty(case.seq_len, directions, *size[1:]),
                **{f"{name}_n": read[(turn + 1) % CALLS][f"{name}_0"] for name in names},
            }
            for turn in range(CALLS)
        ]
        self.bindings = []
        for inputs, outputs in zip(read, self.written, strict=True):
            binding = self.session.io_binding()
            for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
                for name, tensor in tensors.items():
                    shape = tuple(tensor.shape)
                    bind(name, "cpu", 0, np.float32, shape, tensor.data_ptr())
            self.bindings.append(binding)
        self.inputs = read  # kept alive: a binding holds pointers alone
        self.turn = itertools.cycle(range(CALLS))

    def step(self) -> int:
        turn = next(self.turn)
        self.session.run_with_iobinding(self.bindings[turn])
        return turn

    def results(self, returned: int) -> Tensors:
        turns = [returned, *(self.step() for _ in range(CALLS - 1))]
        outputs = [torchs_layout({"Y": self.written[turn]["Y"]})["output"] for turn in turns]
        states = {name: tensor for name, tensor in self.written[turns[-1]].items() if name != "Y"}
        return {"output": torch.cat(outputs), **states}


def cpu_session(model: bytes) -> Any:
    """A session on as many threads as torch's, which do not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxCudaRun:
    """One session on the GPU: its input and outputs are torch's tensors, its stream is torch's."""

    def __init__(self, problem: Problem) -> None:
        import onnxruntime

        case = problem.case
        self.input = problem.input.contiguous()
        # onnxruntime takes stream 0, torch's default, for none at all.
        self.stream = torch.cuda.Stream()
        provider_options = {
            "device_id": str(torch.cuda.current_device()),
            "user_compute_stream": str(self.stream.cuda_stream),
            "use_tf32": "1" if case.dtype == "tf32" else "0",
        }
        self.session = onnxruntime.InferenceSession(
            serialized_model(case, problem.weights),
            providers=[(CUDA_PROVIDER, provider_options)],
        )
        if self.session.get_providers()[0] != CUDA_PROVIDER:
            raise RuntimeError(f"onnxruntime could not start {CUDA_PROVIDER}")
        self.options = onnxruntime.RunOptions()
        self.options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        state = (case.num_directions, case.batch_size, case.hidden_size)
        sizes = {"Y": (case.seq_len, *state), "h_n": state, "c_n": state}
        self.outputs = {
            output.name: self.input.new_empty(sizes[output.name])
            for output in self.session.get_outputs()
        }
        self.binding = self.session.io_binding()
        for bind, tensors in (
            (self.binding.bind_input, {"X": self.input}),
            (self.binding.bind_output, self.outputs),
        ):
            for name, tensor in tensors.items():
                bind(
                    name=name,
                    device_type=CUDA_DEVICE,
                    device_id=torch.cuda.current_device(),
                    element_type=numpy_dtype(case),
                    shape=tuple(tensor.shape),
                    buffer_ptr=tensor.data_ptr(),
                )

    def step(self) -> None:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        self.session.run_with_iobinding(self.binding, self.options)
        current.wait_stream(self.stream)

    def results(self, returned: None) -> Tensors:
        return torchs_layout(self.outputs)


def torchs_layout(outputs: Tensors) -> Tensors:
    """The operator's outputs by torch's names: Y [T, D, B, H] becomes output [T, B, D*H]."""
    tensors = {name: tensor for name, tensor in outputs.items() if name != "Y"}
    return {"output": outputs["Y"].transpose(1, 2).flatten(2), **tensors}


def numpy_dtype(case: Case) -> type[np.generic]:
    """The element type of the model."""
    import numpy as np

    return np.float16 if case.dtype == "fp16" else np.float32


def serialized_model(case: Case, weights: Tensors, with_states: bool = False) -> bytes:
    """The layers as an ONNX model, a node each; on request it takes h_0 and c_0."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    def gates_reordered(name: str) -> np.ndarray:
        gates = weights[name].to("cpu", DTYPES["fp32"]).numpy().astype(numpy_dtype(case))
        gates = gates.reshape(len(GATE_ORDER[case.cell]), case.hidden_size, -1)
        reordered: np.ndarray = gates[list(GATE_ORDER[case.cell])].reshape(
            -1, *weights[name].shape[1:]
        )
        return reordered

    def all_directions(layer: int, *names: str) -> np.ndarray:
        """The parameters `names`, joined, of each direction of a layer: [D, ...]."""
        return np.stack(
            [
                np.concatenate([gates_reordered(f"{name}_l{layer}{suffix}") for name in names])
                for suffix in ("", "_reverse")[: case.num_directions]
            ]
        )

    attributes: dict[str, Any] = {
        "direction": "bidirectional" if case.bidirectional else "forward",
        "hidden_size": case.hidden_size,
    }
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1  # r applies after the recurrent product
    final = ["h_n"] + (["c_n"] if case.cell == "lstm" else [])
    states = [name.replace("_n", "_0") for name in final] if with_states else []
    one_layer = case.num_layers == 1
    constants: dict[str, np.ndarray] = {}
    nodes = []

    def of_layer(name: str, layer: int) -> str:
        return name if one_layer else f"{name}_{layer}"

    if states and not one_layer:
        constants["sizes"] = np.full(case.num_layers, case.num_directions, dtype=np.int64)
        for name in states:
            parts = [of_layer(name, layer) for layer in range(case.num_layers)]
            nodes.append(helper.make_node("Split", [name, "sizes"], parts, axis=0))
    below = "X"
    for layer in range(case.num_layers):
        own = {
            of_layer("W", layer): all_directions(layer, "weight_ih"),  # [D, G*H, I]
            of_layer("R", layer): all_directions(layer, "weight_hh"),  # [D, G*H, H]
            of_layer("B", layer): all_directions(layer, "bias_ih", "bias_hh"),  # [D, 2*G*H]
        }
        constants |= own
        lengths = [""] if states else []  # an input before them, which is left out
        inputs = [below, *own, *lengths, *(of_layer(name, layer) for name in states)]
        is_last = layer == case.num_layers - 1
        output = "Y" if is_last else of_layer("Y", layer)
        outputs = [output, *(of_layer(name, layer) for name in final)]
        nodes.append(helper.make_node(case.cell.upper(), inputs, outputs, **attributes))
        if not is_last:  # [T, D, B, H] to [T, B, D*H]
            constants["merged"] = np.array([0, 0, -1], dtype=np.int64)
            turned, below = of_layer("turned", layer), of_layer("X", layer)
            nodes.append(helper.make_node("Transpose", [output], [turned], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [turned, "merged"], [below]))
    if not one_layer:
        for name in final:
            parts = [of_layer(name, layer) for layer in range(case.num_layers)]
            nodes.append(helper.make_node("Concat", parts, [name], axis=0))
    element = TensorProto.FLOAT16 if case.dtype == "fp16" else TensorProto.FLOAT
    input_shape = [case.seq_len, case.batch_size, case.input_size]
    state_shape = [case.num_layers * case.num_directions, case.batch_size, case.hidden_size]
    graph = helper.make_graph(
        nodes,
        case.cell,
        [
            helper.make_tensor_value_info("X", element, input_shape),
            *(helper.make_tensor_value_info(name, element, state_shape) for name in states),
        ],
        [helper.make_tensor_value_info(name, element, None) for name in ("Y", *final)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    serialized: bytes = model.SerializeToString()
    return serialized
