"""merge_mode: what the layers make of their two directions, beside the halves of torch's output."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    assert_like_oracle,
    call,
    call_by_lengths,
    make_layer,
    make_pair,
    make_states,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import birnn_cuda

T, B, INPUT, HIDDEN = 6, 3, 4, 6
LENGTHS = [6, 0, 4]

MERGES = {
    "sum": lambda forward, backward: forward + backward,
    "mul": lambda forward, backward: forward * backward,
    "ave": lambda forward, backward: (forward + backward) / 2,
    None: lambda forward, backward: (forward, backward),
}


def pair(cell, mode, **options):
    """Torch's layer in fp64, which concatenates, and ours with the same weights."""
    oracle, _ = make_pair(cell, INPUT, HIDDEN, bidirectional=True, **options)
    ours = make_layer(
        birnn_cuda,
        cell,
        INPUT,
        HIDDEN,
        bidirectional=True,
        merge_mode=mode,
        dtype=torch.float64,
        **options,
    )
    ours.load_state_dict(oracle.state_dict())  # the same names and sizes
    return oracle, ours


def assert_merged(output, concatenated, mode):
    wanted = MERGES[mode](*concatenated.chunk(2, -1))
    if mode is not None:
        output, wanted = (output,), (wanted,)
    assert isinstance(output, tuple) and len(output) == len(wanted)
    for got, expected in zip(output, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def draw(*sizes):
    return torch.randn(*sizes, dtype=torch.float64)


@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.parametrize("cell", CELLS)
def test_padded_with_lengths_and_states_through_a_stack(cell, mode):
    for batch_first in (False, True):
        oracle, ours = pair(cell, mode, num_layers=2, batch_first=batch_first)
        x = draw(B, T, INPUT) if batch_first else draw(T, B, INPUT)
        states = make_states(ours, B, torch.float64)
        wanted, *wanted_final = call_by_lengths(oracle, x, states, LENGTHS)
        poisoned = x.clone()
        by_row = poisoned if batch_first else poisoned.transpose(0, 1)
        for row, length in enumerate(LENGTHS):
            by_row[row, length:] = float("nan")
        output, *final = call(ours, poisoned, states, lengths=torch.tensor(LENGTHS))
        assert_merged(output, wanted, mode)
        for got, expected in zip(final, wanted_final, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.parametrize("cell", CELLS)
def test_other_forms_of_input(cell, mode):
    oracle, ours = pair(cell, mode)
    x = draw(T, INPUT)
    assert_merged(ours(x)[0], oracle(x)[0], mode)

    packed = pack_padded_sequence(draw(T, B, INPUT), [2, 6, 4], enforce_sorted=False)
    output, wanted = ours(packed)[0], oracle(packed)[0]
    halves = output if mode is None else (output,)
    assert all(isinstance(half, PackedSequence) for half in halves)
    assert all(torch.equal(h.unsorted_indices, wanted.unsorted_indices) for h in halves)
    assert_merged(tuple(h.data for h in halves) if mode is None else output.data, wanted.data, mode)

    sequences = [draw(length, INPUT) for length in (3, 1, 5)]
    output, _ = ours(torch.nested.nested_tensor(sequences, layout=torch.jagged))
    halves = output if mode is None else (output,)
    for index, sequence in enumerate(sequences):
        got = tuple(half.unbind()[index] for half in halves)
        assert_merged(got if mode is None else got[0], oracle(sequence)[0], mode)


@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.parametrize("cell", ["gru", "lstm_proj"])
def test_gradients(cell, mode):
    oracle, ours = pair(cell, mode, num_layers=2)
    x = draw(T, B, INPUT).requires_grad_()
    output, wanted = ours(x)[0], MERGES[mode](*oracle(x)[0].chunk(2, -1))
    output, wanted = (y if mode is None else (y,) for y in (output, wanted))
    assert_like_oracle(oracle, ours, output, wanted, [x], [x], TOLERANCE[torch.float64])


@pytest.mark.parametrize("mode", MERGES)
@pytest.mark.usefixtures("forgets_compiled")
def test_compiled_and_exported(mode):
    _, ours = pair("lstm", mode)
    x = draw(T, B, INPUT)
    lengths = torch.tensor(LENGTHS)
    expected = ours(x, lengths=lengths)[0]
    compiled = torch.compile(ours, fullgraph=True)(x, lengths=lengths)[0]
    exported = torch.export.export(ours, (x,), {"lengths": lengths}).module()
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(exported(x, lengths=lengths)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MERGES)
def test_every_layer_and_cell_states(mode):
    oracle, ours = pair("lstm", mode, num_layers=2)
    x = draw(T, B, INPUT)
    plain = birnn_cuda.replace_rnns(copy.deepcopy(oracle))
    assert plain.merge_mode == "concat"
    options = {"return_cell_states": True, "return_all_layers": True}
    output, _, cells, outputs = ours(x, **options)
    wanted, _, wanted_cells, wanted_outputs = plain(x, **options)
    assert len(outputs) == len(cells) == 2
    assert_merged(output, wanted, mode)
    assert outputs[-1] is output
    assert torch.equal(outputs[0], wanted_outputs[0])  # what the layer above reads
    assert all(map(torch.equal, cells, wanted_cells))
    _, _, alone = ours(x, return_cell_states=True)
    assert torch.equal(alone, wanted_cells[-1])


def test_it_is_kept_by_copies_and_files_and_is_shown():
    for mode in MERGES:
        ours = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True, merge_mode=mode)
        assert f"merge_mode={mode!r}" in repr(ours)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
            assert other.merge_mode == mode
    assert "merge_mode" not in repr(birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True))


