"""birnn_cuda.onnx: files for OpenCV, ncnn, MNN and tract, run by them, beside the layer itself; and
what each is refused, wrong there still.

Long, for `make exchange`, which installs the runtimes.
"""

from __future__ import annotations

import onnx
import pytest
import torch
from rounding import check
from runtimes import by_mnn, by_ncnn, by_opencv, by_tract
from test_onnx_out import INPUT, NODES, Model, errors

import birnn_cuda
import birnn_cuda.onnx
from birnn_cuda.onnx import targets

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

RUNTIMES = {"opencv": by_opencv, "ncnn": by_ncnn, "mnn": by_mnn, "tract": by_tract}

# Of each what it runs: cells; and whether initial states, and final ones.
RUNS = {
    "opencv": (("gru", "lstm", "gru_reset_before"), True, True),
    "ncnn": (("tanh", "gru", "lstm"), True, False),
    "mnn": (("tanh", "gru", "lstm"), True, True),
    "tract": (("tanh", "gru", "lstm", "gru_reset_before", "lstm_peepholes"), True, True),
}

# Steps and sequences, none those of the example.
SIZES = [(9, 1, None), (4, 1, None), (9, 3, None), (6, 3, None), (7, 2, None)]


class OutputAlone(Model):
    def forward(self, *operands):
        return super().forward(*operands)[:1]


def written(model, path, target):
    birnn_cuda.onnx.export(model, model.operands(5, 2, (5, 3)), path, target=target)
    return path


def found(model, path, target):
    """The errors. Of each runtime dimensions stay free, but tract, which is given them."""
    return list(errors(model, path, RUNTIMES[target], SIZES, (target == "tract",)))


@pytest.mark.parametrize("cell", NODES)
@pytest.mark.parametrize("target", RUNTIMES)
def test_files_run_as_the_layer_does(target, cell, tmp_path):
    cells, initial, final = RUNS[target]
    if cell not in cells:
        with pytest.raises(NotImplementedError, match=f"{target!r} does not take {cell}: "):
            written(OutputAlone(cell, False, False).eval(), tmp_path / "model.onnx", target)
        return
    both = (target, cell) == ("ncnn", "tanh")
    models = [
        OutputAlone(cell, False, False),
        OutputAlone(cell, False, False, bidirectional=both, bias=False),
    ]
    if final:
        models.append(Model(cell, False, False, num_layers=1))
    if initial:
        kind = Model if final else OutputAlone
        models += [
            OutputAlone(cell, False, True, num_layers=1, bidirectional=both),
            kind(cell, False, True),
        ]
    for index, model in enumerate(models):
        path = written(model.eval(), tmp_path / f"model{index}.onnx", target)
        assert max(found(model, path, target)) < 1e-5, index


def test_one_direction_of_tanh_is_refused_for_ncnn(tmp_path):
    model = OutputAlone("tanh", False, False, bidirectional=False).eval()
    with pytest.raises(NotImplementedError, match="'ncnn' does not take tanh in one direction"):
        written(model, tmp_path / "model.onnx", "ncnn")


@pytest.mark.parametrize("target", RUNTIMES)
def test_what_a_runtime_does_not_run_is_refused(target, tmp_path):
    cells, initial, final = RUNS[target]
    path = tmp_path / "model.onnx"
    for model, part, runs in (
        (OutputAlone(cells[0], True, False), "lengths", False),
        (OutputAlone(cells[0], False, True), "states", initial),
        (Model(cells[0], False, False), "final states", final),
    ):
        if not runs:
            with pytest.raises(NotImplementedError, match=f"{target!r} does not take {part}: "):
                written(model.eval(), path, target)
    assert not path.exists()


def wrong(model, path, target):
    """Whether a file gives other values there, or none."""
    try:
        return max(found(model, path, target)) > 1e-2
    except Exception:
        return True


REFUSED = [("ncnn", "relu"), ("mnn", "relu"), ("tract", "relu")]
REFUSED += [("ncnn", "gru_reset_before"), ("mnn", "gru_reset_before")]
# Not by ncnn, which would end this process.
REFUSED += [("opencv", "lstm_peepholes"), ("mnn", "lstm_peepholes")]


@pytest.mark.parametrize(("target", "cell"), REFUSED)
def test_the_refused_cells_are_wrong_there(target, cell, tmp_path, monkeypatch):
    """A runtime that has come to run them takes them."""
    allowed = targets.target_of(target)
    monkeypatch.delitem(allowed.refused, cell)
    model = OutputAlone(cell, False, False, num_layers=1).eval()
    assert wrong(model, written(model, tmp_path / "model.onnx", target), target)


@pytest.mark.parametrize(
    ("target", "cell"), [("opencv", "gru"), ("mnn", "gru"), ("mnn", "lstm"), ("tract", "gru")]
)
def test_each_needs_its_own_form(target, cell, tmp_path):
    model = OutputAlone(cell, False, False).eval()
    assert wrong(model, written(model, tmp_path / "model.onnx", "onnxruntime"), target)


class Surrounded(Model):
    """Steps that are neither the input's first dimension nor its number, and that are computed
    with."""

    def __init__(self):
        super().__init__("gru", False, False, batch_first=True)
        self.filter = torch.nn.Conv1d(INPUT, INPUT, 3)

    def forward(self, input):
        x = self.filter(input.transpose(1, 2)).transpose(1, 2)
        output, final = super().forward(x)
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return output / x.shape[1] + steps[:, None], final

    def operands(self, seq_len, batch_size, lengths):
        return super().operands(seq_len + 2, batch_size, lengths)


def test_the_steps_that_a_file_for_mnn_states_are_not_all_it_runs(tmp_path):
    model = Surrounded().eval()
    path = written(model, tmp_path / "model.onnx", "mnn")
    (sizes,) = (
        [d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(path).graph.input
    )
    assert sizes[:2] == [0, 7]  # the sequences are free
    assert max(found(model, path, "mnn")) < 1e-5


@pytest.mark.parametrize("cell", RUNS["mnn"][0])
def test_mnn_runs_every_sequence_to_the_last_step(cell, tmp_path, monkeypatch):
    """What its refusal of lengths says."""
    monkeypatch.delitem(targets.target_of("mnn").refused, "lengths")
    model = OutputAlone(cell, True, False, num_layers=1).eval()
    path, lengths = tmp_path / "model.onnx", torch.tensor([5, 3], dtype=torch.int32)
    example = (torch.randn(5, 2, INPUT), lengths)
    birnn_cuda.onnx.export(model, example, path, target="mnn")
    x = torch.randn(9, 2, INPUT)
    names = [value.name for value in onnx.load(path).graph.input]
    feeds = dict(zip(names, (x.numpy(), lengths.numpy()), strict=True))
    (output,) = by_mnn(path, feeds, False)
    full, _ = model.layer(x)
    check(torch.from_numpy(output), full, 1e-5)


def test_an_example_of_one_step_is_refused_for_mnn(tmp_path):
    model = OutputAlone("gru", False, False).eval()
    with pytest.raises(ValueError, match="'mnn' takes a gru of an example of 2 steps"):
        birnn_cuda.onnx.export(
            model, model.operands(1, 2, None), tmp_path / "model.onnx", target="mnn"
        )
