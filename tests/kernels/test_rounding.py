"""The limits that tests in 16 bits and tf32 compare with: rounding.py itself."""

from __future__ import annotations

import dataclasses

import pytest
import rounding
import rounding_model
import torch
from conftest import assert_close, call, copies, gradients, make_pair, make_states
from problem import Problem, draw_lengths, drawn, exact
from test_stepwise import CELLS


@pytest.mark.parametrize("pattern", ["none", "mixed"])
@pytest.mark.parametrize("cell", CELLS)
def test_without_errors_the_model_is_the_reference(cell: str, pattern: str) -> None:
    for T, states in ((1, False), (5, True)):
        lengths = draw_lengths(pattern, T, 6)
        problem = Problem(
            cell, torch.float64, (T, 6, 5), lengths, states=states, cell_states=states
        )
        expected = problem.results(exact)
        none = rounding.Format(0.0, 0.0)
        model = drawn(problem, none)
        for name, wanted in expected.items():
            wanted = torch.stack(wanted.chunk(2, 2)) if name == "output" else wanted
            drawn_once = model[name][:, 0]
            assert_close([drawn_once], [wanted], 1e-12, name)


@pytest.mark.parametrize("cell", CELLS)
def test_without_errors_the_model_of_a_module_is_the_module(cell: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    for layer_options in ({}, {"batch_first": True, "bias": False}):
        oracle, _ = make_pair(cell, 3, 4, **options, **layer_options)
        operands = [torch.randn(5, 6, 3).double(), *make_states(oracle, 6, torch.float64)]
        if oracle.batch_first:
            operands[0] = operands[0].transpose(0, 1).contiguous()
        leaves = copies(operands, torch.float64)
        outputs = call(oracle, leaves[0], leaves[1:])
        cotangents = [torch.randn_like(o) for o in outputs]
        grads = gradients(outputs, cotangents, [*leaves, *oracle.parameters()])
        drawn = rounding_model.drawn(oracle, rounding.Format(0.0, 0.0), operands, cotangents)
        assert_close([d[0] for d in drawn], [*outputs, *grads], 1e-12)


def test_the_model_draws_within_the_limit_and_with_two_bits_less_does_not() -> None:
    """Runs of the model itself, as if of a kernel: in its format they pass, and with two bits less
    they fail in every tensor of many numbers."""
    problem = Problem("lstm", torch.bfloat16, (5, 9, 20), None)
    expected = problem.results(exact)
    good, format_ = drawn(problem, rounding.FORMATS["bf16"]), rounding.FORMATS["bf16"]
    coarse = drawn(problem, dataclasses.replace(format_, unit=4 * format_.unit))
    for name in ("dgates", "dhx", "dweight_hh"):
        wanted, draws = expected[name][0], good[name][0]
        for own, worse in zip(draws[:4], coarse[name][0], strict=False):
            rounding.check(own, wanted, 0.0, draws[4:], name)
            with pytest.raises(AssertionError, match=name):
                rounding.check(worse, wanted, 0.0, draws[4:], name)


@pytest.mark.parametrize("freedom", [1, 7, 60])
def test_the_limit_is_exceeded_as_often_as_it_says(freedom: int) -> None:
    """By normal errors of a known number of degrees, at chances that can be counted."""
    generator = torch.Generator().manual_seed(freedom)
    chance, tensors = 0.02, 4000
    errors = torch.randn(tensors, 33, freedom, dtype=torch.float64, generator=generator)
    exceeded = sum(
        one[0].norm().item() > rounding.limit(one[1:], chance) for one in errors.unbind()
    )
    # At most: the limit allows for what the draws know of their covariance, and that is not all.
    assert exceeded <= 1.2 * chance * tensors
    assert exceeded >= 0.5 * chance * tensors or freedom > 1
