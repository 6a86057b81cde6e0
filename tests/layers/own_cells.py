"""What is asked of layers that torch.nn does not have: a cell of our own, or a norm within.

The oracle is a stack of layers one sequence and step at a time (step_by_step.py). `make` builds a
layer of a cell, as conftest's make_layer does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import rounding
import torch
from conftest import assert_close, call, copies, make_states
from step_by_step import call_step_by_step
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from birnn_cuda.sequences import padded_to_packed

Make = Callable[..., Any]
LENGTHS = torch.tensor([7, 0, 3, 1, 6])
NONE = (None, None, None)


def expected_of(
    oracle: Any, input: Tensor, states: Any, lengths: Any = None, resets: Any = None
) -> list[Tensor]:
    return call_step_by_step(oracle, input, states, [NONE] * oracle.num_layers, lengths, resets)


def run(layer: Any, input: Tensor, states: Any, **options: Any) -> list[Tensor]:
    """Output, final states, an LSTM's cell states."""
    if layer.mode != "LSTM":
        return call(layer, input, states, **options)
    hx = tuple(states) or None
    output, final, cells = layer(input, hx, return_cell_states=True, **options)
    return [output, *final, cells]


def check_sizes(
    make: Make,
    cell: str,
    sizes: tuple[int, int, int, int],
    tolerance: float,
    num_draws: int = 0,
) -> None:
    """Against the reference, in torch's operators, which a forward-mode level asks for. Beyond the
    tolerance an error may be what the reference makes of operands that are a few units in the last
    place away, by so many draws of those: a gradient through many steps may grow, and with it
    whatever was rounded. (Along one direction: of that a few draws say little.)"""
    T, B, input_size, hidden_size = sizes
    for bidirectional in (True, False):
        layer = make(cell, input_size, hidden_size, torch.float64, bidirectional=bidirectional)
        operands = [torch.randn(T, B, input_size).double(), *make_states(layer, B, torch.float64)]
        outputs, leaves = evaluate(layer, operands)
        cotangents = [torch.randn_like(o) for o in outputs]

        actual = with_gradients(layer, outputs, leaves, cotangents)
        draws = []
        for draw in range(1 + num_draws):
            moved = copy.deepcopy(layer)
            given = copies(operands, torch.float64)
            if draw > 0:
                with torch.no_grad():
                    for x in (*given, *moved.parameters()):
                        x.mul_(1 + 2.0**-50 * torch.randn_like(x))
            with torch.autograd.forward_ad.dual_level():
                draws.append(with_gradients(moved, *evaluate(moved, given), cotangents))
        expected, *others = draws
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            moves = [(other[index] - e).flatten().detach() for other in others]
            errors = torch.stack(moves) if moves else None
            rounding.check(a, e, tolerance, errors=errors, what=f"tensor {index}")


def evaluate(layer: Any, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    leaves = copies(operands, torch.float64)
    return run(layer, leaves[0], leaves[1:]), leaves


def with_gradients(
    layer: Any, outputs: list[Tensor], leaves: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor]:
    wanted = [*leaves, *layer.parameters()]
    return [*outputs, *torch.autograd.grad(outputs, wanted, cotangents)]


def check_packed_and_unbatched(make: Make, cell: str, bias: bool) -> None:
    layer = make(cell, 3, 6, torch.float64, bidirectional=True, bias=bias, batch_first=True)
    input, lengths = torch.randn(4, 5, 3).double(), torch.tensor([4, 3, 3, 2, 1])
    expected = expected_of(layer, input, [], lengths)[: 3 if layer.mode == "LSTM" else 2]
    packed = call(layer, pack_padded_sequence(input, lengths))
    batch_sizes = torch.tensor([5, 4, 3, 1])
    assert_close(packed, [padded_to_packed(expected[0], batch_sizes), *expected[1:]], 1e-12)
    padded = call(layer, input.transpose(0, 1), lengths=lengths)
    assert_close([padded[0].transpose(0, 1), *padded[1:]], expected, 1e-12)
    alone = call(layer, input[:3, 2])
    assert_close(alone, [expected[0][:3, 2], *(x[:, 2] for x in expected[1:])], 1e-12)


def check_autocast(make: Make, cell: str) -> None:
    layer = make(cell, 3, 5, bidirectional=True)
    low, input = copy.deepcopy(layer).bfloat16(), torch.randn(7, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(layer, input)
    expected = call(low, input.bfloat16())
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def function_and_leaves(make: Make, cell: str, hidden_size: int) -> tuple[Any, list[Tensor]]:
    """A layer as a function of its operands and weights, one with a sequence of no steps; and
    these, for difference quotients."""
    layer = make(cell, 1, hidden_size, torch.float64, bidirectional=True)
    names = [name for name, _ in layer.named_parameters()]
    operands = [torch.randn(3, 3, 1).double(), *make_states(layer, 3, torch.float64)]
    count, lengths = len(operands), torch.tensor([3, 0, 2])

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, tensors[count:], strict=True))
        states = tensors[1:count]
        hx = tuple(states) if layer.mode == "LSTM" else states[0]
        output, final = functional_call(layer, weights, (tensors[0], hx), {"lengths": lengths})
        return output, *(final if isinstance(final, tuple) else (final,))

    return function, copies([*operands, *layer.parameters()], torch.float64)


