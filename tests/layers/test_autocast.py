"""Autocast, and torch's switches of precision."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_layer,
    make_states,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import birnn_cuda
from birnn_cuda import recurrent

SIXTEEN_BIT = (torch.float16, torch.bfloat16)


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
    assert recurrent.fp32_precision(on_cuda) == expected
    assert recurrent.fp32_precision(on_cpu) == "ieee"


def test_precision_default_is_tf32():
    with FakeTensorMode():
        assert recurrent.fp32_precision(torch.empty(1, device="cuda")) == "tf32"
