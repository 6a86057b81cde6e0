"""RNN, GRU and LSTM beside torch.nn: values, gradients, and everything a module does."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    assert_close,
    call,
    call_by_lengths,
    copies,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_pair,
    make_states,
    relative_error,
    strided,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import birnn_cuda
from birnn_cuda import layers

# T, B, I, H and the options of a layer: the shapes that break kernels.
CONFIGURATIONS = [
    (1, 1, 4, 4, {}),
    (2, 3, 1, 5, {"bidirectional": True}),
    (3, 2, 7, 8, {"bidirectional": True, "bias": False, "num_layers": 2}),
    (5, 5, 3, 13, {"bidirectional": True, "batch_first": True}),
    (7, 1, 16, 17, {"num_layers": 3, "batch_first": True}),
    (7, 9, 5, 33, {"bidirectional": True, "num_layers": 2}),
    (6, 17, 9, 64, {"bidirectional": True}),
]
LENGTHS = {
    "full": [5, 5, 5, 5],
    "ones": [1, 1, 1, 1],
    "sorted": [5, 4, 4, 1],
    "unsorted": [2, 5, 1, 3],
    "zeros": [0, 3, 0, 5],
}
SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def assert_like_oracle(oracle, ours, outputs, expected, operands, oracle_operands, tolerance):
    """Outputs, and the gradients of random cotangents, against the fp64 oracle's."""
    assert_close(outputs, expected, tolerance, "output")
    cotangents = [torch.randn_like(o) for o in outputs]
    assert_close(
        gradients(outputs, cotangents, [*operands, *ours.parameters()]),
        gradients(expected, cotangents, [*oracle_operands, *oracle.parameters()]),
        tolerance,
        "gradient",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell, config, dtype):
    seq_len, batch_size, input_size, hidden_size, options = config
    oracle, ours = make_pair(cell, input_size, hidden_size, dtype=dtype, **options)
    shape = (seq_len, batch_size, input_size)
    if options.get("batch_first"):
        shape = (batch_size, seq_len, input_size)
    with_states = config in CONFIGURATIONS[::2]

    def draw():
        states = make_states(ours, batch_size, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    outputs = call(ours, operands[0], operands[1:])
    expected = call(oracle, exact[0], exact[1:])
    assert all(o.dtype == dtype for o in outputs)
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("hidden_size", [1, 2])
@pytest.mark.parametrize("cell", CELLS[:4])
def test_smallest(cell, hidden_size):
    oracle, ours = make_pair(cell, 1, hidden_size, bidirectional=True, dtype=torch.float64)
    (input,), (exact,) = (copies([x], torch.float64) for x in [torch.randn(4, 3, 1)] for _ in "ab")
    outputs, expected = call(ours, input), call(oracle, exact)
    # One number may be a difference of larger ones, so the bound is wider than for a tensor.
    assert_like_oracle(oracle, ours, outputs, expected, [input], [exact], 1e-9)


def test_large_hidden_size():
    oracle, ours = make_pair("lstm", 40, 1024, bidirectional=True)
    input = torch.randn(2, 3, 40)
    assert_close(call(ours, input), call(oracle, input.double()), 1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bit(cell, dtype):
    """No further from fp64 than the rounding of what is stored explains."""
    # What a layer rounds moves the preactivations of the next across relu's kink.
    num_layers = 1 if cell == "relu" else 2
    options = {"bidirectional": True, "num_layers": num_layers, "dtype": dtype}
    oracle, ours = make_pair(cell, 11, 24, **options)
    if cell == "relu":
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    operands = [torch.randn(7, 5, 11).to(dtype), *make_states(ours, 5, dtype)]
    results = []
    for layer, precision in ((oracle, torch.float64), (ours, dtype)):
        leaves = copies(operands, precision)
        outputs = call(layer, leaves[0], leaves[1:])
        if not results:
            cotangents = [torch.randn_like(o).to(dtype) for o in outputs]
        grads = gradients(outputs, cotangents, [*leaves, *layer.parameters()])
        results.append(outputs + grads)
    drawn = rounding_model.drawn(
        oracle, rounding.OF_DTYPE[dtype], operands, cotangents, stores_gates=False
    )
    for index, (exact, own, draws) in enumerate(zip(*results, drawn, strict=True)):
        assert own.dtype == dtype
        rounding.check(own, exact, TOLERANCE[torch.float32], draws, f"result {index}")


# ---- lengths and packed sequences


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell, pattern, dtype):
    batch_first, with_states = pattern == "unsorted", pattern != "sorted"
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 6, 9, dtype=dtype, **options)
    shape = (4, 5, 6) if batch_first else (5, 4, 6)

    def draw():
        states = make_states(ours, 4, dtype) if with_states else []
        return [torch.randn(shape, dtype=dtype), *states]

    operands = draw_operands(ours, draw)
    operands, exact = copies(operands, dtype), copies(operands, torch.float64)
    lengths = torch.tensor(LENGTHS[pattern], dtype=torch.int32 if with_states else torch.int64)
    outputs = call(ours, operands[0], operands[1:], lengths=lengths)
    expected = call_by_lengths(oracle, exact[0], exact[1:], LENGTHS[pattern])
    padding = torch.arange(5).unsqueeze(1) >= lengths
    padded = outputs[0].transpose(0, 1) if batch_first else outputs[0]
    assert padded[padding].eq(0).all()
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell, enforce_sorted):
    options = {"bidirectional": True, "num_layers": 2, "dtype": torch.float64}
    oracle, ours = make_pair(cell, 6, 9, **options)
    lengths = LENGTHS["sorted" if enforce_sorted else "unsorted"]
    operands = [torch.randn(5, 4, 6, dtype=torch.float64), *make_states(ours, 4, torch.float64)]
    operands, exact = copies(operands, torch.float64), copies(operands, torch.float64)
    both = [
        call(layer, pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), states)
        for layer, (x, *states) in ((ours, operands), (oracle, exact))
    ]
    assert_like_oracle(oracle, ours, *both, operands, exact, 1e-12)


