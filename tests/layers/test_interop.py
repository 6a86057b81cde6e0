"""What tools and people ask of an nn.LSTM: its class, one node of torch.fx, hooks and lists."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from conftest import CELLS, assert_close, call, make_layer
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode

import birnn_cuda
from birnn_cuda import replace_rnns, to_torch

TORCHS = (nn.RNN, nn.GRU, nn.LSTM)
PAIRS = [(birnn_cuda.RNN, nn.RNN), (birnn_cuda.GRU, nn.GRU), (birnn_cuda.LSTM, nn.LSTM)]


# ---- isinstance


def assert_instance_of(layer, torchs):
    assert [isinstance(layer, cls) for cls in TORCHS] == [cls is torchs for cls in TORCHS]
    assert isinstance(layer, TORCHS) and isinstance(layer, (torchs, nn.Linear))
    assert isinstance(layer, nn.RNNBase) and isinstance(layer, nn.Module)
    assert not isinstance(layer, nn.Linear) and not isinstance(layer, nn.RNNCellBase)


@pytest.mark.parametrize("ours, torchs", PAIRS)
def test_isinstance(ours, torchs):
    for layer in (ours(3, 4), replace_rnns(torchs(3, 4))):
        for _ in range(50):  # the interpreter specializes what it runs often
            assert_instance_of(layer, torchs)
            assert layer.__class__ is type(layer) is ours
            assert layer.__class__.__name__ == ours.__name__
        for other in (
            copy.copy(layer),
            copy.deepcopy(layer),
            *(pickle.loads(pickle.dumps(layer, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
            pickle.loads(pickle._dumps(layer)),
        ):
            assert type(other) is ours
            assert_instance_of(other, torchs)
            assert_close([other(torch.ones(2, 1, 3))[0]], [layer(torch.ones(2, 1, 3))[0]], 0.0)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        assert type(torch.load(file, weights_only=False)) is ours
        assert type(to_torch(layer)) is torchs and type(replace_rnns(layer)) is ours


@pytest.mark.parametrize("ours, torchs", PAIRS)
def test_isinstance_of_parametrized_and_subclasses(ours, torchs):
    layer = ours(3, 4)
    expected = layer(torch.ones(2, 1, 3))[0]
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert type(layer).__mro__[1] is ours and not issubclass(type(layer), torchs)
    assert_instance_of(layer, torchs)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_close([compiled(torch.ones(2, 1, 3))[0]], [expected], 1e-6)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is ours
    assert_instance_of(layer, torchs)

    class Mine(ours):
        pass

    assert_instance_of(Mine(3, 4), torchs)


class Decoder(nn.Module):
    """As published decoders are: the kind of the layer says what its state is."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, input, hidden):
        output, hidden = self.rnn(input, hidden)
        last = hidden[0][-1] if isinstance(self.rnn, nn.LSTM) else hidden[-1]
        return output + last


@pytest.mark.parametrize("ours, torchs", PAIRS)
def test_a_decoder_that_tells_its_layer_by_isinstance(ours, torchs):
    theirs = Decoder(torchs(3, 4))
    model = replace_rnns(copy.deepcopy(theirs))
    states = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    hidden = states if torchs is nn.LSTM else states[0]
    input = torch.randn(5, 2, 3)
    expected = theirs(input, hidden)
    assert_close([model(input, hidden)], [expected], 1e-6)
    torch.compiler.reset()
    assert torch._dynamo.config.allow_rnn is False
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close([compiled(input, hidden)], [expected], 1e-6)
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(torch._dynamo.exc.Unsupported):  # what is torch's is refused as ever
        torch.compile(theirs, backend="aot_eager", fullgraph=True)(input, hidden)


def test_apply_of_an_init_function():
    def init(module):
        if isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.constant_(parameter, 1.0)
        elif isinstance(module, nn.GRU):
            nn.init.zeros_(module.weight_hh_l0)

    model = replace_rnns(nn.ModuleList([nn.LSTM(3, 4), nn.GRU(3, 4)]))
    model.apply(init)
    assert model[0].bias_hh_l0.eq(1).all() and model[1].weight_hh_l0.eq(0).all()
    assert_close([model[0].weight_hh_l0.mT @ model[0].weight_hh_l0], [torch.eye(4)], 1e-5)


# ---- torch.fx


