"""Long runs, threads, forks and interruptions: what a process may do with the layers in it.

What could hang or end the process runs in one of its own, with a time limit.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from conftest import CELLS, assert_close, make_layer

import birnn_cuda

ROOT = Path(__file__).parents[2]


def run_program(program: str, *arguments: str, seconds: float = 120, **environment: str) -> str:
    """What a Python program prints; it fails if it needs more than `seconds`, as one that hangs."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# ---- memory

# Every byte in use is counted: Python's own objects with all others (PYTHONMALLOC=malloc), and none
# that malloc keeps ready in its threads' caches after it was freed (tcache_count=0).
EXACT_HEAP = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
SOAK = """
    import ctypes, gc, sys
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence
    import birnn_cuda

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost")]

    mallinfo2, malloc = ctypes.CDLL(None).mallinfo2, ctypes.CDLL(None).malloc
    mallinfo2.restype = Mallinfo2

    # Python's cache of looked up attributes holds up to 4096 names; torch looks up those of an
    # autograd Function by strings that it makes anew for every call, which fill the cache slowly.
    forget_lookups = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache

    def bytes_in_use():
        gc.collect()
        forget_lookups()
        info = mallinfo2()
        return info.uordblks + info.hblkhd

    torch.set_num_threads(1)
    layers = [
        birnn_cuda.LSTM(3, 4, bidirectional=True),
        birnn_cuda.GRU(3, 4, bidirectional=True, num_layers=2),
        birnn_cuda.RNN(3, 4, bidirectional=True, batch_first=True),
    ]

    def steps(count):
        for step in range(count):
            layer = layers[step % 3]
            input = torch.randn(2 + step % 5, 2, 3)
            if layer.batch_first:
                input = input.transpose(0, 1)
            if step % 4 == 0:
                output, _ = layer(pack_padded_sequence(input, [2, 1], layer.batch_first))
                output.data.sum().backward()
            elif step % 4 == 1:
                layer(input, lengths=torch.tensor([1, 2]))[0].sum().backward()
            elif step % 4 == 2:
                with torch.inference_mode():
                    layer(input)
            else:
                layer(input)[0].sum().backward()
            layer.zero_grad()
            if step % 64 == 0 and sys.argv[2] == "leak":
                malloc(1)

    steps(600)
    for part in range(int(sys.argv[1])):
        before = bytes_in_use()
        steps(1000)
        print(bytes_in_use() - before)
"""


def growth(thousands: int, option: str = "") -> float:
    """By how many bytes the heap of a process grows in a thousand steps: the median slope between
    any two of the levels (Theil and Sen), since a leak is there all the time, and what comes and
    goes, or is made once and kept, is not."""
    printed = run_program(SOAK, str(thousands), option, **EXACT_HEAP)
    return slope(list(map(int, printed.split())))


def slope(grown: list[int]) -> float:
    levels = list(itertools.accumulate(grown, initial=0))
    return statistics.median(
        (levels[j] - levels[i]) / (j - i) for i, j in itertools.combinations(range(len(levels)), 2)
    )


# In bytes a thousand steps. Where nothing leaks the slope was from -6 to 4 in five runs of ten
# thousand steps, and the blocks in use, counted one by one, were as many after each thousand as
# before it: a block may be 16 bytes longer than what is in it, as malloc finds the room.
LEAST_LEAK = 250

counts_the_heap = pytest.mark.skipif(
    sys.platform != "linux", reason="counts the heap by glibc's mallinfo2"
)


@pytest.mark.long
@counts_the_heap
def test_no_growth_of_memory_over_ten_thousand_steps():
    """The bound is a quarter of a byte a step: one lost block, 32 bytes at least, in 128 steps."""
    assert growth(10) < LEAST_LEAK


@pytest.mark.long
@counts_the_heap
def test_a_leak_would_be_seen():
    """One byte, a block of 32, in 64 steps: half a byte a step."""
    assert growth(3, "leak") > LEAST_LEAK


# ---- threads


