"""One property over all that a layer can be asked: its results and gradients are the fp64 oracle's.

Hypothesis draws a `Case` (shapes, dtype, strides, lengths, options) and shrinks one that fails; the
numbers themselves come from the case's seed. ``make fuzz MINUTES=10`` goes on as long as it is
told; test_properties.py runs 200 cases.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, replace

import hypothesis
import rounding
import rounding_model
import torch
from conftest import (
    CELLS,
    TOLERANCE,
    NoOperandsError,
    call,
    call_by_lengths,
    draw_operands,
    gradients,
    leave_the_kink,
    make_pair,
    make_states,
    strided,
)
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

STRIDES = ("contiguous", "transposed", "sliced", "expanded")
FORMS = ("padded", "lengths", "packed", "nested", "unbatched", "unbatched_length")


@dataclass(frozen=True)
class Case:
    """A layer and a call of it."""

    cell: str
    dtype: torch.dtype
    form: str  # of the input, one of FORMS
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    lengths: tuple[int, ...]  # all seq_len where the form has none
    num_layers: int = 1
    bidirectional: bool = True
    bias: bool = True
    batch_first: bool = False
    lengths_dtype: torch.dtype = torch.int64
    sorted_lengths: bool = False  # packed: enforce_sorted
    with_states: bool = False
    recompute: bool = False
    input_strides: str = "contiguous"
    state_strides: str = "contiguous"
    cotangent_strides: str = "contiguous"
    grad_operands: tuple[bool, ...] = (True, True, True)  # input, hx, cx
    grad_weights: tuple[bool, ...] = (True,)  # in turn
    used_outputs: tuple[bool, ...] = (True, True, True)  # output, h_n, c_n
    threads: int = 1
    seed: int = 0

    @property
    def is_unbatched(self) -> bool:
        return self.form.startswith("unbatched")

    @property
    def has_lengths(self) -> bool:
        return self.form in ("lengths", "packed", "nested", "unbatched_length")


def sizes(largest: int, *special: int) -> st.SearchStrategy[int]:
    """1 to `largest`, and more often those at which kernels change what they do."""
    return st.integers(1, largest) | st.sampled_from(special or (1,))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case that torch.nn can answer as well, and some that it can only sequence by sequence."""
    form = draw(st.sampled_from(FORMS))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    cell = draw(st.sampled_from(CELLS))
    # Of few numbers can it be asked that none lies near relu's kink.
    small = cell == "relu"
    seq_len = draw(sizes(5) if small else sizes(9, 1, 2, 5, 40))
    batch_size = draw(sizes(5) if small else sizes(20, 1, 2, 3, 9, 17, 33))
    hidden_size = draw(sizes(17, 1, 8, 16) if small else sizes(40, 1, 7, 8, 15, 16, 17, 33, 64))
    if form.startswith("unbatched"):
        batch_size = 1
    shortest = 1 if form in ("packed", "unbatched_length") else 0
    lengths = [seq_len] * batch_size
    if form in ("lengths", "packed", "nested", "unbatched_length"):
        one = st.integers(shortest, seq_len)
        lengths = draw(st.lists(one, min_size=batch_size, max_size=batch_size))
        if max(lengths) == 0:
            lengths[0] = seq_len
    is_16_bit = dtype in (torch.float16, torch.bfloat16)
    # What a layer rounds to 16 bits moves the preactivations of the next across relu's kink.
    num_layers = 1 if cell == "relu" and is_16_bit else draw(st.integers(1, 3))
    flags = st.booleans()
    smallest = 2 if cell == "lstm_proj" else 1
    used = draw(st.tuples(flags, flags, flags).filter(any))
    if not cell.startswith("lstm"):
        used = (used[0], used[1] or not used[0], False)
    return Case(
        cell=cell,
        dtype=dtype,
        form=form,
        seq_len=seq_len,
        batch_size=batch_size,
        input_size=draw(sizes(40, 1, 7, 8, 16, 33)),
        hidden_size=max(smallest, hidden_size),
        lengths=tuple(lengths),
        num_layers=num_layers,
        bidirectional=draw(flags),
        bias=draw(flags) or (cell == "relu" and is_16_bit),  # see check
        batch_first=draw(flags),
        lengths_dtype=draw(st.sampled_from([torch.int64, torch.int32])),
        sorted_lengths=draw(flags),
        with_states=draw(flags),
        recompute=draw(flags),
        input_strides=draw(st.sampled_from(STRIDES)),
        state_strides=draw(st.sampled_from(STRIDES)),
        cotangent_strides=draw(st.sampled_from(STRIDES)),
        grad_operands=draw(st.tuples(flags, flags, flags)),
        grad_weights=tuple(draw(st.lists(flags, min_size=1, max_size=5))),
        used_outputs=used,
        threads=draw(st.sampled_from([1, 1, 1, 3])),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


# Both directions of one layer, all strides plain, every gradient asked for: for tests that choose
# cell and sizes themselves.
PLAIN = Case(
    cell="lstm",
    dtype=torch.float32,
    form="lengths",
    seq_len=3,
    batch_size=1,
    input_size=1,
    hidden_size=2,
    lengths=(),
    num_layers=1,
    bidirectional=True,
    bias=True,
    batch_first=False,
    lengths_dtype=torch.int64,
    sorted_lengths=False,
    with_states=True,
    recompute=False,
    input_strides="contiguous",
    state_strides="contiguous",
    cotangent_strides="contiguous",
    grad_operands=(True, True, True),
    grad_weights=(True,),
    used_outputs=(True, True, True),
    threads=1,
    seed=0,
)


def check(case: Case) -> None:
    """Values, and gradients of what asks for them, against torch's own layer in fp64."""
    if case.sorted_lengths and case.form == "packed":
        case = replace(case, lengths=tuple(sorted(case.lengths, reverse=True)))
    torch.manual_seed(case.seed)
    options = {
        "num_layers": case.num_layers,
        "bidirectional": case.bidirectional,
        "bias": case.bias,
        "batch_first": case.batch_first,
        "dtype": case.dtype,
    }
    oracle, ours = make_pair(case.cell, case.input_size, case.hidden_size, **options)
    is_16_bit = case.dtype in (torch.float16, torch.bfloat16)
    if case.cell == "relu" and is_16_bit:
        leave_the_kink(ours)
        oracle.load_state_dict(ours.state_dict())
    batch_dim = 0 if case.batch_first else 1
    shape = [case.seq_len, case.seq_len, case.input_size]
    shape[batch_dim] = case.batch_size

    def draw() -> list[Tensor]:
        operands = [arranged(torch.randn(shape).to(case.dtype), case.input_strides)]
        if case.with_states:
            states = make_states(ours, case.batch_size, case.dtype)
            operands += [arranged(state, case.state_strides) for state in states]
        return operands

    lengths = torch.tensor(case.lengths, dtype=case.lengths_dtype)
    try:
        operands = draw_operands(ours, draw, **({"lengths": lengths} if case.has_lengths else {}))
    except NoOperandsError:
        hypothesis.reject()
    ours.recompute_activations = case.recompute
    torch.set_num_threads(case.threads)
    try:
        results = evaluate(ours, case, operands, lengths)
    finally:
        torch.set_num_threads(1)
    if case.threads > 1:
        alone, _ = evaluate(ours, case, operands, lengths)
        same = all(torch.equal(a, b) for a, b in zip(results[0], alone, strict=True))
        assert same, "outputs depend on the number of threads"
    expected = evaluate(oracle, case, [x.double() for x in operands], None)
    errors: list[Tensor] | list[None] = [None, None]
    if is_16_bit:
        errors = rounding_errors(oracle, case, operands, results[0])
    tolerance = TOLERANCE.get(case.dtype, TOLERANCE[torch.float32])
    for what, actual, exact, of_draws in zip(
        ("outputs", "gradients"), results, expected, errors, strict=True
    ):
        assert [x.shape for x in actual] == [x.shape for x in exact]
        assert all(x.dtype == case.dtype for x in actual)
        # All as one vector: a tensor of one element may be a difference of larger numbers.
        rounding.check(as_vector(actual), as_vector(exact), tolerance, what=what, errors=of_draws)


def rounding_errors(
    layer: nn.RNNBase, case: Case, operands: list[Tensor], outputs: list[Tensor]
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
        rounding_model.drawn(layer, format, operands, cotangents, lengths, stores_gates=False)
        for format in (rounding.OF_DTYPE[case.dtype], rounding.Format(0.0, 0.0))
    )
    errors = [(drawn - e).flatten(1) for drawn, e in zip(of_format, exact, strict=True)]
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
    layer: nn.Module, case: Case, operands: list[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients. With `lengths`, of our layer, in the form that the case asks for;
    without, of torch's layer, which gets the sequences packed if they are not all of one length.
    """
    is_ours = lengths is not None
    batch_dim = 0 if case.batch_first else 1
    leaves = leaves_of(layer, case, operands)
    input, states = leaves[0], leaves[1 : len(operands)]
    wanted = [x for x in leaves if x.requires_grad]

    if case.form == "packed":
        packed = pack_padded_sequence(
            input, list(case.lengths), case.batch_first, enforce_sorted=case.sorted_lengths
        )
        outputs = call(layer, packed, states)
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
        options = {}
        if case.has_lengths:
            inside = torch.arange(case.seq_len).unsqueeze(1) < lengths.unsqueeze(0)  # [T, B]
            inside = inside.t() if case.batch_first else inside
            # Padding must not be read.
            input = torch.where(inside.unsqueeze(2), input, float("nan"))
            options["lengths"] = lengths.squeeze(0) if case.is_unbatched else lengths
        if case.is_unbatched:
            input, states = input.squeeze(batch_dim), [s.squeeze(1) for s in states]
        outputs = call(layer, input, states, **options)
    elif case.has_lengths:
        outputs = call_by_lengths(layer, input, states, case.lengths)
    else:
        outputs = call(layer, input, states)
    if case.is_unbatched and not is_ours:
        outputs = [o.squeeze(batch_dim if i == 0 else 1) for i, o in enumerate(outputs)]
    if not wanted:
        return outputs, []
    used = [o for o, is_used in zip(outputs, case.used_outputs, strict=False) if is_used]
    cotangents = cotangents_of(case, used)
    # What lies past a sequence's end is a constant, of torch's packed layer as well; a weight of a
    # layer above the last used state has no gradient.
    grads = gradients(used, cotangents, wanted, allow_unused=True, materialize_grads=True)
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
