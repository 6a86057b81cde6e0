"""Every error a user of torch.nn meets, side by side: the same type and text here."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from conftest import CELLS, make_layer, make_states
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda


def raised_by(function):
    with pytest.raises(Exception) as info, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function()
    return type(info.value), str(info.value)


CONSTRUCTORS = {
    "hidden_size": {"hidden_size": 0},
    "hidden_size type": {"hidden_size": 4.0},
    "input_size": {"input_size": 0},
    "input_size type": {"input_size": "3"},
    "num_layers": {"num_layers": 0},
    "bias": {"bias": 1},
    "batch_first": {"batch_first": 0},
    "dropout range": {"dropout": 1.5},
    "dropout type": {"dropout": True},
    "proj_size": {"proj_size": 4},
    "negative proj_size": {"proj_size": -1},
    "nonlinearity": {"nonlinearity": "sigmoid"},
    "unknown option": {"bidirectionally": True},
    "missing size": {"hidden_size": None},
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_constructor(name, case):
    options = {"input_size": 3, "hidden_size": 4, **CONSTRUCTORS[case]}
    options = {key: value for key, value in options.items() if value is not None}
    expected = raised_by(lambda: getattr(nn, name)(**options))
    assert raised_by(lambda: getattr(birnn_cuda, name)(**options)) == expected


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_warning_for_dropout_with_one_layer(name):
    texts = []
    for package in (nn, birnn_cuda):
        with pytest.warns(UserWarning, match="dropout option adds dropout") as record:
            getattr(package, name)(3, 4, dropout=0.5)
        texts.append(str(record[0].message))
    assert texts[0] == texts[1]


def changed_states(layer, change, batch_size=2):
    """hx with its last tensor changed: for the LSTM the cell state."""
    states = make_states(layer, batch_size, torch.float32)
    return as_hx(layer, [*states[:-1], change(states[-1])])


def as_hx(layer, states):
    return tuple(states) if layer.mode == "LSTM" else states[0]


def states(layer, batch_size=2):
    return as_hx(layer, make_states(layer, batch_size, torch.float32))


def first_changed(layer, change):
    first, *rest = make_states(layer, 2, torch.float32)
    return as_hx(layer, [change(first), *rest])


def packed(input_size=3):
    return pack_padded_sequence(torch.randn(5, 2, input_size), [3, 5], enforce_sorted=False)


# Arguments of forward, made from the layer (input_size 3, two bidirectional layers, B = 2).
FORWARDS = {
    "1-D input": lambda layer: (torch.randn(3),),
    "4-D input": lambda layer: (torch.randn(1, 5, 2, 3),),
    "input_size": lambda layer: (torch.randn(5, 2, 4),),
    "input_size, with hx": lambda layer: (torch.randn(5, 2, 4), states(layer)),
    "input_size, unbatched": lambda layer: (torch.randn(5, 4),),
    "input dtype": lambda layer: (torch.randn(5, 2, 3).double(),),
    "integer input": lambda layer: (torch.zeros(5, 2, 3, dtype=torch.int64),),
    "batch of hx": lambda layer: (torch.randn(5, 2, 3), states(layer, 3)),
    "size of hx": lambda layer: (torch.randn(5, 2, 3), first_changed(layer, lambda h: h[:, :, 1:])),
    "layers of hx": lambda layer: (torch.randn(5, 2, 3), first_changed(layer, lambda h: h[1:])),
    "size of the last state": lambda layer: (
        torch.randn(5, 2, 3),
        changed_states(layer, lambda s: s[:, :, 1:]),
    ),
    "2-D hx, batched": lambda layer: (torch.randn(5, 2, 3), first_changed(layer, lambda h: h[0])),
    "2-D last state, batched": lambda layer: (
        torch.randn(5, 2, 3),
        changed_states(layer, lambda s: s[0]),
    ),
    "3-D hx, unbatched": lambda layer: (torch.randn(5, 3), states(layer, 1)),
    "hx on another device": lambda layer: (
        torch.randn(5, 2, 3),
        first_changed(layer, lambda h: h.to("meta")),
    ),
    "input on another device": lambda layer: (torch.randn(5, 2, 3, device="meta"),),
    "no input": lambda layer: (),
    "input of another type": lambda layer: ([1.0, 2.0, 3.0],),
}


@pytest.mark.parametrize("case", FORWARDS)
@pytest.mark.parametrize("cell", CELLS)
def test_forward(cell, case):
    theirs = make_layer(nn, cell, 3, 4, num_layers=2, bidirectional=True)
    ours = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    arguments = FORWARDS[case](theirs)
    expected = raised_by(lambda: theirs(*arguments))
    actual = raised_by(lambda: ours(*arguments))
    if case == "no input":  # the text names the class that defines forward
        assert actual[0] is expected[0] and "'input'" in actual[1]
    else:
        assert actual == expected


# torch's LSTM leaves the checks of a packed input to its kernels: RNN and GRU set the texts.
@pytest.mark.parametrize(
    "make",
    [
        lambda layer: (packed(input_size=4),),
        lambda layer: (packed(), first_changed(layer, lambda h: h[:, :, 1:])),
        lambda layer: (packed(), first_changed(layer, lambda h: h[:, :1])),
        lambda layer: (packed(), first_changed(layer, lambda h: h[1:])),
    ],
)
@pytest.mark.parametrize("cell", CELLS[:3])
def test_packed_forward(cell, make):
    theirs = make_layer(nn, cell, 3, 4, num_layers=2, bidirectional=True)
    ours = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    arguments = make(theirs)
    assert raised_by(lambda: ours(*arguments)) == raised_by(lambda: theirs(*arguments))


def test_packed_lstm_is_checked():
    ours = birnn_cuda.LSTM(3, 4)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        ours(packed(input_size=4))
    hx, cx = make_states(ours, 2, torch.float32)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got"):
        ours(packed(), (hx, cx[:, :, 1:]))


def test_dtype_of_the_states():
    """Torch on the CPU lets its matrix product complain; the text is that of its CUDA path."""
    ours = birnn_cuda.LSTM(3, 4)
    hx, cx = make_states(ours, 2, torch.float32)
    text = (
        "Input and hidden tensors are not the same dtype, found input tensor with Float and "
        "hidden tensor with Double"
    )
    assert raised_by(lambda: ours(torch.randn(5, 2, 3), (hx, cx.double()))) == (RuntimeError, text)


def test_packed_sequence_that_is_too_long_for_hx():
    theirs, ours = nn.GRU(3, 4), birnn_cuda.GRU(3, 4)
    sequence = pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    hx = torch.randn(1, 1, 4)
    assert raised_by(lambda: ours(sequence, hx)) == raised_by(lambda: theirs(sequence, hx))


# ---- lengths: beyond torch


@pytest.mark.parametrize(
    ("lengths", "error", "text"),
    [
        ([5, 5], TypeError, "lengths must be a tensor, got list"),
        (torch.tensor([5.0, 5.0]), ValueError, "lengths must be int64 or int32, got torch.float32"),
        (torch.tensor([[5, 5]]), ValueError, "lengths must have 1 dimension, got 2"),
        (torch.tensor(5), ValueError, "lengths must have 1 dimension, got 0"),
        (torch.tensor([5]), ValueError, "each of the 2 sequences of the batch, got 1"),
        (torch.tensor([5, 5, 5]), ValueError, "each of the 2 sequences of the batch, got 3"),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_form_of_lengths(batch_first, lengths, error, text):
    ours = birnn_cuda.GRU(3, 4, batch_first=batch_first)
    input = torch.randn(2, 5, 3) if batch_first else torch.randn(5, 2, 3)
    with pytest.raises(error, match=text):
        ours(input, lengths=lengths)


def test_lengths_of_unbatched_input_have_no_dimension():
    with pytest.raises(
        ValueError, match="lengths must have no dimension for an unbatched input, got 1"
    ):
        birnn_cuda.GRU(3, 4)(torch.randn(5, 3), lengths=torch.tensor([5]))


def test_lengths_beside_a_packed_sequence():
    with pytest.raises(ValueError, match="a PackedSequence carries its lengths"):
        birnn_cuda.GRU(3, 4)(packed(), lengths=torch.tensor([5, 3]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("value", [-1, 6])
def test_values_of_lengths(value, dtype):
    lengths = torch.tensor([5, 0, value, -7], dtype=dtype)
    ours = birnn_cuda.GRU(3, 4)
    expected = (
        ValueError,
        f"lengths[2] is {value} but must be between 0 and the 5 steps of the input",
    )
    assert raised_by(lambda: ours(torch.randn(5, 4, 3), lengths=lengths)) == expected
    assert raised_by(lambda: birnn_cuda.check_lengths(lengths, 5)) == expected


def test_check_lengths():
    birnn_cuda.check_lengths(torch.tensor([5, 0, 3]), 5)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 6"):
        birnn_cuda.check_lengths(torch.tensor([5, 6, 7]), 5)
    with pytest.raises(ValueError, match="int64 or int32"):
        birnn_cuda.check_lengths(torch.tensor([1.0]), 5)
    with pytest.raises(TypeError, match="got list"):
        birnn_cuda.check_lengths([1], 5)


# ---- torch.jit.script


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_script_is_refused_with_the_remedy(name):
    ours = getattr(birnn_cuda, name)(3, 4)
    for model in (ours, nn.Sequential(ours)):
        with pytest.raises(RuntimeError, match=rf"birnn_cuda\.{name}.*export.*to_torch"):
            torch.jit.script(model)
        torch.jit.script(birnn_cuda.to_torch(copy.deepcopy(model)))
