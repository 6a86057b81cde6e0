"""The large products of backward: by the own kernel, and by the BLAS behind torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Rows of a step, of x, units: below, at and above a tile of C (12 x 32 numbers), a block of B (256
# columns) and the depth of one (256 numbers), whichever of dW_ih, dW_hh and dx has them as such.
PROGRAM = """
import dataclasses, sys
import torch
import birnn_cuda, properties
from property_cases import PLAIN

assert birnn_cuda.ops.build_info()["cpu_products"] == sys.argv[1]
torch.manual_seed(int(sys.argv[2]))
for cell, T, B, I, H in [
    ("lstm", 1, 1, 1, 1), ("gru", 23, 17, 7, 64), ("lstm", 16, 16, 300, 37), ("gru", 9, 3, 289, 16),
    ("tanh", 30, 11, 33, 301), ("lstm", 16, 32, 256, 12),
]:
    lengths = torch.randint(0, T + 1, (B,)).tolist()
    for full in (True, False):
        properties.check(dataclasses.replace(
            PLAIN, cell=cell, seq_len=T, batch_size=B, input_size=I, hidden_size=H,
            lengths=(T,) * B if full else tuple([T, *lengths[1:]]),
            used_outputs=(True, True, cell == "lstm"), seed=int(torch.randint(2**31, ())),
        ))

def gradients(threads):
    torch.set_num_threads(threads)
    for p in layer.parameters():
        p.grad = None
    x.grad = None
    layer(x)[0].backward(dy)
    return [x.grad, *(p.grad.clone() for p in layer.parameters())]

# One direction: each product is shared out, and so are rows of a tile.
layer = birnn_cuda.LSTM(300, 97)
x, dy = torch.randn(40, 30, 300, requires_grad=True), torch.randn(40, 30, 97)
alone = gradients(1)
for threads in (2, 3, 7):
    same = all(torch.equal(a, b) for a, b in zip(alone, gradients(threads)))
    assert same or sys.argv[1] == "blas", f"{threads} threads change the bits"
"""


def run(products: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "BIRNN_CPU_PRODUCTS": products,
            "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent), str(HERE.parent.parent))),
        },
    )


INFO = "import birnn_cuda; print(birnn_cuda.ops.build_info()['cpu_products'])"


@pytest.mark.parametrize("products", ["own", "blas"])
def test_gradients(products, seed):
    if products == "own":
        available = run("own", INFO)
        if available.returncode:  # no kernel for what this processor has
            assert 'BIRNN_CPU_PRODUCTS is "own"; "blas" alone' in available.stderr
            return
    result = run(products, PROGRAM, products, str(seed))
    assert result.returncode == 0, f"{result.stdout[-2000:]}{result.stderr[-3000:]}"


def test_what_cannot_be_had():
    result = run("mkl", INFO)
    assert result.returncode == 1
    assert 'ValueError: BIRNN_CPU_PRODUCTS is "mkl"; "blas" ' in result.stderr
