"""What the tests on a GPU share: their marks, precisions, and a step of training."""

from __future__ import annotations

import pytest
import rounding
import torch
from conftest import (
    assert_close,
    call,
    gradients,
)
from torch.nn.utils.rnn import pack_padded_sequence

from birnn_cuda import ops

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("ieee"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        ops.build_info()["cuda_version"] is None, reason="the extension is built for the CPU alone"
    ),
]

# dtype, the switch for fp32, the bound of the error or the format that it comes of.
BOUNDED = {
    "fp64": (torch.float64, "ieee", 1e-12),
    "ieee": (torch.float32, "ieee", 1e-5),
}
ROUNDED = {
    "tf32": (torch.float32, "tf32", rounding.FORMATS["tf32 of libraries"]),
    "fp16": (torch.float16, "ieee", rounding.FORMATS["fp16"]),
    "bf16": (torch.bfloat16, "ieee", rounding.FORMATS["bf16"]),
}


def use_precision(monkeypatch, precision):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)


def on_device(tensors):
    return [t.detach().cuda().requires_grad_(t.requires_grad) for t in tensors]


def training_step(layer, input, states=(), **options):
    """Outputs, and the gradients of a loss that weighs every element."""
    outputs = call(layer, input, states, **options)
    loss = sum((o * o).sum() for o in outputs)
    leaves = [t for t in (input, *states) if isinstance(t, torch.Tensor) and t.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [*leaves, *layer.parameters()])]


def assert_equal(actual, expected):
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def check_against(oracle, ours, operands, exact, tolerance, **options):
    outputs = call(ours, operands[0], operands[1:], **options)
    expected = call(oracle, exact[0], exact[1:])
    check_results(oracle, ours, outputs, expected, operands, exact, tolerance)


def check_results(oracle, ours, outputs, expected, operands, exact, tolerance):
    assert all(o.is_cuda and o.dtype == operands[0].dtype for o in outputs)
    cotangents = [torch.randn_like(o) for o in expected]
    actual = gradients(outputs, on_device(cotangents), [*operands, *ours.parameters()])
    assert_close([o.cpu() for o in outputs], expected, tolerance, "output")
    assert_close(
        [g.cpu() for g in actual],
        gradients(expected, cotangents, [*exact, *oracle.parameters()]),
        tolerance,
        "gradient",
    )


def forms_of(input):
    """The input of 4 sequences of 5 steps in each form that a layer takes."""
    lengths = torch.tensor([5, 3, 3, 1])
    return {
        "padded": (input, {}),
        "lengths": (input, {"lengths": lengths.cuda()}),
        "lengths on the CPU": (input, {"lengths": lengths}),
        "packed": (pack_padded_sequence(input, lengths), {}),
    }