class Tagger(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.embedding = nn.Embedding(11, 3)
        self.rnn = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, batch_first=True)
        self.linear = nn.LazyLinear(2)

    def forward(self, words, hidden, lengths):
        output, last = self.rnn(self.embedding(words), hidden, lengths=lengths)
        return self.linear(torch.relu(output)), last


@pytest.mark.parametrize("cell", CELLS)
def test_symbolic_trace(cell):
    model = Tagger(cell)
    words, lengths = torch.randint(11, (2, 5)), torch.tensor([5, 2])
    shapes = [(2, 2, model.rnn.proj_size or 4), (2, 2, 4)][: 1 + (model.rnn.mode == "LSTM")]
    hidden = [torch.randn(shape) for shape in shapes]
    hidden = tuple(hidden) if len(hidden) == 2 else hidden[0]
    expected = torch.utils._pytree.tree_leaves(model(words, hidden, lengths))
    graph = torch.fx.symbolic_trace(model)
    (node,) = [node for node in graph.graph.nodes if node.target == "rnn"]
    assert node.op == "call_module"
    actual = torch.utils._pytree.tree_leaves(graph(words, hidden, lengths))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    ShapeProp(graph).propagate(words, hidden, lengths)
    assert node.meta["tensor_meta"][0].shape == (*expected[0].shape[:2], 2 * shapes[0][2])
    fuse(graph.eval())
    assert torch.fx.symbolic_trace(graph).graph.find_nodes(op="call_module", target="rnn")
    actual[0].sum().backward()
    assert model.rnn.weight_hh_l0.grad is not None


def test_symbolic_trace_with_concrete_arguments_and_other_parts():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = birnn_cuda.LSTM(3, 4)
            self.start = nn.Parameter(torch.randn(1, 2, 3))

        def forward(self, state):
            output, _ = self.rnn(self.start, (state, state))  # only the states are traced
            return self.rnn(output[..., :3], return_cell_states=True)[2]

    model, state = Part(), torch.randn(1, 2, 4)
    graph = torch.fx.symbolic_trace(model)
    assert len(graph.graph.find_nodes(op="call_module", target="rnn")) == 2
    assert torch.equal(graph(state), model(state))
    for layer in (birnn_cuda.GRU(3, 4), birnn_cuda.LSTM(3, 4)):
        with pytest.raises(RuntimeError, match=r"trace that module, or torch.nn.Sequential\(layer"):
            torch.fx.symbolic_trace(layer)
        graph = torch.fx.symbolic_trace(nn.Sequential(layer))
        assert torch.equal(graph(torch.ones(2, 1, 3))[0], layer(torch.ones(2, 1, 3))[0])


# ---- subclasses and modes of __torch_function__


class Labelled(Tensor):
    pass


@pytest.mark.parametrize("cell", CELLS)
def test_subclass_of_torch_function(cell):
    layer = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(5, 2, 3)
    expected = call(layer, input)
    actual = call(layer, input.as_subclass(Labelled))
    assert all(type(x) is Labelled for x in actual)
    assert all(torch.equal(a.as_subclass(Tensor), e) for a, e in zip(actual, expected, strict=True))
    plain = [name for name, _ in layer.named_parameters()]
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach().as_subclass(Labelled))
    assert [name for name, _ in layer.named_parameters()] != [] and plain
    actual[0].sum().backward()


