"""One property over all that a layer can be asked: its results and gradients are the fp64 oracle's.

Hypothesis draws a `Case` (shapes, dtype, strides, lengths, options) and shrinks one that fails; the
numbers themselves come from the case's seed. ``make fuzz MINUTES=10`` goes on as long as it is
told; test_properties.py runs 200 cases.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from dataclasses import replace
from typing import Any

import hypothesis
import rounding
import rounding_model
import torch
from case_options import Drawn, call_oracle, draw_as_layer, resets_of
from conftest import (
    CELLS,
    TOLERANCE,
    NoOperandsError,
    call,
    call_by_lengths,
    draw_operands,
    gradients,
    leave_the_kink,
    make_layer,
    make_pair,
    make_states,
    strided,
)
from property_cases import Case, cases
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
    pad_sequence,
)

import birnn_cuda


def check(case: Case) -> None:
    """Values, and gradients of what asks for them, against torch's own layer in fp64."""
    if case.sorted_lengths and case.form == "packed":
        case = replace(case, lengths=tuple(sorted(case.lengths, reverse=True)))
    torch.manual_seed(case.seed)
    oracle, ours = make_layers(case)
    is_16_bit = case.dtype in (torch.float16, torch.bfloat16)
    if case.cell == "relu" and is_16_bit:
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    batch_dim = 0 if case.batch_first else 1
    shape = [case.seq_len, case.seq_len, case.input_size]
    shape[batch_dim] = case.batch_size

    state = torch.get_rng_state()

    def draw() -> list[Tensor]:
        nonlocal state
        operands = [arranged(torch.randn(shape).to(case.dtype), case.input_strides)]
        if case.with_states:
            states = make_states(ours, case.batch_size, case.dtype)
            operands += [arranged(x, case.state_strides) for x in states]
        state = torch.get_rng_state()
        return operands

    lengths = torch.tensor(case.lengths, dtype=case.lengths_dtype)
    resets = resets_of(case.options, lengths, case.seq_len)
    given = {"lengths": lengths} if case.has_lengths else {}
    if resets is not None:
        given["resets"] = resets.t() if case.batch_first else resets
    try:
        # Masks are drawn there as they are again for the results: those decide what is near a kink.
        operands = draw_operands(ours, draw, **given)
    except NoOperandsError:
        hypothesis.reject()
    torch.set_rng_state(state)
    by_time = operands[0].transpose(0, 1) if case.batch_first else operands[0]
    drawn = draw_as_layer(
        *(ours, case.options, case.form, by_time, lengths, case.sorted_lengths, resets)
    )
    ours.recompute_activations = case.recompute
    torch.set_num_threads(case.threads)
    try:
        results = evaluate(ours, case, operands, lengths, drawn)
    finally:
        torch.set_num_threads(1)
    if case.threads > 1 and not case.options.layer_norm:  # whose input is projected by torch
        torch.set_rng_state(state)
        alone, _ = evaluate(ours, case, operands, lengths, drawn)
        same = all(torch.equal(a, b) for a, b in zip(results[0], alone, strict=True))
        assert same, "outputs depend on the number of threads"
    expected = evaluate(oracle, case, [x.double() for x in operands], None, drawn)
    errors: list[Tensor] | list[None] = [None, None]
    if is_16_bit:
        errors = rounding_errors(oracle, case, operands, results[0], drawn)
    tolerance = TOLERANCE.get(case.dtype, TOLERANCE[torch.float32])
    if case.options.regularises:
        # 1 / 0.75 is not the same number in both; a norm magnifies the rounding of its numbers.
        tolerance *= 30 if case.options.layer_norm else 2
    for what, actual, exact, of_draws in zip(
        ("outputs", "gradients"), results, expected, errors, strict=True
    ):
        assert [x.shape for x in actual] == [x.shape for x in exact]
        assert all(x.dtype == case.dtype for x in actual)
        # All as one vector: a tensor of one element may be a difference of larger numbers.
        rounding.check(as_vector(actual), as_vector(exact), tolerance, what=what, errors=of_draws)