def test_int8_layers_merge_too():
    layer = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True).eval()
    merging = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True, merge_mode="ave").eval()
    merging.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, INPUT)
    with torch.no_grad():
        concatenated = birnn_cuda.quantize(layer)(x)[0]
        merged = birnn_cuda.quantize(merging)(x)[0]
    torch.testing.assert_close(merged, sum(concatenated.chunk(2, -1)) / 2)
    with pytest.raises(ValueError, match="merge_mode='ave'"):
        birnn_cuda.to_torch(merging)


@pytest.mark.parametrize("mode", MERGES)
def test_torch_has_no_such_layer(mode):
    model = nn.Sequential(
        birnn_cuda.GRU(INPUT, HIDDEN),
        birnn_cuda.LSTM(HIDDEN, HIDDEN, bidirectional=True, merge_mode=mode),
    )
    with pytest.raises(ValueError, match=rf"1 \(birnn_cuda.LSTM\) has merge_mode={mode!r}"):
        birnn_cuda.to_torch(model)
    assert type(model[0]) is birnn_cuda.GRU  # nothing is changed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bidirectional": True, "merge_mode": "max"}, "'concat', 'sum', .* got 'max'"),
        ({"merge_mode": "sum"}, "merge_mode='sum' .* bidirectional=True"),
        ({"merge_mode": None}, "merge_mode=None .* bidirectional=True"),
    ],
)
def test_errors(options, text):
    for cell in CELLS:
        with pytest.raises(ValueError, match=text):
            make_layer(birnn_cuda, cell, INPUT, HIDDEN, **options)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave"])
def test_the_complete_network(mode):
    for per_step in (True, False):
        network = birnn_cuda.BiRNN(
            INPUT, HIDDEN, 3, cell="lstm", per_step=per_step, dtype=torch.float64, merge_mode=mode
        )
        assert network.output.weight.shape == (3, HIDDEN)
        x, lengths = draw(T, B, INPUT), torch.tensor([6, 2, 4])
        network.hidden.merge_mode = "concat"
        concatenated, (h_n, _) = network.hidden(x, lengths=lengths)
        network.hidden.merge_mode = mode
        halves = concatenated.chunk(2, -1) if per_step else (h_n[0], h_n[1])
        wanted = network.output(MERGES[mode](*halves))
        if per_step:
            inside = torch.arange(T)[:, None] < lengths
            wanted = torch.where(inside[..., None], wanted, 0)
        got = network(x, lengths=lengths)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        for name in ("w4", "w6"):
            with pytest.raises(RuntimeError, match=r"output\.weight"):
                getattr(network, name)
    with pytest.raises(ValueError, match="got None"):
        birnn_cuda.BiRNN(INPUT, HIDDEN, 3, merge_mode=None)
    with pytest.raises(ValueError, match="got 'max'"):
        birnn_cuda.BiRNN(INPUT, HIDDEN, 3, merge_mode="max")
