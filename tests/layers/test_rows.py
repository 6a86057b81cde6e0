"""`pack_rows`: where sequences go, and what comes of them, against each of them alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import CELLS, assert_close, make_layer

import birnn_cuda


def draw(lengths, *sizes, dtype=torch.float64):
    return [torch.randn(length, *sizes, dtype=dtype) for length in lengths]


def first_fit(lengths, row_length):
    """As it is said: each into the first row that has room."""
    rows = []
    for length in lengths:
        for row in rows:
            if sum(row) + length <= row_length:
                row.append(length)
                break
        else:
            rows.append([length])
    return rows


@pytest.mark.parametrize("row_length", [9, 10, 13, 40])
def test_first_fit(row_length):
    for _ in range(40):
        lengths = torch.randint(1, 10, (int(torch.randint(1, 30, ())),)).tolist()
        packed = birnn_cuda.pack_rows(draw(lengths), row_length)
        expected = first_fit(lengths, row_length)
        found = [[] for _ in expected]
        for row, start, length in sorted(
            zip(packed.rows, packed.starts, packed.lengths, strict=True)
        ):
            assert start == sum(found[row]), "sequences of a row follow each other"
            found[row].append(length)
        assert found == expected
        seq_len = max(map(sum, expected))
        assert packed.input.shape == packed.resets.shape == (seq_len, len(expected))
        for b, row in enumerate(expected):
            ends = list(itertools.accumulate(row, initial=0))
            begins = [t for t in ends if t < seq_len]
            assert packed.resets[:, b].nonzero().flatten().tolist() == begins


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_on_rows_is_the_layer_on_each(cell, num_directions, batch_first):
    options = {"bidirectional": num_directions == 2, "batch_first": batch_first}
    layer = make_layer(birnn_cuda, cell, 3, 6, num_layers=2, dtype=torch.float64, **options)
    sequences = [s.requires_grad_() for s in draw([5, 1, 7, 2, 2, 6, 1, 3], 3)]
    packed = birnn_cuda.pack_rows(sequences, 10, batch_first=batch_first)
    asks = {"return_cell_states": True} if cell.startswith("lstm") else {}
    output, _, *cells = layer(packed.input, resets=packed.resets, **asks)
    finals = [packed.final_states(states, num_directions) for states in (output, *cells)]
    outputs = packed.unpack(output)
    alone, alone_finals = [], []
    for sequence in sequences:
        one, final = layer(sequence)
        alone.append(one)
        final = final if isinstance(final, tuple) else (final,)
        alone_finals.append([state[-num_directions:] for state in final])
    expected = [torch.stack(states, 1) for states in zip(*alone_finals, strict=True)]
    assert_close([*outputs, *finals], [*alone, *expected], 1e-12)
    assert torch.equal(packed.values(output), torch.cat(outputs))
    leaves = [*sequences, *layer.parameters()]
    gradients = [
        torch.autograd.grad(sum(x.pow(3).sum() for x in (*of_layer, *states)), leaves)
        for of_layer, states in ((outputs, finals), (alone, expected))
    ]
    assert_close(*gradients, 1e-12)


def test_labels_and_numbers_of_words():
    texts = [torch.arange(1, n + 1) for n in (3, 5, 2)]
    rows = birnn_cuda.pack_rows(texts, 5)
    assert rows.input.dtype == torch.int64 and rows.input.t().tolist() == [
        [1, 2, 3, 1, 2],
        [1, 2, 3, 4, 5],
    ]
    assert rows.resets.t().tolist() == [
        [True, False, False, True, False],
        [True, False, False, False, False],
    ]
    wider = birnn_cuda.pack_rows(texts, 6)
    labels = wider.pack([10 * text for text in texts], padding_value=-100)
    assert labels.t().tolist() == [[10, 20, 30, 10, 20], [10, 20, 30, 40, 50]]
    labels = birnn_cuda.pack_rows(texts[:2], 5).pack(texts[:2], padding_value=-100)
    assert labels[:, 0].tolist() == [1, 2, 3, -100, -100]
    assert [text.tolist() for text in rows.unpack(rows.input)] == [t.tolist() for t in texts]


def test_errors():
    good = draw([3, 2], 4)
    cases = (
        (TypeError, "got a tensor: its unbind", (good[0], 8)),
        (ValueError, "at least one tensor, got none", ([], 8)),
        (TypeError, r"sequences\[1\] must be a tensor, got list", ([good[0], [1.0]], 8)),
        (
            ValueError,
            r"sequences\[1\] must have at least one step, got the sizes \(0, 4\)",
            ([good[0], good[1][:0]], 8),
        ),
        (
            ValueError,
            r"the dtype torch.float64 of sequences\[0\], got torch.float32",
            ([good[0], good[1].float()], 8),
        ),
        (
            ValueError,
            r"sequences\[1\] must have the device cpu of sequences\[0\], got meta",
            ([good[0], good[1].to("meta")], 8),
        ),
        (
            ValueError,
            r"the sizes of a step \(4,\) of sequences\[0\], got \(3,\)",
            ([good[0], good[1][:, :3]], 8),
        ),
        (ValueError, r"sequences\[0\] has 3 steps.*a row of 2: give row_length=3", (good, 2)),
        (TypeError, "row_length must be an int, got float", (good, 2.5)),
        (TypeError, "row_length must be an int, got bool", (good, True)),
    )
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            birnn_cuda.pack_rows(*arguments)
    rows = birnn_cuda.pack_rows(good, 8)
    cases = (
        (r"sequences must be 2, as were packed, got 1", lambda: rows.pack(good[:1])),
        (r"sequences\[0\] must have 3 steps, as was packed, got 2", lambda: rows.pack(good[::-1])),
        (
            r"the sizes \(5, 1\) of the rows, got \(5, 2\)",
            lambda: rows.unpack(torch.ones(5, 2)),
        ),
        ("num_directions must be 1 or 2, got 3", lambda: rows.final_states(rows.input, 3)),
        (
            r"a multiple of 2, got \(5, 1, 3\)",
            lambda: rows.final_states(rows.input[..., :3], 2),
        ),
    )
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_many_sequences_go_into_many_rows():
    """Each sequence finds its row in the logarithm of their number: a quadratic search of these
    would take minutes, and the test would be noticed."""
    lengths = torch.randint(1, 60, (100_000,)).tolist()
    packed = birnn_cuda.pack_rows([torch.zeros(n) for n in lengths], 64)
    assert sum(lengths) / packed.resets.numel() > 0.9
