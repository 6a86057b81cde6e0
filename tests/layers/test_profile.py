"""What torch.profiler shows of a call: cell, pass, sizes, dtype and kernel."""

from __future__ import annotations

import pytest
import torch
from conftest import CELLS, make_layer
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda
from birnn_cuda import ops

INFO = ops.extension.build_info()
HAS_BFLOAT16 = INFO["cpu_bfloat16"] in ("amx", "avx512_bf16")  # elsewhere it is widened
WAYS = ("forward", "backward")


def profiled_names(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return [event.name for event in profile.events() if event.name.startswith("birnn_cuda ")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_backward(cell, dtype):
    """Of three sequences of 16 bits, which are widened where nothing multiplies them."""
    layer = make_layer(birnn_cuda, cell, 3, 6, bidirectional=True, dtype=getattr(torch, dtype))
    input = torch.randn(5, 3, 3, dtype=getattr(torch, dtype))
    names = profiled_names(lambda: layer(input)[0].sum().backward())
    sizes = f"T=5 B=3 I=3 H=6{' P=3' if cell == 'lstm_proj' else ''} D=2"
    computed = dtype if dtype == "bfloat16" and HAS_BFLOAT16 else "float32"
    called = [f"birnn_cuda {cell.partition('_')[0]} {way} {sizes}" for way in WAYS]
    assert names == [f"{call} {dtype} {INFO[f'cpu_{computed}']}" for call in called]


def test_eight_bits():
    layer = birnn_cuda.quantize(birnn_cuda.LSTM(3, 6).eval())
    names = profiled_names(lambda: layer(torch.randn(5, 2, 3)))
    assert names == [f"birnn_cuda lstm forward T=5 B=2 I=3 H=6 D=1 int8 {INFO['cpu_int8']}"]


def test_each_layer_has_a_call():
    layer = birnn_cuda.GRU(3, 6, num_layers=2)
    packed = pack_padded_sequence(torch.randn(5, 3, 3), [5, 2, 1])
    with torch.no_grad():
        names = profiled_names(lambda: layer(packed))
    sizes = [name.partition(" forward ")[2].rpartition(" float32 ")[0] for name in names]
    assert sizes == ["T=5 B=3 N=8 I=3 H=6 D=1", "T=5 B=3 N=8 I=6 H=6 D=1"]