def check_second_derivatives(make: Make, cell: str, tolerance: float) -> None:
    layer = make(cell, 3, 4, torch.float64, bidirectional=True)
    operands = [torch.randn(4, 3, 3).double(), *make_states(layer, 3, torch.float64)]
    lengths, results = torch.tensor([4, 2, 0]), []
    for is_ours in (True, False):
        leaves = copies(operands, torch.float64)
        if is_ours:
            outputs = run(layer, leaves[0], leaves[1:], lengths=lengths)
        else:
            outputs = expected_of(layer, leaves[0], leaves[1:], lengths)
        wanted = [*leaves, *layer.parameters()]
        first = torch.autograd.grad(sum(o.pow(3).sum() for o in outputs), wanted, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    assert_close(*results, tolerance)


def check_vmap(make: Make, cell: str) -> None:
    """With gradients of each sample's weights."""
    layer = make(cell, 3, 4, torch.float64, bidirectional=True)
    weights = {name: w.detach() for name, w in layer.named_parameters()}
    inputs = torch.randn(3, 6, 2, 3, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(layer, weights, (input,))[0].square().sum()

    mapped = vmap(grad(loss), (None, 0))(weights, inputs)
    for index in range(3):
        expected = grad(loss)(weights, inputs[index])
        assert_close([mapped[n][index] for n in weights], list(expected.values()), 1e-11)


def check_compiled(make: Make, cell: str) -> None:
    """The test forgets what was compiled."""
    layer = make(cell, 3, 5, num_layers=2, bidirectional=True, dropout=0.3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input, results = torch.randn(7, 5, 3, requires_grad=True), []
    for function in (layer, compiled):
        torch.manual_seed(7)
        output, _ = function(input, lengths=LENGTHS)
        wanted = [input, *layer.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    assert_close(*results, 1e-6)


def check_export_and_trace(make: Make, cell: str) -> None:
    model = nn.Sequential(make(cell, 3, 5, num_layers=2, bidirectional=True)).eval()
    example, other = torch.randn(7, 5, 3), torch.randn(4, 3, 3)
    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    exported = torch.export.export(model, (example,), dynamic_shapes=(sizes,))
    with torch.no_grad():
        traced = torch.jit.trace(model, (example,), check_trace=False)
        for given in (example, other):
            expected = model(given)[0]
            assert torch.equal(exported.module()(given)[0], expected)
            assert torch.equal(traced(given)[0], expected)


def check_nothing_at_all(make: Make, cell: str, sizes: tuple[int, int]) -> None:
    layer = make(cell, 4, 5, bidirectional=True)
    input = torch.randn(*sizes, 4, requires_grad=True)
    output, h_n, *_ = call(layer, input)
    assert output.shape == (*sizes, 10) and h_n.eq(0).all()
    output.sum().backward()
    assert all(p.grad.eq(0).all() for p in layer.parameters())