@pytest.mark.parametrize("cell", CELLS)
def test_eight_threads_use_one_module(cell):
    """Forward and backward at once, each thread with a batch of its own, as if it were alone."""
    layer = make_layer(
        birnn_cuda, cell, 12, 20, num_layers=2, bidirectional=True, dtype=torch.float64
    )
    inputs = [torch.randn(5 + i, 1 + i, 12, dtype=torch.float64).requires_grad_() for i in range(8)]
    lengths = [torch.arange(1 + i) % (5 + i) for i in range(8)]

    def evaluate(index):
        output = layer(inputs[index], lengths=lengths[index])[0]
        wanted = [inputs[index], *layer.parameters()]
        return [output.detach(), *torch.autograd.grad(output.square().sum(), wanted)]

    expected = [evaluate(index) for index in range(8)]
    results = [[] for _ in range(8)]
    errors = []
    start = threading.Barrier(8)

    def work(index):
        try:
            torch.set_num_threads(1 + index % 2)  # of this thread's parallel regions
            start.wait()
            for _ in range(5):
                results[index].append(evaluate(index))
        except Exception as error:
            errors.append(error)

    run_threads(work)
    assert errors == []
    for runs, alone in zip(results, expected, strict=True):
        assert len(runs) == 5
        for output, *grads in runs:
            assert torch.equal(output, alone[0])
            # Large products are a BLAS's, which divides long sums by threads.
            assert_close(grads, alone[1:], 1e-12)


def test_eight_threads_add_to_the_same_gradients():
    layer = birnn_cuda.LSTM(6, 10, bidirectional=True, dtype=torch.float64)
    inputs = [torch.randn(7, 3, 6, dtype=torch.float64) for _ in range(8)]

    def work(index):
        layer(inputs[index])[0].square().sum().backward()

    for index in range(8):
        work(index)
    expected = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    run_threads(work)
    assert_close([weight.grad for weight in layer.parameters()], expected, 1e-12)


def run_threads(work):
    """`work(0)` to `work(7)`, each in a thread of its own."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(1)


# ---- fork

FORK = """
    import os, sys, threading
    import torch
    import birnn_cuda

    torch.set_num_threads(3)
    cells = (birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM)
    layers = [cell(24, 32, bidirectional=True, dtype=torch.float64) for cell in cells]
    input = torch.randn(20, 16, 24, dtype=torch.float64)

    def evaluate():
        results = []
        for layer in layers:
            output = layer(input)[0]
            wanted = list(layer.parameters())
            results += [output, *torch.autograd.grad(output.square().sum(), wanted)]
        return results

    expected = evaluate()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            torch.testing.assert_close(evaluate(), expected, rtol=1e-9, atol=1e-9)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
    timer = threading.Timer(60, os.kill, (child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    torch.testing.assert_close(evaluate(), expected, rtol=1e-9, atol=1e-9)
    print(os.waitstatus_to_exitcode(status))
"""

DATA_LOADER = """
    import torch
    from torch.utils.data import DataLoader, Dataset
    import birnn_cuda

    torch.set_num_threads(3)
    layer = birnn_cuda.LSTM(24, 32, bidirectional=True)
    input = torch.randn(8, 20, 16, 24)
    expected = torch.stack([layer(x)[0].detach() for x in input])

    class Features(Dataset):
        def __len__(self):
            return len(input)

        def __getitem__(self, index):
            with torch.no_grad():
                return layer(input[index])[0]

    loader = DataLoader(Features(), num_workers=2, timeout=60, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)
    print("equal")
"""


def test_fork_after_use():
    """A child has none of its parent's OpenMP threads: told so, it computes the same.

    Not told, it waits for them for ever, and so does torch.nn: docs/troubleshooting.md.
    """
    assert run_program(FORK) == "0"


def test_workers_of_a_data_loader_use_the_layer():
    """They are forks too; torch itself tells them to use one thread."""
    assert run_program(DATA_LOADER) == "equal"


# ---- Ctrl-C

INTERRUPT = """
    import os, signal, sys, threading, time
    import torch
    import birnn_cuda

    # Where the tests run in the background, their programs begin with this signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    layer = birnn_cuda.LSTM(64, 128, bidirectional=True)
    long, short = torch.randn(500, 32, 64), torch.randn(5, 2, 64)
    expected = layer(short)[0]
    output = layer(long)[0] if sys.argv[1] == "backward" else None
    pressed, returned = [], []

    def press():
        pressed.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    timer = threading.Timer(0.05, press)
    try:
        timer.start()
        if output is None:
            layer(long)
        else:
            output.sum().backward()
        returned.append(time.monotonic())
        time.sleep(10)
    except KeyboardInterrupt:
        print("interrupted", len(pressed), len(returned))
    else:
        print("not interrupted")
    assert torch.equal(layer(short)[0], expected)
    layer(short)[0].sum().backward()
"""


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_interruption(phase):
    """Ctrl-C during a long call arrives when the call returns, and the process goes on."""
    assert run_program(INTERRUPT, phase) == "interrupted 1 0"