def test_mode_of_torch_function():
    class Recorder(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls.append(func)
            return func(*args, **(kwargs or {}))

    layer, input = birnn_cuda.LSTM(3, 4, num_layers=2), torch.randn(5, 2, 3)
    expected = layer(input)[0]
    with Recorder() as recorder:
        output = layer(input)[0]
    assert torch.equal(output, expected)
    assert recorder.calls.count(birnn_cuda.functional.recurrent_layer) == 2
    with torch.device("cpu"):  # a mode too
        assert torch.equal(layer(input)[0], expected)


# ---- _flat_weights, pruning


def test_flat_weights_that_are_assigned_are_used():
    theirs = nn.LSTM(3, 4)
    ours = replace_rnns(copy.deepcopy(theirs))
    input = torch.randn(5, 2, 3)
    for layer in (theirs, ours):  # as for dropping weights
        layer.raw = nn.Parameter(layer.weight_hh_l0.detach().clone())
        weights = list(layer._flat_weights)
        weights[1] = layer.raw * torch.tensor([1.0, 0.0, 0.0, 1.0])
        layer._flat_weights = weights
    (expected, _), (actual, _) = theirs(input), ours(input)
    assert_close([actual], [expected], 1e-6)
    actual.sum().backward()
    assert ours.raw.grad.abs().sum() > 0 and ours.weight_hh_l0.grad is None
    for layer in (theirs, ours):  # a weight set by its name counts again
        layer.weight_hh_l0 = nn.Parameter(torch.ones(16, 4))
    assert_close([ours(input)[0]], [theirs(input)[0]], 1e-6)
    ours._flat_weights = [torch.zeros_like(w) for w in ours._flat_weights]
    assert ours(input)[0].eq(0).all()
    ours.double().float()
    assert_close([ours(input)[0]], [theirs(input)[0]], 1e-6)
    with pytest.raises(ValueError, match=r"must hold 4 tensors \(weight_ih_l0, .*\), got 1"):
        ours._flat_weights = [torch.zeros(2)]


def test_pruning():
    input = torch.randn(5, 2, 3)
    results = []
    for package in (nn, birnn_cuda):
        torch.manual_seed(1)
        layer = package.LSTM(3, 4)
        prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
        layer(input)[0].sum().backward()
        before = layer(input)[0]
        assert layer.weight_hh_l0_orig.grad[layer.weight_hh_l0_mask == 0].eq(0).all()
        prune.remove(layer, "weight_hh_l0")
        results += [before, layer(input)[0]]
    assert_close(results[2:], results[:2], 1e-6)


# ---- errors


@pytest.mark.parametrize("package", [nn, birnn_cuda])
@pytest.mark.parametrize("number", [1, 3])
def test_number_of_states(package, number):
    layer, state = package.LSTM(3, 4), torch.randn(1, 2, 4)
    with pytest.raises((RuntimeError, IndexError)) as error:
        layer(torch.randn(5, 2, 3), (state,) * number)
    if package is birnn_cuda:
        assert str(error.value) == f"lstm expects two hidden states, got {number}"


@pytest.mark.parametrize("how", ["deleted", "None", "number"])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l1_reverse"])
def test_weight_that_is_none(name, how):
    layer = birnn_cuda.GRU(3, 4, num_layers=2, bidirectional=True)
    delattr(layer, name)
    if how != "deleted":
        setattr(layer, name, None if how == "None" else 1.0)
    found = "a float" if how == "number" else "missing"
    with pytest.raises(RuntimeError, match=f"^{name} must be a tensor, but it is {found}$"):
        layer(torch.randn(5, 2, 3))


# ---- quantization, scripts


@pytest.mark.parametrize("spec", [{nn.LSTM, nn.GRU}, None, {birnn_cuda.LSTM, birnn_cuda.GRU}])
def test_quantize_dynamic_says_what_it_leaves(spec):
    model = nn.ModuleDict({"a": birnn_cuda.LSTM(3, 4), "b": birnn_cuda.GRU(3, 4)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = torch.ao.quantization.quantize_dynamic(model, spec)
    said = [str(w.message) for w in caught if "birnn_cuda" in str(w.message)]
    assert len(said) == 2 and "birnn_cuda.to_torch" in said[0] and "GRU" in said[1]
    assert type(quantized["a"]) is birnn_cuda.LSTM
    assert all("birnn_cuda.quantize(model.eval()) makes" in text for text in said)
    small = birnn_cuda.quantize(copy.deepcopy(model).eval())
    assert type(small["a"]).__module__ == "birnn_cuda.quantized"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        way = torch.ao.quantization.quantize_dynamic(
            to_torch(copy.deepcopy(model)), {nn.LSTM, nn.GRU}
        )
    assert type(way["a"]).__module__.startswith("torch.ao.nn.quantized")
    input = torch.randn(5, 2, 3)
    assert_close([way["a"](input)[0]], [model["a"](input)[0]], 0.1)


def test_script_names_ways_that_work():
    model = nn.Sequential(birnn_cuda.LSTM(3, 4))
    with pytest.raises(RuntimeError) as error:
        torch.jit.script(model)
    text = str(error.value)
    for way in ("torch.export.export(model", "torch.jit.trace(model", "birnn_cuda.to_torch(model)"):
        assert way in text
    input = torch.randn(5, 2, 3)
    expected = model(input)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(to_torch(model))
    assert_close([script(input)[0]], [expected], 1e-6)
    assert type(replace_rnns(model)[0]) is birnn_cuda.LSTM
