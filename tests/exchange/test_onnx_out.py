"""birnn_cuda.onnx: files for each runtime, run by it, beside the layer itself.

Long, for `make exchange`: an export takes seconds, and onnxscript and the runtimes are no part of
what `make test` installs.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from conftest import make_layer
from rounding import check
from runtimes import by_onnxruntime, by_openvino
from torch import nn

import birnn_cuda
import birnn_cuda.onnx
from birnn_cuda.onnx import targets

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

CELLS = ("tanh", "relu", "gru", "lstm")
NODES = {"tanh": "RNN", "relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
NODES |= {"gru_reset_before": "GRU", "lstm_peepholes": "LSTM"}
INPUT, HIDDEN = 3, 4

# Steps, sequences and lengths, none those of the example.
SIZES = [(9, 4, (9, 2, 1, 3)), (5, 2, (5, 5)), (7, 3, (0, 7, 4)), (6, 2, (0, 0)), (1, 1, (1,))]


class Model(nn.Module):
    """Two layers, called with lengths and states or without."""

    def __init__(self, cell, lengths, states, **options):
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, **options}
        self.layer = make_layer(birnn_cuda, cell, INPUT, HIDDEN, **options)
        self.with_lengths, self.with_states = lengths, states

    def forward(self, input, *rest):
        rest = list(rest)
        options = {"lengths": rest.pop(0)} if self.with_lengths else {}
        hx = None
        if self.with_states:
            hx = tuple(rest) if self.layer.mode == "LSTM" else rest[0]
        output, final = self.layer(input, hx, **options)
        return (output, *final) if isinstance(final, tuple) else (output, final)

    def operands(self, seq_len, batch_size, lengths):
        layer = self.layer
        shape = (seq_len, batch_size) if not layer.batch_first else (batch_size, seq_len)
        operands = [torch.randn(*shape, INPUT)]
        if self.with_lengths:
            operands.append(torch.tensor(lengths))
        if self.with_states:
            rows = layer.num_layers * (2 if layer.bidirectional else 1)
            count = 2 if layer.mode == "LSTM" else 1
            operands += [torch.rand(rows, batch_size, HIDDEN) * 2 - 1 for _ in range(count)]
        return operands


RUNTIMES = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def distance(output, wanted):
    wanted = wanted.detach().double()
    error = torch.from_numpy(np.asarray(output)).double() - wanted
    return (error.norm() / wanted.norm().clamp(min=1)).item()


def errors(model, path, run, sizes=SIZES, fixed=(False, True)):
    """How far the file, run, is from the model, at each size: the most of its outputs, each
    relative to itself, or to 1 where it is less."""
    names = [value.name for value in onnx.load(path).graph.input]
    for seq_len, batch_size, lengths in sizes:
        operands = model.operands(seq_len, batch_size, lengths)
        expected = model(*operands)
        feeds = {name: value.numpy() for name, value in zip(names, operands, strict=True)}
        for is_fixed in fixed:
            outputs = run(path, feeds, is_fixed)
            yield max(itertools.starmap(distance, zip(outputs, expected, strict=True)))


@pytest.mark.parametrize("cell", NODES)
@pytest.mark.parametrize("target", RUNTIMES)
def test_files_run_as_the_layer_does(target, cell, tmp_path):
    if (target, cell) == ("openvino", "lstm_peepholes"):
        model = Model(cell, False, False).eval()
        with pytest.raises(NotImplementedError, match="'openvino' does not take lstm_peepholes: "):
            birnn_cuda.onnx.export(model, model.operands(5, 2, None), tmp_path / "m", target=target)
        return
    for lengths, states in itertools.product((False, True), repeat=2):
        model = Model(cell, lengths, states, bias=not (lengths and states)).eval()
        path = tmp_path / "model.onnx"
        birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), path, target=target)
        graph = onnx.load(path).graph
        nodes = [node for node in graph.node if node.op_type == NODES[cell]]
        assert len(nodes) == 2 and "Loop" not in {node.op_type for node in graph.node}
        kept = {value.name for value in graph.initializer}
        assert all({*node.input[1:3]} <= kept for node in nodes), "weights are not folded"
        assert max(errors(model, path, RUNTIMES[target])) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_openvino_needs_its_own_form(cell, tmp_path):
    """The other target's file is wrong there at ragged lengths: so is a form that slips."""
    model = Model(cell, True, False).eval()
    birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), tmp_path / "model.onnx")
    found = errors(model, tmp_path / "model.onnx", by_openvino, SIZES[:1], (False,))
    assert max(found) > 1e-2