def test_packed_output_keeps_its_order():
    ours = birnn_cuda.GRU(3, 4, bidirectional=True)
    sequences = [torch.randn(length, 3) for length in (2, 5, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    output, h_n = ours(packed)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    assert torch.equal(output.sorted_indices, packed.sorted_indices)
    assert torch.equal(output.unsorted_indices, packed.unsorted_indices)
    for index, sequence in enumerate(sequences):
        assert_close([h_n[:, index]], [ours(sequence)[1]], 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell):
    """NaN past a sequence's end, or in an empty one's state, changes nothing, bit for bit."""
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True, num_layers=2)
    lengths = torch.tensor([5, 0, 3, 1])
    clean = torch.randn(5, 4, 3)
    poisoned = clean.clone()
    poisoned[torch.arange(5).unsqueeze(1) >= lengths] = float("nan")
    states = make_states(ours, 4, torch.float32)
    results = []
    for input, value in ((clean, 0.0), (poisoned, float("nan"))):
        leaf = input.requires_grad_()
        for state in states:
            state[:, 1] = value  # the state of the empty sequence
        outputs = [o[:, [0, 2, 3]] for o in call(ours, leaf, states, lengths=lengths)]
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [leaf, *ours.parameters()])])
    for clean_result, poisoned_result in zip(*results, strict=True):
        assert torch.equal(clean_result, poisoned_result)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_sequence(cell):
    ours = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True)
    clean = torch.randn(5, 4, 3)
    poisoned = clean.clone()
    poisoned[2, 1] = float("nan")
    others = [0, 2, 3]
    results = []
    for input in (clean, poisoned):
        leaf = input.requires_grad_()
        outputs = call(ours, leaf)
        (d_input,) = torch.autograd.grad(sum(o.sum() for o in outputs), [leaf])
        results.append([*outputs, d_input])
    assert results[1][0][:, 1].isnan().any()
    for clean_result, poisoned_result in zip(*results, strict=True):
        assert torch.equal(clean_result[:, others], poisoned_result[:, others])


def test_lengths_on_unbatched_input():
    ours = birnn_cuda.LSTM(3, 4, bidirectional=True)
    input = torch.randn(5, 3)
    outputs = call(ours, input, lengths=torch.tensor(3))
    alone = call(ours, input[:3])
    assert_close([outputs[0][:3], *outputs[1:]], alone, 1e-6)
    assert outputs[0].shape == (5, 8) and outputs[0][3:].eq(0).all()


