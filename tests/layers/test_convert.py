"""replace_rnns and to_torch on models that exist already."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer
from torch import nn

import birnn_cuda
from birnn_cuda import replace_rnns, to_torch


class Tagger(nn.Module):
    """Layers at several depths, one of them under two names, and two with tied weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.encoder = nn.LSTM(4, 4, bidirectional=True)
        self.stack = nn.ModuleList([nn.GRU(8, 4, bidirectional=True), nn.RNN(8, 8)])
        self.again = self.stack[1]
        self.tied = nn.RNN(8, 8)
        self.tied.weight_hh_l0 = self.stack[1].weight_hh_l0
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x, _ = self.encoder(self.embedding(tokens))
        for layer in (*self.stack, self.again, self.tied):
            x, _ = layer(x)
        return self.head(x)


def test_whole_model():
    model = Tagger()
    tokens = torch.randint(11, (7, 2))
    expected = model(tokens)
    before = dict(model.named_parameters())
    modules = dict(model.named_modules())
    assert replace_rnns(model) is model
    assert type(model.encoder) is birnn_cuda.LSTM
    assert type(model.stack[0]) is birnn_cuda.GRU
    assert type(model.stack[1]) is type(model.tied) is birnn_cuda.RNN
    assert model.again is model.stack[1]
    assert model.tied.weight_hh_l0 is model.stack[1].weight_hh_l0
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is weight for name, weight in before.items())
    assert_close([model(tokens)], [expected], 1e-5)
    assert to_torch(model) is model
    assert type(model.encoder) is nn.LSTM and type(model.tied) is nn.RNN
    assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_there_and_back(cell):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}
    layer = make_layer(nn, cell, 3, 4, **options).eval()
    description, input = repr(layer), torch.randn(2, 5, 3)
    expected = call(layer, input)
    ours = replace_rnns(layer)
    assert "_flat_weights" not in vars(ours)  # a list that would keep old weights alive
    assert type(ours).__module__.startswith("birnn_cuda") and not ours.training
    assert repr(ours) == description and ours.dropout == 0.5
    assert_close(call(ours, input), expected, 1e-5)
    ours.double()  # replaces what torch's layers keep a list of
    back = to_torch(copy.deepcopy(ours))
    assert type(back).__module__.startswith("torch.nn")
    assert type(ours).__module__.startswith("birnn_cuda")
    assert_close(call(back, input.double()), call(ours, input.double()), 1e-12)
    # Torch's layers run on this list.
    assert all(w is p for w, p in zip(back._flat_weights, back.parameters(), strict=True))


def test_training_goes_on():
    """The optimizer made before the swap still moves the weights."""
    layer = nn.GRU(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    replace_rnns(layer)
    before = layer.weight_hh_l0.detach().clone()
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight_hh_l0, before)


def test_hooks_buffers_and_requires_grad_are_kept():
    layer = nn.LSTM(3, 4)
    layer.weight_hh_l0.requires_grad_(False)
    layer.register_buffer("calls", torch.zeros(1))
    layer.register_forward_hook(lambda module, args, result: module.calls.add_(1))
    replace_rnns(layer)
    layer(torch.randn(5, 2, 3))
    assert layer.calls.item() == 1
    assert not layer.weight_hh_l0.requires_grad


def test_older_weight_norm_is_kept():
    layer = nn.GRU(3, 4)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer, "weight_hh_l0")
    input = torch.randn(5, 2, 3)
    expected = layer(input)[0]
    ours = replace_rnns(layer)
    assert_close([ours(input)[0]], [expected], 1e-5)
    ours(input)[0].sum().backward()
    assert ours.weight_hh_l0_g.grad is not None


class CustomLSTM(nn.LSTM):
    pass


