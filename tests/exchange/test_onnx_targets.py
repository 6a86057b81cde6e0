"""birnn_cuda.onnx: files for OpenCV, ncnn, MNN and tract, run by them, beside the layer itself; and
what each is refused, wrong there still.

Long, for `make exchange`, which installs the runtimes.
"""

from __future__ import annotations

import pytest
from runtimes import by_mnn, by_ncnn, by_opencv, by_tract
from test_onnx_out import CELLS, Model, errors

import birnn_cuda
import birnn_cuda.onnx
from birnn_cuda.onnx import targets

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

RUNTIMES = {"opencv": by_opencv, "ncnn": by_ncnn, "mnn": by_mnn, "tract": by_tract}

# Of each what it runs: cells; and whether initial states, and final ones.
RUNS = {
    "opencv": (("gru", "lstm"), True, True),
    "ncnn": (("tanh", "gru", "lstm"), False, False),
    "mnn": (("tanh", "lstm"), True, True),
    "tract": (("tanh", "gru", "lstm"), True, True),
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


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("target", RUNTIMES)
def test_files_run_as_the_layer_does(target, cell, tmp_path):
    cells, initial, final = RUNS[target]
    if cell not in cells:
        with pytest.raises(NotImplementedError, match=f"{target!r} does not take {cell}: "):
            written(OutputAlone(cell, False, False).eval(), tmp_path / "model.onnx", target)
        return
    models = [
        OutputAlone(cell, False, False),
        OutputAlone(
            cell, False, False, bidirectional=(target, cell) == ("ncnn", "tanh"), bias=False
        ),
    ]
    if final:
        models.append(Model(cell, False, False, num_layers=1))
    if initial:
        models += [OutputAlone(cell, False, True, num_layers=1), Model(cell, False, True)]
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


@pytest.mark.parametrize(
    ("target", "cell"), [("ncnn", "relu"), ("mnn", "relu"), ("mnn", "gru"), ("tract", "relu")]
)
def test_the_refused_cells_are_wrong_there(target, cell, tmp_path, monkeypatch):
    """A runtime that has come to run them takes them."""
    allowed = targets.target_of(target)
    monkeypatch.delitem(allowed.refused, cell)
    model = OutputAlone(cell, False, False, num_layers=1).eval()
    assert wrong(model, written(model, tmp_path / "model.onnx", target), target)


@pytest.mark.parametrize(("target", "cell"), [("opencv", "gru"), ("mnn", "lstm"), ("tract", "gru")])
def test_each_needs_its_own_form(target, cell, tmp_path):
    model = OutputAlone(cell, False, False).eval()
    assert wrong(model, written(model, tmp_path / "model.onnx", "onnxruntime"), target)
