"""Weights and models to and from torch.nn, files and ONNX."""

from __future__ import annotations

import copy
import io

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from conftest import CELLS, assert_close, call, make_layer
from torch import nn

import birnn_cuda
from birnn_cuda import to_torch

OPTIONS = {"num_layers": 2, "bidirectional": True}
ONNX_NODES = {"tanh": "RNN", "relu": "RNN", "gru": "GRU", "lstm": "LSTM"}


def by_torch_save(state_dict, folder):
    torch.save(state_dict, folder / "weights.pt")
    return torch.load(folder / "weights.pt", weights_only=True)


def by_safetensors(state_dict, folder):
    safetensors.torch.save_file(state_dict, folder / "weights.safetensors")
    return safetensors.torch.load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("through", [by_torch_save, by_safetensors])
@pytest.mark.parametrize("packages", [(nn, birnn_cuda), (birnn_cuda, nn)], ids=["join", "leave"])
@pytest.mark.parametrize("cell", CELLS)
def test_weights_through_a_file(cell, packages, through, tmp_path):
    saved, loaded = (make_layer(package, cell, 3, 4, **OPTIONS) for package in packages)
    # Not the metadata of torch's modules either: only names and tensors.
    loaded.load_state_dict(through(saved.state_dict(), tmp_path), strict=True)
    input = torch.randn(5, 2, 3)
    assert_close(call(loaded, input), call(saved, input), 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_models_through_safetensors(cell, tmp_path):
    """save_model refuses tensors that share memory: no weight of ours is a view of another's."""
    saved, loaded = (make_layer(birnn_cuda, cell, 3, 4, **OPTIONS) for _ in "ab")
    safetensors.torch.save_model(saved, str(tmp_path / "model.safetensors"))
    assert safetensors.torch.load_model(loaded, tmp_path / "model.safetensors") == (set(), [])
    input = torch.randn(5, 2, 3)
    assert all(map(torch.equal, call(loaded, input), call(saved, input)))


def test_a_state_dict_with_other_names_is_refused():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ih_l0_reverse"):
        ours.load_state_dict(nn.GRU(3, 4).state_dict(), strict=True)


class Tagger(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.layer = make_layer(birnn_cuda, cell, 3, 4, **OPTIONS)
        self.head = nn.Linear(8, 2)

    def forward(self, input):
        return self.head(self.layer(input)[0])


def export_onnx(model, file):
    axes = {0: "T", 1: "B"}
    with pytest.warns(DeprecationWarning):  # of the exporter that keeps T free
        torch.onnx.export(
            model,
            (torch.randn(5, 2, 3),),
            file,
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": axes, "output": axes},
        )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cell", ONNX_NODES)
def test_onnx_at_other_sizes(cell):
    model = Tagger(cell).eval()
    file = io.BytesIO()
    export_onnx(to_torch(copy.deepcopy(model)), file)
    graph = onnx.load_from_string(file.getvalue()).graph
    nodes = [node.op_type for node in graph.node]
    assert nodes.count(ONNX_NODES[cell]) == model.layer.num_layers and "Loop" not in nodes
    session = onnxruntime.InferenceSession(file.getvalue())
    for seq_len, batch_size in ((5, 2), (9, 4), (3, 7), (1, 1)):
        input = torch.randn(seq_len, batch_size, 3)
        (output,) = session.run(None, {"input": input.numpy()})
        assert_close([torch.from_numpy(output)], [model(input)], 1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_of_our_own_layers_is_refused_with_the_remedy():
    with pytest.raises(RuntimeError, match=r"torch.onnx.export\(birnn_cuda.to_torch"):
        export_onnx(Tagger("lstm").eval(), io.BytesIO())