# ---- forms of the input


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(cell, batch_first):
    options = {"bidirectional": True, "num_layers": 2, "batch_first": batch_first}
    oracle, ours = make_pair(cell, 3, 4, dtype=torch.float64, **options)
    input = torch.randn(5, 3, dtype=torch.float64)
    states = [s.squeeze(1) for s in make_states(ours, 1, torch.float64)]
    assert_close(call(ours, input, states), call(oracle, input, states), 1e-12)


@pytest.mark.parametrize("how", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("cell", CELLS)
def test_strides(cell, how):
    oracle, ours = make_pair(cell, 6, 8, bidirectional=True, dtype=torch.float64)
    operands = [torch.randn(5, 4, 6, dtype=torch.float64), *make_states(ours, 4, torch.float64)]
    operands = [strided(x, how).detach().requires_grad_() for x in operands]
    assert not any(x.is_contiguous() for x in operands)
    exact = [x.detach().contiguous().requires_grad_() for x in operands]
    outputs, expected = call(ours, operands[0], operands[1:]), call(oracle, exact[0], exact[1:])
    assert_like_oracle(oracle, ours, outputs, expected, operands, exact, 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_strided_weights_and_cotangents(cell):
    oracle, ours = make_pair(cell, 6, 8, bidirectional=True, dtype=torch.float64)
    for name, weight in list(ours.named_parameters()):
        setattr(ours, name, nn.Parameter(strided(weight.detach(), "sliced")))
    input = torch.randn(5, 4, 6, dtype=torch.float64)
    outputs, expected = call(ours, input), call(oracle, input)
    cotangents = [strided(torch.randn_like(o), "transposed") for o in outputs]
    assert_close(
        gradients(outputs, cotangents, list(ours.parameters())),
        gradients(expected, cotangents, list(oracle.parameters())),
        1e-12,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell):
    ours = make_layer(birnn_cuda, cell, 3, 4, bidirectional=True, num_layers=2)
    theirs = make_layer(nn, cell, 3, 4, bidirectional=True, num_layers=2)
    input = torch.randn(5, 0, 3, requires_grad=True)
    outputs = call(ours, input)
    assert [o.shape for o in outputs] == [o.shape for o in call(theirs, input)]
    loss = sum(o.sum() for o in outputs)
    d_input, *d_weights = torch.autograd.grad(loss, [input, *ours.parameters()])
    assert d_input.shape == (5, 0, 3)
    assert all(d.eq(0).all() for d in d_weights)


def test_several_threads():
    """More threads, and more than rows to share out: the same outputs, and gradients as exact."""
    ours = birnn_cuda.LSTM(32, 48, num_layers=2, bidirectional=True)
    input = torch.randn(20, 33, 32, requires_grad=True)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            outputs = call(ours, input)
            loss = outputs[0].square().sum()
            results.append([*outputs, *torch.autograd.grad(loss, [input, *ours.parameters()])])
        finally:
            torch.set_num_threads(1)
    states = len(outputs)
    assert all(torch.equal(a, b) for a, b in zip(*(r[:states] for r in results), strict=True))
    # Large products are a BLAS's, which divides long sums by threads.
    for one, three in zip(*results, strict=True):
        assert_close([three], [one], 1e-5)


def test_repeated_runs_give_the_same_bits():
    ours = birnn_cuda.GRU(32, 48, bidirectional=True)
    input = torch.randn(20, 33, 32, requires_grad=True)
    first, second = (
        torch.autograd.grad(ours(input)[0].square().sum(), [input, *ours.parameters()])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- dropout


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_torchs_masks(cell, packed):
    options = {"bidirectional": True, "num_layers": 3, "dropout": 0.4, "dtype": torch.float64}
    oracle, ours = make_pair(cell, 5, 7, **options)
    input = torch.randn(6, 4, 5, dtype=torch.float64)
    if packed:
        input = pack_padded_sequence(input, [6, 5, 5, 2])
    results = []
    for layer in (ours, oracle):
        torch.manual_seed(1)
        results.append(call(layer, input))
    assert_close(*results, 1e-12)
    with_dropout = results[0][0]
    ours.eval()
    assert_close(call(ours, input), call(oracle.eval(), input), 1e-12)
    assert relative_error(call(ours, input)[0], with_dropout) > 1e-3


def test_dropout_can_be_changed():
    ours = birnn_cuda.GRU(5, 7, num_layers=2, dropout=0.5)
    input = torch.randn(6, 4, 5)
    ours.dropout = 0.0
    assert torch.equal(ours(input)[0], ours.eval()(input)[0])
    ours.train().dropout = 1.0
    assert not torch.equal(ours(input)[0], ours.eval()(input)[0])


# ---- the module


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
        twin.weight_hh_l0.zero_()
    assert ours.weight_hh_l0.ne(0).any()
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


# ---- autocast and precision


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell, dtype):
    ours = make_layer(birnn_cuda, cell, 6, 8, bidirectional=True, num_layers=2)
    low = copy.deepcopy(ours).to(dtype)
    input, states = torch.randn(5, 3, 6), make_states(ours, 3, torch.float32)
    leaf = input.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        outputs = call(ours, leaf, states)
    expected = call(low, input.to(dtype), [s.to(dtype) for s in states])
    assert all(o.dtype == dtype for o in outputs)
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))
    sum(o.float().sum() for o in outputs).backward()
    assert leaf.grad.dtype == torch.float32
    assert all(w.grad.dtype == torch.float32 for w in ours.parameters())