@pytest.mark.parametrize("cell", CELLS)
def test_one_direction_batch_first_inside_a_model(cell, tmp_path):
    model = Model(cell, True, True, bidirectional=False, batch_first=True).eval()
    path = tmp_path / "model.onnx"
    for target, run in RUNTIMES.items():
        birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), path, target=target)
        assert max(errors(model, path, run)) < 1e-5


def test_a_complete_network_by_the_exporter_itself(tmp_path):
    model = birnn_cuda.BiRNN(INPUT, HIDDEN, 5, cell="gru").eval()
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        model,
        (torch.randn(5, 2, INPUT),),
        dynamo=True,
        dynamic_shapes=(free,),
        custom_translation_table=birnn_cuda.onnx.translations(),
        verbose=False,
    )
    program.save(str(tmp_path / "model.onnx"))
    x = torch.randn(11, 3, INPUT)
    (name,) = (value.name for value in onnx.load(tmp_path / "model.onnx").graph.input)
    (scores,) = by_onnxruntime(tmp_path / "model.onnx", {name: x.numpy()}, False)
    check(torch.from_numpy(scores), model(x), 1e-5)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave", None])
def test_merged_directions(mode, tmp_path):
    model = Model("gru", True, False, merge_mode=mode).eval()
    x, lengths = model.operands(9, 4, (9, 2, 1, 3))
    path = tmp_path / "model.onnx"
    wanted = model.layer(x, lengths=lengths)[0]
    birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), path)
    names = [value.name for value in onnx.load(path).graph.input]
    outputs = by_onnxruntime(
        path, dict(zip(names, (x.numpy(), lengths.numpy()), strict=True)), False
    )
    for want, got in zip([wanted] if mode is not None else wanted, outputs, strict=False):
        check(torch.from_numpy(got), want, 1e-5)


def test_openvino_leaves_peepholes_out(tmp_path, monkeypatch):
    """What its refusal says: it gives what a layer without them gives."""
    monkeypatch.delitem(targets.target_of("openvino").refused, "lstm_peepholes")
    model = Model("lstm_peepholes", False, False, num_layers=1).eval()
    path = tmp_path / "model.onnx"
    birnn_cuda.onnx.export(model, model.operands(5, 2, None), path, target="openvino")
    without = Model("lstm", False, False, num_layers=1).eval()
    without.load_state_dict(model.state_dict(), strict=False)
    assert max(errors(without, path, by_openvino, SIZES[:2])) < 1e-5
    assert max(errors(model, path, by_openvino, SIZES[:2])) > 1e-2


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "lstm_peepholes"])
def test_there_and_back(cell, tmp_path):
    model = Model(cell, True, False).eval()
    birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), tmp_path / "model.onnx")
    first, second = birnn_cuda.load_onnx(tmp_path / "model.onnx")
    assert first.layer.reset_after == model.layer.reset_after
    state = {
        **first.layer.state_dict(),
        **{n.replace("l0", "l1"): v for n, v in second.layer.state_dict().items()},
    }
    assert state.keys() == model.layer.state_dict().keys()
    assert all(torch.equal(state[n], v) for n, v in model.layer.state_dict().items())


class CellStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = birnn_cuda.LSTM(INPUT, HIDDEN)

    def forward(self, input):
        return self.layer(input, return_cell_states=True)[2]


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (CellStates(), {}, NotImplementedError, "cell states"),
        (birnn_cuda.LSTM(INPUT, HIDDEN, proj_size=2), {}, NotImplementedError, "projection"),
        (birnn_cuda.GRU(INPUT, HIDDEN, dtype=torch.float64), {}, TypeError, "float64"),
        (birnn_cuda.GRU(INPUT, HIDDEN), {"target": "onnx.js"}, ValueError, r"one of \['.*onnx.js"),
        (birnn_cuda.GRU(INPUT, HIDDEN).train(), {}, ValueError, r"model.eval\(\)"),
    ],
)
def test_what_no_file_can_hold_is_refused(model, options, error, text, tmp_path):
    if "eval" not in text:
        model = model.eval()
    dtype = next(model.parameters()).dtype
    with pytest.raises(error, match=text):
        birnn_cuda.onnx.export(
            model, (torch.randn(5, 2, INPUT, dtype=dtype),), tmp_path / "m.onnx", **options
        )
    assert not (tmp_path / "m.onnx").exists()