def make_layers(case: Case) -> tuple[Any, Any]:
    """The oracle, torch's own layer in fp64 or where it lacks the options a copy, and ours."""
    of_both = {
        "num_layers": case.num_layers,
        "bidirectional": case.bidirectional,
        "bias": case.bias,
        "batch_first": case.batch_first,
        "dtype": case.dtype,
    }
    sizes = case.cell, case.input_size, case.hidden_size
    if not case.options.regularises:
        return make_pair(*sizes, **of_both)
    ours = make_layer(birnn_cuda, *sizes, **of_both, **case.options.of_layer())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.startswith("norm"):  # they begin as ones and zeros
                parameter += 0.3 * torch.randn_like(parameter)
    ours.train(case.options.training)
    return copy.deepcopy(ours).double(), ours


def rounding_errors(
    layer: nn.RNNBase, case: Case, operands: list[Tensor], outputs: list[Tensor], drawn: Drawn
) -> list[Tensor]:
    """What rounding to the case's dtype adds to outputs and to gradients, as vectors [draws, n]: of
    the same numbers as theirs, those of packed sequences in another order. outputs: of that shape.
    """
    batch_dim = 0 if case.batch_first else 1
    cotangents = [torch.zeros_like(o) for o in outputs]
    used = [index for index, _ in enumerate(outputs) if case.used_outputs[index]]
    for index, cotangent in zip(used, cotangents_of(case, [outputs[i] for i in used]), strict=True):
        cotangents[index] = cotangent
    if case.form == "packed":
        packed = pack_padded_sequence(
            operands[0], list(case.lengths), case.batch_first, enforce_sorted=case.sorted_lengths
        )
        cotangents[0], _ = pad_packed_sequence(
            packed._replace(data=cotangents[0]), case.batch_first, total_length=case.seq_len
        )
    if case.is_unbatched:
        cotangents = [c.unsqueeze(batch_dim if i == 0 else 1) for i, c in enumerate(cotangents)]
    lengths = torch.tensor(case.lengths) if case.has_lengths else None
    of_format, exact = (
        rounding_model.drawn(
            *(layer, format, operands, cotangents, lengths, False, drawn.resets),
            drawn.regularisers or None,
        )
        for format in (rounding.OF_DTYPE[case.dtype], rounding.Format(0.0, 0.0))
    )
    errors = [(drawn - e).flatten(1) for drawn, e in zip(of_format, exact, strict=True)]
    if case.input_strides == "expanded":
        # Sequences that are alike, or steps, are rounded alike: their errors add up, where those
        # of the draws in part cancel.
        alike = case.seq_len if case.batch_first else case.batch_size
        errors = [e * alike**0.5 for e in errors]
    errors_of_outputs, errors_of_gradients = errors[: len(outputs)], errors[len(outputs) :]
    asked_for = zip(errors_of_gradients, leaves_of(layer, case, operands), strict=True)
    errors_of_gradients = [e for e, leaf in asked_for if leaf.requires_grad]
    none = torch.zeros(errors[0].size(0), 0)
    return [torch.cat([none, *e], 1) for e in (errors_of_outputs, errors_of_gradients)]


def leaves_of(layer: nn.Module, case: Case, operands: list[Tensor]) -> list[Tensor]:
    """Operands and weights, of which those require gradients that are asked for."""
    leaves = []
    for operand, needs_grad in zip(operands, case.grad_operands, strict=False):
        leaves.append(operand.detach().requires_grad_(needs_grad))
    weights = list(layer.parameters())
    for index, weight in enumerate(weights):
        weight.requires_grad_(case.grad_weights[index % len(case.grad_weights)])
    return [*leaves, *weights]


def cotangents_of(case: Case, outputs: list[Tensor]) -> list[Tensor]:
    """The same for every layer."""
    generator = torch.Generator().manual_seed(case.seed)
    cotangents = [torch.randn(o.shape, generator=generator).to(case.dtype) for o in outputs]
    return [arranged(c, case.cotangent_strides) if c.dim() == 3 else c for c in cotangents]


def arranged(tensor: Tensor, how: str) -> Tensor:
    return tensor if how == "contiguous" else strided(tensor, how)