def test_autocast_leaves_fp64():
    ours = birnn_cuda.GRU(3, 4, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = ours(input)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(input)[0], expected)


def test_backward_under_autocast_keeps_its_precision():
    ours = birnn_cuda.GRU(3, 4)
    input = torch.randn(5, 2, 3, requires_grad=True)

    def second_gradients():
        (d_input,) = torch.autograd.grad(ours(input)[0].square().sum(), input, create_graph=True)
        return torch.autograd.grad(d_input.square().sum(), [input, *ours.parameters()])

    expected = second_gradients()
    output = ours(input)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = output.square().sum()
        (d_input,) = torch.autograd.grad(loss, input, create_graph=True)
        actual = torch.autograd.grad(d_input.square().sum(), [input, *ours.parameters()])
    assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "setting", "expected"),
    [
        (torch.float32, "tf32", "tf32"),
        (torch.float32, "ieee", "ieee"),
        (torch.float32, "none", "ieee"),
        (torch.float64, "tf32", "ieee"),
        (torch.bfloat16, "tf32", "ieee"),
    ],
)
def test_precision_follows_torchs_switch(monkeypatch, dtype, setting, expected):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
    with FakeTensorMode():
        on_cuda = torch.empty(1, dtype=dtype, device="cuda")
        on_cpu = torch.empty(1, dtype=dtype)
    assert layers._fp32_precision(on_cuda) == expected
    assert layers._fp32_precision(on_cpu) == "ieee"


def test_precision_default_is_tf32():
    with FakeTensorMode():
        assert layers._fp32_precision(torch.empty(1, device="cuda")) == "tf32"


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
@pytest.mark.parametrize("shape", [(40, 70, 33, 256), (300, 9, 70, 300)], ids=str)
def test_more_steps_than_are_computed_at_once(shape, cell, with_lengths):
    """So many rows that forward projects, and backward hands to the products, several parts."""
    seq_len, batch_size, input_size, hidden_size = shape
    oracle, ours = make_pair(cell, input_size, hidden_size, dtype=torch.float64, bidirectional=True)
    x = torch.randn(seq_len, batch_size, input_size, dtype=torch.float64)
    states = make_states(ours, batch_size, torch.float64)
    operands = copies([x, *states], torch.float64)
    oracle_operands = copies([x, *states], torch.float64)
    if with_lengths:
        lengths = torch.randint(seq_len + 1, (batch_size,))
        outputs = call(ours, operands[0], operands[1:], lengths=lengths)
        expected = call_by_lengths(
            oracle, oracle_operands[0], oracle_operands[1:], lengths.tolist()
        )
    else:
        outputs = call(ours, operands[0], operands[1:])
        expected = call(oracle, oracle_operands[0], oracle_operands[1:])
    assert_like_oracle(oracle, ours, outputs, expected, operands, oracle_operands, 1e-12)
