"""load_onnx: nodes of every form, beside onnxruntime; what is no layer of ours is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rounding import check

import birnn_cuda
from birnn_cuda.exchange import Reversed

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, B, INPUT, HIDDEN = 5, 3, 4, 6
LENGTHS = (5, 2, 4)


def random(*shape):
    return torch.randn(*shape).numpy()


def model_of(kind, direction="bidirectional", bias=True, folded=False, states=(), **attributes):
    """A model of one node, X [T, B, I] and lengths in, Y and Y_h out."""
    num = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * HIDDEN
    arrays = {"W": random(num, rows, INPUT), "R": random(num, rows, HIDDEN)}
    if bias:
        arrays["B"] = random(num, 2 * rows)
    nodes = []
    if folded:  # each weight kept transposed, and turned by the graph
        for name in ("W", "R"):
            arrays[f"{name}_kept"] = arrays.pop(name).swapaxes(1, 2).copy()
            nodes.append(helper.make_node("Transpose", [f"{name}_kept"], [name], perm=[0, 2, 1]))
    state_names = [f"state_{index}" for index in range(len(states))]
    arrays.update(zip(state_names, states, strict=True))
    if kind == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    operands = ["X", "W", "R", "B" if bias else "", "lengths", *state_names]
    node = helper.make_node(
        kind, operands, ["Y", "Y_h"], name="the_node", hidden_size=HIDDEN, direction=direction
    )
    node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
    return whole([*nodes, node], arrays)


def whole(nodes, arrays, opset=18):
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", INPUT]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h")],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def assert_equals_onnxruntime(model, imported):
    x = torch.randn(T, B, INPUT)
    for b, length in enumerate(LENGTHS):
        x[length:, b] = 1e4  # padding that is seen where it is read
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"X": x.numpy(), "lengths": np.array(LENGTHS, np.int32)}
    y, y_h = (torch.from_numpy(value) for value in session.run(None, feeds))
    hx = imported.hx
    if hx is not None and imported.cx is not None:
        hx = (hx, imported.cx)
    output, final = imported.layer(x, hx, lengths=torch.tensor(LENGTHS))
    h_n = final[0] if isinstance(final, tuple) else final
    check(output, y.transpose(1, 2).flatten(2), 1e-5)
    check(h_n, y_h, 1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_nodes(kind, direction):
    for bias, folded in ((True, False), (False, True)):
        model = model_of(kind, direction, bias, folded)
        (imported,) = birnn_cuda.load_onnx(model)
        assert imported.name == "the_node" and imported.hx is None and imported.cx is None
        assert isinstance(imported.layer, Reversed) == (direction == "reverse")
        assert_equals_onnxruntime(model, imported)


def test_activations_that_are_a_cell_of_ours():
    relu = model_of("RNN", activations=["Relu", "Relu"])
    (imported,) = birnn_cuda.load_onnx(relu)
    assert imported.layer.nonlinearity == "relu"
    assert_equals_onnxruntime(relu, imported)
    lstm = model_of("LSTM", activations=["Sigmoid", "Tanh", "Tanh"] * 2)
    assert_equals_onnxruntime(lstm, birnn_cuda.load_onnx(lstm)[0])


@pytest.mark.parametrize("kind", GATES)
def test_initial_states_that_the_file_holds(kind):
    states = [random(2, B, HIDDEN) for _ in range(2 if kind == "LSTM" else 1)]
    model = model_of(kind, states=states)
    (imported,) = birnn_cuda.load_onnx(model)
    assert np.array_equal(imported.hx.numpy(), states[0])
    assert_equals_onnxruntime(model, imported)
    zeros = [np.zeros_like(state) for state in states]
    assert birnn_cuda.load_onnx(model_of(kind, states=zeros))[0].hx is None


def test_a_clip_that_clips_nothing():
    model = model_of("LSTM", clip=1e6)
    assert_equals_onnxruntime(model, birnn_cuda.load_onnx(model)[0])


def test_batch_first():
    model = model_of("GRU", layout=1, states=[random(B, 2, HIDDEN)])
    (imported,) = birnn_cuda.load_onnx(model)
    assert imported.layer.batch_first and imported.hx.shape == (2, B, HIDDEN)
    plain = model_of("GRU")
    for name in ("W", "R", "B"):
        (source,) = (i for i in model.graph.initializer if i.name == name)
        (sink,) = (i for i in plain.graph.initializer if i.name == name)
        sink.CopyFrom(source)
    imported.layer.batch_first, imported.hx = False, None
    assert_equals_onnxruntime(plain, imported)


def test_a_node_in_a_branch_with_weights_of_the_graph_around_it():
    inner = model_of("LSTM")
    (node,) = inner.graph.node
    w = numpy_helper.to_array(inner.graph.initializer[0])
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(w))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h")
    ]
    branches = [
        helper.make_graph([constant, node], f"branch_{index}", [], outputs) for index in range(2)
    ]
    choose = helper.make_node(
        "If", ["which"], ["Y", "Y_h"], "choice", then_branch=branches[0], else_branch=branches[1]
    )
    arrays = {i.name: numpy_helper.to_array(i) for i in inner.graph.initializer[1:]}
    arrays["which"] = np.array(True)
    model = whole([choose], arrays)
    first, second = birnn_cuda.load_onnx(model)
    assert {first.name, second.name} == {
        "choice/then_branch/the_node",
        "choice/else_branch/the_node",
    }
    assert_equals_onnxruntime(model, first)


@pytest.mark.parametrize("by_column", [False, True])
def test_a_quantised_lstm_is_near(by_column):
    rows = 4 * HIDDEN
    shape = (2, rows) if by_column else (2,)
    arrays = {
        "W": torch.randint(0, 256, (2, INPUT, rows), dtype=torch.uint8).numpy(),
        "R": torch.randint(0, 256, (2, HIDDEN, rows), dtype=torch.uint8).numpy(),
        "B": random(2, 2 * rows),
    }
    for name in "WR":
        arrays[f"{name}_scale"] = (torch.rand(shape) * 2e-3 + 1e-3).numpy()
        zero_points = torch.full(shape, 128 if by_column else 120, dtype=torch.uint8)
        arrays[f"{name}_zero_point"] = zero_points.numpy()
    scales = ["W_scale", "W_zero_point", "R_scale", "R_zero_point"]
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["X", "W", "R", "B", "lengths", "", "", "", *scales],
        ["Y", "Y_h"],
        domain="com.microsoft",
        direction="bidirectional",
        hidden_size=HIDDEN,
    )
    model = whole([node], arrays)
    with pytest.warns(UserWarning, match="dequantised"):
        (imported,) = birnn_cuda.load_onnx(model)
    x = torch.randn(T, B, INPUT)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"X": x.numpy(), "lengths": np.array(LENGTHS, np.int32)}
    y, _ = session.run(None, feeds)
    output, _ = imported.layer(x, lengths=torch.tensor(LENGTHS))
    # Inputs and states are rounded to 8 bits at run time: a step of 1/128 of the largest.
    error = (output - torch.from_numpy(y).transpose(1, 2).flatten(2)).abs().max()
    assert error < 0.03


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("LSTM", {"clip": 3.0}, "clip=3 clips"),
        ("RNN", {"activations": ["Relu"] * 2, "clip": 1e6}, "clip=1e"),
        ("RNN", {"activations": ["Tanh", "Relu"]}, "activations are"),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"] * 2}, "HardSigmoid"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Softsign"] * 2}, "Softsign"),
    ],
)
def test_what_is_no_layer_of_ours_is_refused_by_name(kind, options, reason):
    with pytest.raises(NotImplementedError, match=reason) as error:
        birnn_cuda.load_onnx(model_of(kind, **options))
    assert f"{kind} node 'the_node'" in str(error.value)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_reset_gate_before_the_product(direction, bias):
    model = model_of("GRU", direction, bias, linear_before_reset=0)
    (imported,) = birnn_cuda.load_onnx(model)
    assert not getattr(imported.layer, "layer", imported.layer).reset_after
    assert_equals_onnxruntime(model, imported)
    (left_out,) = model.graph.node
    attribute = next(a for a in left_out.attribute if a.name == "linear_before_reset")
    left_out.attribute.remove(attribute)  # its default is 0
    assert_equals_onnxruntime(model, birnn_cuda.load_onnx(model)[0])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [True, False])
def test_peepholes(direction, bias):
    num = 2 if direction == "bidirectional" else 1
    states = [random(num, B, HIDDEN), random(num, B, HIDDEN)]
    model = model_of("LSTM", direction, bias, states=[*states, random(num, 3 * HIDDEN)])
    (imported,) = birnn_cuda.load_onnx(model)
    assert getattr(imported.layer, "layer", imported.layer).peepholes
    assert_equals_onnxruntime(model, imported)
    zeros = model_of("LSTM", direction, bias, states=[*states, np.zeros((num, 3 * HIDDEN), "f")])
    (imported,) = birnn_cuda.load_onnx(zeros)
    assert not getattr(imported.layer, "layer", imported.layer).peepholes
    assert_equals_onnxruntime(zeros, imported)


def test_weights_that_the_graph_computes_are_refused():
    model = model_of("LSTM")
    model.graph.node[0].input[2] = "X"
    with pytest.raises(NotImplementedError, match="R is computed by the graph"):
        birnn_cuda.load_onnx(model)


def test_a_file_by_path_and_one_without_a_layer(tmp_path):
    model = model_of("GRU")
    onnx.save(model, tmp_path / "model.onnx")
    assert_equals_onnxruntime(model, birnn_cuda.load_onnx(tmp_path / "model.onnx")[0])
    del model.graph.node[:]
    with pytest.raises(ValueError, match="no RNN, GRU or LSTM node"):
        birnn_cuda.load_onnx(model.SerializeToString())


def test_only_one_direction_is_reversed():
    with pytest.raises(ValueError, match="one direction"):
        Reversed(birnn_cuda.GRU(2, 3, bidirectional=True))
