"""On the CPU: a step at a time, or shared out over cores, a layer's bits are those of the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import CELLS, call, make_layer, make_states

import birnn_cuda

# Features and units: below, at and above a vector, a panel, a line of the cache; rows of weights
# that are a large power of two of bytes apart.
SIZES = ((1, 3), (3, 7), (17, 16), (33, 37), (40, 64), (512, 48))


@pytest.fixture
def threads():
    """Sets the number of threads, and back at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_equal(actual, expected, what):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e), what


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_whole(cell, dtype):
    """Few rows read the weights where they lie, many read them packed."""
    for input_size, hidden_size in SIZES:
        layer = make_layer(birnn_cuda, cell, input_size, hidden_size, dtype=dtype)
        for batch_size in (1, 2, 3, 4, 5, 9):
            input = torch.randn(12, batch_size, input_size, dtype=dtype)
            states = make_states(layer, batch_size, dtype)
            with torch.no_grad():
                whole = call(layer, input, states)
                for seq_len in (1, 2, 4):
                    outputs, now = [], states
                    for chunk in input.split(seq_len):
                        output, *now = call(layer, chunk, now)
                        outputs.append(output)
                    what = f"{input_size=} {hidden_size=} {batch_size=} {seq_len=}"
                    assert_equal([torch.cat(outputs), *now], whole, what)


def large_layer(cell, **options):
    """One whose weights are many enough to be shared out, and not a multiple of any vector."""
    hidden_size = {"tanh": 741, "relu": 741, "gru": 429, "lstm": 370, "lstm_proj": 370}[cell]
    return make_layer(birnn_cuda, cell, 21, hidden_size, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_nothing(cell, bidirectional, batch_size, threads):
    """Forward and backward, with and without lengths, whatever is shared: sequences or units."""
    layer = large_layer(cell, bidirectional=bidirectional)
    input = torch.randn(5, batch_size, 21, requires_grad=True)
    states = [s.requires_grad_() for s in make_states(layer, batch_size, torch.float32)]
    for lengths in (None, torch.randint(0, 6, (batch_size,))):
        expected = cotangents = None
        for num_threads in (1, 2, 3, 4, 7):
            threads(num_threads)
            options = {} if lengths is None else {"lengths": lengths}
            results = call(layer, input, states, **options)
            cotangents = cotangents or [torch.randn_like(r) for r in results]
            d_states = torch.autograd.grad(results, [input, *states], cotangents)
            actual = [*results, *d_states]
            if expected is None:
                expected = actual
                continue
            what = f"{num_threads=} {lengths=}"
            assert_equal(actual[: len(results)], expected[: len(results)], what)
            for a, e in zip(d_states[1:], expected[len(results) + 1 :], strict=True):
                assert torch.equal(a, e), what
            torch.testing.assert_close(d_states[0], expected[len(results)])  # the BLAS's sums


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_step_is_shared_out(cell, threads):
    """One step of one sequence, in place: the bits of one thread."""
    layer = large_layer(cell)
    input, states = torch.randn(1, 1, 21), make_states(layer, 1, torch.float32)
    with torch.no_grad():
        threads(1)
        expected = call(layer, input, states)
        for num_threads in (2, 3, 8):
            threads(num_threads)
            assert_equal(call(layer, input, states), expected, f"{num_threads=}")


def test_called_by_several_threads(threads):
    """Each call has cores that meet among themselves."""
    threads(2)
    layer = large_layer("lstm")
    input = torch.randn(6, 1, 21)
    with torch.no_grad():
        expected = layer(input)[0]

        def run(_):
            with torch.no_grad():
                return all(torch.equal(layer(input)[0], expected) for _ in range(20))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(8)))


FEWER_THREADS = """
import torch, birnn_cuda
layer, input = birnn_cuda.LSTM(21, 370), torch.randn(6, 1, 21, requires_grad=True)
torch.set_num_threads(1)
output = layer(input)[0]
expected = [output, *torch.autograd.grad(output.sum(), input)]
torch.set_num_threads(4)
output = layer(input)[0]
actual = [output, *torch.autograd.grad(output.sum(), input)]
assert torch.equal(actual[0], expected[0])
torch.testing.assert_close(actual[1], expected[1])
"""


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param({"OMP_THREAD_LIMIT": "1"}, marks=pytest.mark.long),
        {"OMP_THREAD_LIMIT": "3"},
        pytest.param({"OMP_DYNAMIC": "true"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_fewer_threads_than_asked_for(limit):
    """A thread that stands for several does not wait for those that never come."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FEWER_THREADS],
        check=True,
        timeout=300,
        env={**os.environ, **limit},
    )


def test_states_are_not_changed():
    """A carried state is read where it lies."""
    layer = make_layer(birnn_cuda, "lstm", 3, 5)
    states = make_states(layer, 2, torch.float32)
    copies = [state.clone() for state in states]
    with torch.no_grad():
        for seq_len in (1, 20):
            results = call(layer, torch.randn(seq_len, 2, 3), states)
            assert_equal(states, copies, f"{seq_len=}")
            pointers = {r.untyped_storage().data_ptr() for r in results}
            assert pointers.isdisjoint(s.untyped_storage().data_ptr() for s in states)
