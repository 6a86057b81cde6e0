"""What a module does beside its call: seeds, state dicts, copies, devices, wrappers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_layer,
    relative_error,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda


@pytest.mark.parametrize("cell", CELLS)
def test_a_seed_gives_torchs_initial_weights(cell, seed):
    parameters = []
    for package in (nn, birnn_cuda):
        torch.manual_seed(seed)
        layer = make_layer(package, cell, 3, 4, num_layers=2, bidirectional=True)
        parameters.append(dict(layer.named_parameters()))
    assert list(parameters[0]) == list(parameters[1])
    for name, theirs in parameters[0].items():
        assert torch.equal(parameters[1][name], theirs)


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_both_ways(cell):
    theirs = make_layer(nn, cell, 3, 4, num_layers=2, bidirectional=True)
    ours = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    input = torch.randn(5, 2, 3)
    ours.load_state_dict(theirs.state_dict())
    assert_close(call(ours, input), call(theirs, input), 1e-5)
    other = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    theirs.load_state_dict(other.state_dict())
    assert_close(call(other, input), call(theirs, input), 1e-5)


def test_constructor_positions():
    ours = birnn_cuda.RNN(3, 4, 2, "relu", False, True, 0.25, True)
    theirs = nn.RNN(3, 4, 2, "relu", False, True, 0.25, True)
    assert ours.nonlinearity == "relu"
    assert repr(ours) == repr(theirs)
    assert repr(birnn_cuda.LSTM(3, 4, 2, True, True, 0.25, True, 2)) == repr(
        nn.LSTM(3, 4, 2, True, True, 0.25, True, 2)
    )
    assert isinstance(ours, nn.RNNBase)


def copy_by_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def copy_by_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, copy_by_pickle, copy_by_save])
@pytest.mark.parametrize("cell", CELLS)
def test_copies(cell, how):
    ours = make_layer(birnn_cuda, cell, 3, 4, num_layers=2, bidirectional=True)
    twin = how(ours)
    input = torch.randn(5, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(call(ours, input), call(twin, input), strict=True))
    with torch.no_grad():
        twin.bias_ih_l1 += 10  # what a unit of relu adds up is negative otherwise, perhaps
    assert ours.bias_ih_l1.lt(10).all()
    assert not torch.equal(call(ours, input)[0], call(twin, input)[0])


def test_meta_device():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True, device="meta")
    input = torch.randn(5, 2, 3, device="meta", requires_grad=True)
    output, (h_n, c_n) = ours(input)
    assert output.is_meta and output.shape == (5, 2, 8)
    assert h_n.shape == c_n.shape == (2, 2, 4)
    output.sum().backward()
    assert input.grad.shape == input.shape
    ours.to_empty(device="cpu").reset_parameters()
    assert ours(torch.randn(5, 2, 3))[0].isfinite().all()


def test_meta_device_packed():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True, device="meta")
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    output, (h_n, _) = ours(packed.to("meta"))
    assert output.data.shape == (8, 8) and h_n.shape == (2, 2, 4)


def test_change_of_dtype_and_assignment():
    ours = birnn_cuda.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    single = ours(input)[0]
    assert_close([ours.double()(input.double())[0]], [single], 1e-5)
    assert ours.half()(input.half())[0].dtype == torch.float16
    ours.float()
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(12, 4))
    theirs = nn.GRU(3, 4)
    theirs.load_state_dict(ours.state_dict())
    assert_close(call(ours, input), call(theirs, input), 1e-5)


def test_functional_call():
    ours = birnn_cuda.LSTM(3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(5, 2, 3)
    before = ours(input)[0]
    weights = {name: 2 * w.detach() for name, w in ours.named_parameters()}
    doubled = torch.func.functional_call(ours, weights, (input,))[0]
    assert torch.equal(ours(input)[0], before)
    ours.load_state_dict(weights)
    assert torch.equal(ours(input)[0], doubled)


@pytest.mark.parametrize("cell", CELLS)
def test_weight_norm(cell):
    theirs = make_layer(nn, cell, 3, 4, bidirectional=True, dtype=torch.float64)
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, dtype=torch.float64)
    for layer in (theirs, ours):
        for name in ("weight_hh_l0", "weight_ih_l0_reverse"):
            nn.utils.parametrizations.weight_norm(layer, name)
    ours.load_state_dict(theirs.state_dict())
    input = torch.randn(5, 2, 3, dtype=torch.float64)
    results = []
    for layer in (theirs, copy.deepcopy(ours), ours):
        parameters = dict(layer.named_parameters())
        outputs = call(layer, input)
        grads = torch.autograd.grad(outputs[0].square().sum(), list(parameters.values()))
        results.append([*outputs, *grads])
    assert_close(results[1], results[0], 1e-12)
    assert_close(results[2], results[0], 1e-12)
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original0.mul_(3)
    assert relative_error(call(ours, input)[0], results[2][0]) > 1e-3


def test_weights_shared_by_two_layers():
    first, second = birnn_cuda.GRU(4, 4), birnn_cuda.GRU(4, 4)
    second.weight_hh_l0 = first.weight_hh_l0
    input = torch.randn(5, 2, 4, dtype=torch.float64)
    both = nn.Sequential(first, second).double()
    assert first.weight_hh_l0 is second.weight_hh_l0
    second(first(input)[0])[0].sum().backward()
    together = first.weight_hh_l0.grad
    apart = copy.deepcopy(both)
    apart[1].weight_hh_l0 = nn.Parameter(first.weight_hh_l0.detach().clone())
    apart.zero_grad()
    apart[1](apart[0](input)[0])[0].sum().backward()
    parts = apart[0].weight_hh_l0.grad + apart[1].weight_hh_l0.grad
    assert_close([together], [parts], 1e-12)


def test_data_parallel_replica():
    """What torch.nn.parallel.replicate does to a module: copies of the weights as attributes."""
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    replica = ours._replicate_for_data_parallel()
    for name, weight in ours.named_parameters():
        setattr(replica, name, weight * 1)
    input = torch.randn(5, 2, 3)
    assert torch.equal(replica(input)[0], ours(input)[0])
    replica(input)[0].sum().backward()
    assert all(weight.grad is not None for weight in ours.parameters())


def test_flatten_parameters_leaves_the_weights():
    ours = birnn_cuda.GRU(3, 4)
    addresses = [w.data_ptr() for w in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert [w.data_ptr() for w in ours.parameters()] == addresses


def test_no_reserve_without_gradients():
    ours = birnn_cuda.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    expected = ours(input)[0]
    with torch.no_grad():
        silent = ours(input)[0]
    with torch.inference_mode():
        inference = ours(input)[0]
    assert expected.requires_grad and not silent.requires_grad
    assert torch.equal(silent, expected) and torch.equal(inference, expected)