def as_vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0), *(x.detach().double().flatten() for x in tensors)])


def evaluate(
    layer: nn.Module, case: Case, operands: list[Tensor], lengths: Tensor | None, drawn: Drawn
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients. With `lengths`, of our layer, in the form that the case asks for;
    without, of the oracle: torch's layer gets sequences packed that are not all of one length.
    """
    is_ours = lengths is not None
    batch_dim = 0 if case.batch_first else 1
    leaves = leaves_of(layer, case, operands)
    input, states = leaves[0], leaves[1 : len(operands)]
    wanted = [x for x in leaves if x.requires_grad]

    def pack(padded: Tensor) -> PackedSequence:
        return pack_padded_sequence(
            padded, list(case.lengths), case.batch_first, enforce_sorted=case.sorted_lengths
        )

    if not is_ours and not (case.options.is_torchs and case.cell in CELLS):
        ends = case.lengths if case.has_lengths else None
        outputs = call_oracle(layer, case.options, input, states, ends, drawn)
        if case.form == "packed":
            outputs[0] = pack(outputs[0]).data
    elif case.form == "packed":
        outputs = call(layer, pack(input), states)
    elif is_ours and case.form == "nested":
        sequences = zip(input.unbind(batch_dim), case.lengths, strict=True)
        nested = torch.nested.as_nested_tensor(
            [sequence[:length] for sequence, length in sequences], layout=torch.jagged
        )
        outputs = call(layer, nested, states)
        padded = pad_sequence(outputs[0].unbind(), case.batch_first)
        missing = case.seq_len - padded.size(1 - batch_dim)
        padding = (0, 0, 0, missing) if case.batch_first else (0, 0, 0, 0, 0, missing)
        outputs[0] = nn.functional.pad(padded, padding)
    elif is_ours:
        given = {}
        if case.has_lengths:
            inside = torch.arange(case.seq_len).unsqueeze(1) < lengths.unsqueeze(0)  # [T, B]
            inside = inside.t() if case.batch_first else inside
            # Padding must not be read.
            input = torch.where(inside.unsqueeze(2), input, float("nan"))
            given["lengths"] = lengths.squeeze(0) if case.is_unbatched else lengths
        if drawn.resets is not None:
            resets = drawn.resets.t() if case.batch_first else drawn.resets
            given["resets"] = resets.squeeze(batch_dim) if case.is_unbatched else resets
        if case.is_unbatched:
            input, states = input.squeeze(batch_dim), [s.squeeze(1) for s in states]
        outputs = call(layer, input, states, **given)
    elif case.has_lengths:
        outputs = call_by_lengths(layer, input, states, case.lengths)
    else:
        outputs = call(layer, input, states)
    if case.is_unbatched and not is_ours:
        outputs = [o.squeeze(batch_dim if i == 0 else 1) for i, o in enumerate(outputs)]
    if not wanted:
        return outputs, []
    used = [o for o, is_used in zip(outputs, case.used_outputs, strict=False) if is_used]
    pairs = zip(used, cotangents_of(case, used), strict=True)
    # Of the oracle's some may depend on nothing wanted: a state that a reset keeps out.
    pairs = [(o, c) for o, c in pairs if o.requires_grad]
    if not pairs:
        return outputs, [torch.zeros_like(x) for x in wanted]
    # What lies past a sequence's end is a constant, of torch's packed layer as well; a weight of a
    # layer above the last used state has no gradient.
    grads = gradients(*zip(*pairs, strict=True), wanted, allow_unused=True, materialize_grads=True)
    return outputs, grads


def explore(examples: int, seed: int) -> None:
    """Check `examples` cases; raises with the smallest that fails."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.seed(seed)(hypothesis.given(cases())(check)))()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="of the first 100 cases (default: random)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    total, chunk = 0, 100
    while time.monotonic() < end:
        print(f"cases {total + 1} to {total + chunk}: --seed {seed}", flush=True)
        explore(chunk, seed)
        total += chunk
        seed = (seed + 1) % 2**31
    print(f"{total} cases, no difference from the oracle")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
