"""The layers on a GPU: what torch knows of the operators, and errors: at the call that causes
them, and the next call works."""

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
from cuda_support import (
    NEEDS_GPU,
    assert_equal,
    training_step,
)
from torch.library import opcheck

import birnn_cuda

pytestmark = NEEDS_GPU


def op_arguments(cell, form, dtype):
    layer = make_layer(birnn_cuda, cell, 5, 6, bidirectional=True, dtype=dtype).cuda()
    weights = [w.detach() for w in layer.parameters()]
    states = [s.cuda() for s in make_states(layer, 3, dtype)]
    input = torch.randn((9, 5) if form == "packed" else (5, 3, 5), device="cuda").to(dtype)
    lengths = torch.tensor([5, 1, 3], device="cuda") if form == "lengths" else None
    batch_sizes = torch.tensor([3, 2, 2, 1, 1]) if form == "packed" else None
    cx = states[1] if len(states) == 2 else None
    name = "lstm" if cell == "lstm_proj" else cell
    return input, states[0], cx, weights, lengths, batch_sizes, name, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_ops_are_as_their_fakes_say(cell, form, dtype):
    checks = ["test_schema", "test_faketensor"]
    arguments = op_arguments(cell, form, dtype)
    for training in (False, True):
        opcheck(torch.ops.birnn_cuda.forward, (*arguments, training, "ieee"), test_utils=checks)
    output, h_n, c_n, reserve = torch.ops.birnn_cuda.forward(*arguments, True, "ieee")
    kept = reserve.clone()
    assert reserve.dtype == dtype
    d_c_n = torch.randn_like(c_n) if arguments[6] == "lstm" else None
    *tensors, name, num_directions = arguments
    needs_grad = [True] * (3 + len(arguments[3]))
    cotangents = (torch.randn_like(output), torch.randn_like(h_n), d_c_n)
    operands = (*cotangents, *tensors, output, reserve, name, num_directions, "ieee", needs_grad)
    opcheck(torch.ops.birnn_cuda.backward, operands, test_utils=checks)
    # Only read. NaN stands for itself in rows past the ends.
    torch.testing.assert_close(reserve, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.seconds(60)  # a cold compiler
def test_compiled():
    ours = birnn_cuda.LSTM(6, 8, bidirectional=True).cuda()
    input = torch.randn(5, 4, 6, device="cuda", requires_grad=True)
    compiled = torch.compile(ours, fullgraph=True)
    assert_close(training_step(compiled, input), training_step(ours, input), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell, dtype):
    ours = make_layer(birnn_cuda, cell, 6, 8, bidirectional=True).cuda()
    low = copy.deepcopy(ours).to(dtype)
    input = torch.randn(5, 3, 6, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        outputs = call(ours, input)
    assert all(o.dtype == dtype for o in outputs)
    assert_equal(outputs, call(low, input.to(dtype)))
    sum(o.float().sum() for o in outputs).backward()
    assert all(w.grad.dtype == torch.float32 for w in ours.parameters())


def wrong_calls():
    ours = birnn_cuda.LSTM(6, 8, bidirectional=True).cuda()
    input = torch.randn(5, 4, 6, device="cuda")
    weights = [w.detach() for w in ours.parameters()]
    states = [s.cuda() for s in make_states(ours, 4, torch.float32)]
    forward, backward = torch.ops.birnn_cuda.forward, torch.ops.birnn_cuda.backward
    output, _, _, reserve = forward(input, *states, weights, None, None, "lstm", 2, True, "ieee")
    rest = (None, None, "lstm", 2, True, "ieee")
    on_cpu = [w.cpu() for w in weights]

    def run_backward(output, reserve):
        operands = (input, *states, weights, None, None, output, reserve)
        return backward(output, None, None, *operands, "lstm", 2, "ieee", [True] * 11)

    return (
        ours,
        input,
        {
            "input on the CPU": (
                lambda: ours(input.cpu()),
                "Input and parameter tensors are not at the same device",
            ),
            "hx on the CPU": (
                lambda: ours(input, tuple(s.cpu() for s in states)),
                "Input and hidden tensors are not at the same device",
            ),
            "weights on the CPU": (
                lambda: forward(input, *states, on_cpu, *rest),
                "expected weight_ih on cuda:0 like the input, got cpu",
            ),
            "states on the CPU": (
                lambda: forward(input, states[0].cpu(), states[1], weights, *rest),
                "expected hx on cuda:0 like the input, got cpu",
            ),
            "dtype": (
                lambda: forward(input, states[0].half(), states[1], weights, *rest),
                "expected hx of dtype Float like the input, got Half",
            ),
            "integers": (
                lambda: forward(input.int(), None, None, weights, *rest),
                "dtype must be float32, float64, float16 or bfloat16, got Int",
            ),
            "no step": (
                lambda: ours(input[:0]),
                "Expected sequence length to be larger than 0 in RNN",
            ),
            "count of lengths": (
                lambda: forward(
                    input,
                    None,
                    None,
                    weights,
                    torch.ones(3, device="cuda", dtype=torch.int64),
                    *rest[1:],
                ),
                r"expected lengths of size \[4\], got \[3\]",
            ),
            "a length on the CPU": (
                lambda: ours(input, lengths=torch.tensor([5, 1, 6, 2])),
                r"lengths\[2\] is 6 but must be between 0 and the 5 steps of the input",
            ),
            "reserve": (
                lambda: run_backward(output, reserve[..., :-1]),
                "expected a reserve of size",
            ),
            "reserve's dtype": (
                lambda: run_backward(output, reserve.half()),
                "expected a reserve of size",
            ),
        },
    )


CASES = (
    "input on the CPU",
    "hx on the CPU",
    "weights on the CPU",
    "states on the CPU",
    "dtype",
    "integers",
    "no step",
    "count of lengths",
    "a length on the CPU",
    "reserve",
    "reserve's dtype",
)


@pytest.mark.parametrize("case", CASES)
def test_errors(case):
    ours, input, cases = wrong_calls()
    expected = call(ours, input)
    function, text = cases[case]
    kind = ValueError if case == "a length on the CPU" else RuntimeError
    with pytest.raises(kind, match=text):
        function()
    assert_equal(call(ours, input), expected)
    torch.cuda.synchronize()


def test_out_of_memory_is_an_error_like_others():
    ours = birnn_cuda.GRU(8, 1024, bidirectional=True).cuda()
    input = torch.randn(5, 4, 8, device="cuda")
    expected = call(ours, input)
    with torch.no_grad(), pytest.raises(torch.cuda.OutOfMemoryError):
        # One row expanded: as it stands it takes no memory, in full two terabytes.
        ours(input[:1, :1].expand(1 << 18, 1 << 18, 8))
    assert_equal(call(ours, input), expected)
