"""BiRNN: the network of Schuster & Paliwal, by its six weight matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from birnn_cuda import BiRNN, to_torch

MODEL_CELLS = ("tanh", "relu", "gru", "lstm")


def by_hand(model, x):
    """The equations of the docstring on one sequence [T, I]: outputs [T, O] and final [O]."""
    hidden = model.hidden
    act = torch.tanh if model.cell == "tanh" else torch.relu
    bias_f = hidden.bias_ih_l0 + hidden.bias_hh_l0
    bias_b = hidden.bias_ih_l0_reverse + hidden.bias_hh_l0_reverse
    forward, backward = [], []
    h = x.new_zeros(hidden.hidden_size)
    for x_t in x:
        h = act(model.w1 @ x_t + model.w2 @ h + bias_f)
        forward.append(h)
    h = x.new_zeros(hidden.hidden_size)
    for x_t in x.flip(0):
        h = act(model.w3 @ x_t + model.w5 @ h + bias_b)
        backward.insert(0, h)

    def output(f, b):
        return model.w4 @ f + model.w6 @ b + model.output.bias

    steps = torch.stack([output(f, b) for f, b in zip(forward, backward, strict=True)])
    return steps, output(forward[-1], backward[0])


@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_the_equations(cell):
    model = BiRNN(3, 4, 2, cell, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    steps, final = by_hand(model, x)
    assert_close([model(x)], [steps], 1e-12)
    model.per_step = False
    assert_close([model(x)], [final], 1e-12)


def test_regularisers_are_those_of_the_hidden_layers():
    options = {
        "dropout": 0.1,
        "input_dropout_mask": "sequence",
        "recurrent_dropout": 0.2,
        "zoneout": (0.05, 0.5),
    }
    model = BiRNN(3, 4, 2, "lstm", num_layers=2, **options)
    assert {name: getattr(model.hidden, name) for name in options} == options
    assert BiRNN(3, 4, 2, "gru", layer_norm=True).hidden.layer_norm
    with pytest.raises(ValueError, match=r"recurrent_dropout .* got 1"):
        BiRNN(3, 4, 2, recurrent_dropout=1)


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", MODEL_CELLS)
def test_every_sequence_as_if_alone(cell, batch_first, per_step):
    """Padded with lengths, packed, and one by one: the same outputs."""
    model = BiRNN(
        3,
        4,
        2,
        cell,
        per_step=per_step,
        num_layers=2,
        batch_first=batch_first,
        dtype=torch.float64,
    )
    sequences = [torch.randn(length, 3, dtype=torch.float64) for length in (2, 5, 1, 4)]
    lengths = torch.tensor([len(s) for s in sequences])
    alone = [model(s) for s in sequences]
    padded = pad_sequence(sequences, batch_first, padding_value=float("nan"))
    by_lengths = model(padded, lengths=lengths)
    packed = model(pack_sequence(sequences, enforce_sorted=False))
    if per_step:
        expected = pad_sequence(alone, batch_first)
        assert isinstance(packed, PackedSequence)
        packed, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first)
    else:
        expected = torch.stack(alone)
    assert_close([by_lengths, packed], [expected, expected], 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_of_one_unbatched_sequence(batch_first):
    model = BiRNN(3, 4, 2, batch_first=batch_first)
    x = torch.randn(5, 3)
    expected = torch.cat([model(x[:3]), torch.zeros(2, 2)])
    assert_close([model(x, lengths=torch.tensor(3))], [expected], 1e-6)


@pytest.mark.parametrize("cell", MODEL_CELLS)
def test_the_six_matrices(cell):
    gates = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}[cell]
    # So many units that some of a relu are alive whatever the numbers.
    H = 32
    model = BiRNN(3, H, 2, cell)
    assert model.w1.shape == model.w3.shape == (gates * H, 3)
    assert model.w2.shape == model.w5.shape == (gates * H, H)
    assert model.w4.shape == model.w6.shape == (2, H)
    six = [model.w1, model.w2, model.w3, model.w4, model.w5, model.w6]
    biases = sum(p.numel() for n, p in model.named_parameters() if "bias" in n)
    everything = sum(p.numel() for p in model.parameters())
    assert sum(w.numel() for w in six) + biases == everything
    x = torch.randn(5, 3)
    reference = model(x)
    for weight in six:
        with torch.no_grad():
            kept = weight.clone()
            weight.mul_(2)
            assert not torch.allclose(model(x), reference)
            weight.copy_(kept)
    assert torch.equal(model(x), reference)


def test_an_output_depends_on_past_and_future():
    model = BiRNN(3, 4, 2)
    x = torch.randn(5, 3, requires_grad=True)
    (d_x,) = torch.autograd.grad(model(x)[2].sum(), x)
    assert d_x.ne(0).any(1).all()


def test_options():
    model = BiRNN(3, 4, 2, "gru", num_layers=3, bias=False, dropout=0.5, dtype=torch.float64)
    assert model.hidden.num_layers == 3 and model.hidden.dropout == 0.5
    assert model.hidden.bidirectional and not model.hidden.bias
    assert model.output.bias is None and model.output.weight.dtype == torch.float64
    assert "per_step=True" in repr(model) and "cell='gru'" in repr(model)
    with pytest.raises(ValueError, match="cell must be 'tanh', 'relu', 'gru' or 'lstm', got 'cnn'"):
        BiRNN(3, 4, 2, "cnn")


def test_runs_on_torchs_layers():
    model = BiRNN(3, 4, 2, "lstm", dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    twin = to_torch(copy.deepcopy(model))
    assert type(twin.hidden) is nn.LSTM
    assert_close([twin(x)], [model(x)], 1e-12)


def losses_of_training(model: nn.Module, input: Tensor, target: Tensor) -> Tensor:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(nn.functional.binary_cross_entropy_with_logits(model(input), target))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


@pytest.mark.parametrize("cell", MODEL_CELLS)
def test_learns_what_needs_the_future(cell):
    """Label each step by the sign of the sum of its two neighbours: step by step as torch's layers
    learn it.

    How well a small network learns depends on its first weights, so that these are the same in
    every run; of 12 others none ended below 0.94.
    """
    torch.manual_seed(0)
    model = BiRNN(1, 12, 1, cell, dtype=torch.float64)
    twin = to_torch(copy.deepcopy(model))
    x = torch.randn(12, 64, 1, dtype=torch.float64)
    target = (x.roll(1, 0) + x.roll(-1, 0) > 0).double()
    target[[0, -1]] = 0.0
    found, expected = (losses_of_training(each, x, target) for each in (model, twin))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    # Without the future one neighbour is known: 0.75 at best.
    accuracy = ((model(x) > 0) == (target > 0))[1:-1].double().mean()
    assert accuracy > 0.9