def test_what_is_left_alone_is_said(caplog):
    parametrized = nn.GRU(3, 4)
    nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    patched = nn.GRU(3, 4)
    patched.forward = lambda input: input
    ours = birnn_cuda.GRU(3, 4)
    model = nn.ModuleDict(
        {
            "custom": CustomLSTM(3, 4),
            "parametrized": parametrized,
            "patched": patched,
            "cell": nn.GRUCell(3, 4),
            "ours": ours,
            "plain": nn.GRU(3, 4),
        }
    )
    before = {name: type(module) for name, module in model.items()}
    with caplog.at_level(logging.INFO, logger="birnn_cuda"):
        replace_rnns(model)
    after = {name: type(module) for name, module in model.items()}
    assert after == {**before, "plain": birnn_cuda.GRU, "cell": birnn_cuda.GRUCell}
    messages = {(r.levelname, r.getMessage().partition(" (")[0]) for r in caplog.records}
    assert messages == {
        ("INFO", "swapped: cell"),
        ("WARNING", "left alone: custom"),
        ("WARNING", "left alone: parametrized"),
        ("WARNING", "left alone: patched"),
        ("INFO", "swapped: plain"),
    }
    assert "torch.nn.GRU" in caplog.text and "birnn_cuda.GRU" in caplog.text


class Loop(nn.Module):
    """A scripted cell and layer, a layer in 8 bits, and classes of somebody else."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.scripted = torch.jit.script(nn.GRU(3, 4))
            self.scripted_cell = torch.jit.script(nn.LSTMCell(3, 4))
            self.quantized = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM}
            )
        self.other = OtherRecurrent("GRU", 3, 4)
        self.other_cell = OtherCell(3, 4, bias=True, num_chunks=2)


class OtherRecurrent(nn.RNNBase):
    pass


class OtherCell(nn.RNNCellBase):
    pass


def test_every_reason_to_leave_a_layer_is_said(caplog):
    model = Loop()
    before = {name: type(module) for name, module in model.named_modules()}
    replace_rnns(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    said = dict(r.getMessage().removeprefix("left alone: ").split(" (", 1) for r in caplog.records)
    assert {name: text.split(": ", 1)[1].split(":")[0] for name, text in said.items()} == {
        "scripted": "it is scripted",
        "scripted_cell": "it is scripted",
        "quantized.0": "it is quantized",
        "other": "not a class of torch.nn",
        "other_cell": "not a class of torch.nn",
    }
    assert all(r.levelname == "WARNING" for r in caplog.records)
    assert {name: text.split(")")[0] for name, text in said.items()} == {
        "scripted": "torch.jit._script.RecursiveScriptModule",
        "scripted_cell": "torch.jit._script.RecursiveScriptModule",
        "quantized.0": "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM",
        "other": f"{__name__}.OtherRecurrent",
        "other_cell": f"{__name__}.OtherCell",
    }


def test_nothing_to_swap_is_said(caplog):
    replace_rnns(nn.Sequential(nn.Linear(3, 4)))
    assert [r.getMessage() for r in caplog.records] == [
        "nothing to swap: no recurrent layer in torch.nn.Sequential"
    ]
    caplog.clear()
    replace_rnns(nn.Sequential(birnn_cuda.GRU(3, 4), birnn_cuda.GRUCell(3, 4)))
    to_torch(nn.Sequential(nn.Linear(3, 4), nn.GRUCell(3, 4)))
    assert not caplog.records


class Rebuilt(nn.Module):
    """Makes itself anew when it is copied, as some published models do."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4)

    def __deepcopy__(self, memo):
        other = Rebuilt()
        other.load_state_dict(self.state_dict())
        return other


def test_a_model_that_rebuilds_itself_is_noticed():
    model = replace_rnns(Rebuilt())

    def is_swapped(model):
        ours = birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM
        return any(isinstance(module, ours) for module in model.modules())

    twin = copy.deepcopy(model)
    assert is_swapped(model) and not is_swapped(twin)
    assert is_swapped(replace_rnns(twin))


def test_swapped_layer_can_be_copied_and_saved():
    layer = replace_rnns(nn.LSTM(3, 4, bidirectional=True))
    twin = copy.deepcopy(layer)
    input = torch.randn(5, 2, 3)
    assert torch.equal(layer(input)[0], twin(input)[0])
    fresh = birnn_cuda.LSTM(3, 4, bidirectional=True)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer(input)[0], fresh(input)[0])


def test_model_swapped_is_compiled_in_one_graph():
    model = replace_rnns(Tagger())
    tokens = torch.randint(11, (7, 2))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(tokens), model(tokens))
