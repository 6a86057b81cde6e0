"""The order of what a GPU call enqueues, as a property: two directions are two streams at once.

Forward and backward run on the emulator, over csrc's own streams and a runtime that records every
stream, event and launch, and what each reads and writes (emulator/streams/timeline.h). From that
follows what a GPU may run at the same time. Shown for every kernel: no work of one direction waits
for work of the other, except behind work of both; whatever shares memory is ordered; nothing is
freed while it may be in use; the caller's stream waits for everything; a capture holds all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from memory_count import Count
from problem import CELL_VALUES, DTYPES
from test_gpu_layer import Problem, forced, module
from torch import Tensor

KERNELS = ("block", "cluster", "grid", "stepwise")


@dataclass
class Operation:
    what: str
    stream: int
    priority: int
    index: int
    clock: Sequence[int]
    reads: set[int]
    writes: set[int]
    sources: set[int]
    directions: frozenset[int] = frozenset()

    def follows(self, other: Operation) -> bool:
        return self.clock[other.stream] >= other.index


@dataclass
class Call:
    """What a call enqueued, and the allocations that its operands and results lie in."""

    operations: list[Operation]
    violations: list[str]
    allocations: dict[str, int]
    owners: list[int]  # the stream that each allocation belongs to, -1 if it was there before
    num_waits: int
    peak_bytes: int  # that the call has allocated at once

    def touching(self, name: str) -> list[Operation]:
        number = self.allocations[name]
        return [one for one in self.operations if number in one.reads | one.writes]


def names_of_weights(problem: Problem, prefix: str = "") -> Iterator[tuple[str, Tensor, int]]:
    each = len(problem.weights) // problem.directions
    names = ["weight_ih", "weight_hh"]
    if each >= 4:
        names += ["bias_ih", "bias_hh"]
    if each % 2:
        names += ["weight_hr"]
    for i, weight in enumerate(problem.weights):
        yield f"{prefix}{names[i % each]}.{i // each}", weight, i // each


NO_MISTAKE = (-1, -1, -1)


def record(
    problem: Problem,
    precision: str = "ieee",
    capture: bool = False,
    caller: int = 0,
    priority: int = 0,
    mistakes: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, Call]:
    """A forward pass in inference, one in training and a backward pass. mistakes: by pass, what the
    recording pretends was done wrong (Mistake in timeline.h)."""
    common = (
        problem.input,
        problem.hx,
        problem.cx,
        problem.weights,
        problem.lengths,
        problem.batch_sizes,
    )
    known: dict[str, Tensor | None] = {"input": problem.input, "hx": problem.hx, "cx": problem.cx}
    known |= {name: weight for name, weight, _ in names_of_weights(problem)}
    stream = (capture, caller, priority)
    mistakes = mistakes or {}
    calls = {}
    for name, training in (("inference", False), ("training", True)):
        arguments = (*common, problem.cell, problem.directions, training, precision, *[None] * 4)
        results, calls[name] = run(
            module().forward,
            arguments,
            known,
            (*stream, mistakes.get(name, NO_MISTAKE)),
            names_of_outputs,
        )
    output, _, _, reserve = results
    cotangents = (problem.d_output, problem.d_h_n, problem.d_c_n)
    known |= dict(zip(("d_output", "d_h_n", "d_c_n"), cotangents, strict=True))
    known |= {"output": output, "reserve": reserve}
    needs_grad = [t is not None for t in problem.operands()]
    arguments = (*cotangents, *common, output, reserve, problem.cell, problem.directions)
    arguments += (precision, needs_grad, *[None] * 5)
    _, calls["backward"] = run(
        module().backward,
        arguments,
        known,
        (*stream, mistakes.get("backward", NO_MISTAKE)),
        lambda results: names_of_gradients(problem, results),
    )
    return calls


def names_of_outputs(results: Any) -> dict[str, Tensor]:
    return dict(zip(("output", "h_n", "c_n", "reserve"), results, strict=True))


def names_of_gradients(problem: Problem, results: Any) -> dict[str, Tensor]:
    d_input, d_hx, d_cx, d_weights = results
    named = {"d_input": d_input, "d_hx": d_hx, "d_cx": d_cx}
    names = [name for name, _, _ in names_of_weights(problem, "d_")]
    return named | dict(zip(names, d_weights, strict=True))


def run(
    function: Any,
    arguments: Sequence[Any],
    known: dict[str, Tensor | None],
    stream: tuple[bool, int, int, tuple[int, int, int]],
    names_of: Any,
) -> tuple[Any, Call]:
    given = {name: t for name, t in known.items() if t is not None}
    numbers = module().begin_recording(list(given.values()), *stream)
    named: dict[str, Tensor] = {}
    try:
        results = function(*arguments)
        named = names_of(results)
    finally:
        ended = module().end_recording(list(named.values()))
    operations, produced, violations, owners, num_waits, peak_bytes = ended
    call = Call(
        [Operation(*fields) for fields in operations],
        violations,
        dict(zip(given, numbers, strict=True)) | dict(zip(named, produced, strict=True)),
        owners,
        num_waits,
        peak_bytes,
    )
    # Which directions an operation works for: those whose own weights or gradients of weights it
    # touches, or else those of the operations whose results it reads.
    own: dict[int, set[int]] = {}
    for name, number in call.allocations.items():
        if name[-2:] in (".0", ".1"):
            own.setdefault(number, set()).add(int(name[-1]))
    for one in call.operations:
        found: set[int] = set()
        for number in one.reads | one.writes:
            found |= own.get(number, set())
        if not found:
            for source in one.sources:
                found |= call.operations[source].directions
        one.directions = frozenset(found)
    return results, call


def waits_across(call: Call) -> list[str]:
    """Where work of one direction waits for work of the other, and not for work of both."""
    both = [one for one in call.operations if len(one.directions) == 2]
    of = [[one for one in call.operations if one.directions == {d}] for d in (0, 1)]
    found = []
    for before, after in ((of[0], of[1]), (of[1], of[0])):
        for a, b in itertools.product(before, after):
            if b.follows(a) and not any(j.follows(a) and b.follows(j) for j in both):
                found.append(f"{b.what} on stream {b.stream} waits for {a.what} on {a.stream}")
    return found


def check(call: Call, directions: int) -> None:
    assert call.violations == []
    assert waits_across(call) == []
    if directions == 2:  # of each, or the property says nothing
        assert {frozenset({0}), frozenset({1})} <= {one.directions for one in call.operations}


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"states": False, "bias": False}, {"directions": 1})


@pytest.mark.parametrize(
    ("cell", "capture"),
    [
        pytest.param("tanh", False, marks=pytest.mark.long),
        pytest.param("gru", False, marks=pytest.mark.long),
        ("lstm", False),
        ("lstm", True),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_directions_do_not_wait_for_each_other(
    kernel: str, parts: int, cell: str, capture: bool
) -> None:
    for options in OPTIONS:
        problem = Problem(cell, torch.float32, (7, 3, 4, 20), **options)
        with forced(kernel, parts):
            calls = record(problem, capture=capture)
        for name, call in calls.items():
            try:
                check(call, problem.directions)
            except AssertionError as error:
                raise AssertionError(f"{cell}, {options}, {name}: {error}") from error


@pytest.mark.parametrize("kernel", KERNELS)
def test_unequal_lengths_and_packed_batches_are_in_order(kernel: str) -> None:
    for options in ({"lengths": [5, 0, 2, 4, 1]}, {"lengths": [5, 4, 4, 2, 1], "packed": True}):
        problem = Problem("lstm", torch.float16, (5, 5, 3, 20), **options)
        with forced(kernel):
            for call in record(problem).values():
                check(call, 2)


def test_a_projected_state_is_in_order() -> None:
    problem = Problem("lstm", torch.float32, (5, 5, 3, 20), proj_size=7, lengths=[5, 1, 0, 3, 3])
    for call in record(problem).values():
        check(call, 2)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kernel", ["block", "cluster", "grid"])
def test_weights_are_packed_once_before_the_projection(kernel: str, parts: int) -> None:
    problem = Problem("gru", torch.float32, (7, 3, 4, 20))
    with forced(kernel, parts):
        calls = record(problem)
    for name, call in calls.items():
        for d in (0, 1):
            readers = call.touching(f"weight_hh.{d}")
            assert len(readers) == 1, f"{name}: {[one.what for one in readers]}"
            if name == "backward":
                continue
            (projection,) = call.touching(f"weight_ih.{d}")
            assert projection.what == "a product"
            assert call.operations.index(readers[0]) < call.operations.index(projection)


@pytest.mark.parametrize("priority", [0, -3, -5])
def test_a_recurrence_in_parts_is_more_urgent_than_products(priority: int) -> None:
    problem = Problem("lstm", torch.float32, (7, 3, 4, 20))
    for kernel, urgent in (("cluster", max(priority - 1, -5)), ("grid", priority)):
        with forced(kernel, 3):
            call = record(problem, priority=priority)["backward"]
        check(call, 2)
        recurrences = [
            one
            for one in call.operations
            if "kernel" in one.what and call.allocations["reserve"] in one.reads
        ]
        products = [one for one in call.operations if one.what == "a product"]
        assert {one.priority for one in recurrences} == {urgent}
        assert {one.priority for one in products} == {priority}
        assert not {one.stream for one in recurrences} & {one.stream for one in products}


def test_stepwise_enqueues_the_directions_in_turns() -> None:
    problem = Problem("tanh", torch.float32, (100, 1, 2, 3))
    with forced("stepwise"):
        calls = record(problem)
    for call in calls.values():
        check(call, 2)
        walks = [one.directions for one in call.operations if one.directions in ({0}, {1})]
        runs = [len(list(same)) for _, same in itertools.groupby(walks)]
        assert len(walks) > 400 and max(runs) <= 2 * 32 + 8


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_is_what_is_counted(kernel: str) -> None:
    """Of any dtype the tensors that memory_count.py lists, and no others of any size."""
    for cell, dtype in (("tanh", torch.float32), ("gru", torch.float16), ("lstm", torch.float32)):
        sizes, library_bytes = (9, 8, 16, 24), 2 * 256  # T, B, I, H
        problem = Problem(cell, dtype, sizes, states=False)
        with forced(kernel):
            calls = record(problem)
        planned = module().planned_bytes(CELL_VALUES[cell], DTYPES.index(dtype), sizes, kernel)
        count = Count(cell, dtype.itemsize, *sizes, *planned, library_bytes)
        counts = {"training": count.forward_peak(), "backward": count.backward_peak()}
        for side, counted in counts.items():
            peak = calls[side].peak_bytes
            assert 0.9 * counted <= peak <= 1.02 * counted, (cell, side, peak, counted)


def test_side_streams_are_bounded() -> None:
    """A program that calls from ever new streams gets those that were used least recently."""
    problem = Problem("tanh", torch.float32, (2, 1, 2, 3))
    with forced("block"):
        for caller in range(120):
            for call in record(problem, caller=1 + caller).values():
                check(call, 2)
    assert module().num_side_streams() <= 96


# ---------------------------------------------------------------------------------------------
# Mistakes that the recording pretends were made: each must be a violation.


def with_mistake(problem: Problem, kernel: str, parts: int, name: str, *mistake: int) -> Call:
    with forced(kernel, parts):
        return record(problem, mistakes={name: mistake})[name]  # type: ignore[dict-item]


def order_of(call: Call) -> list[bool]:
    """Of each two operations whether one follows the other."""
    return [b.follows(a) for a, b in itertools.permutations(call.operations, 2)]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_forgotten_event_is_seen(parts: int) -> None:
    """Each fork and each join: without the wait nothing orders what lies before and behind it. But
    for two of a recurrence in parts: its streams are joined after the last part has been waited
    for."""
    problem = Problem("lstm", torch.float32, (3, 1, 2, 3))
    with forced("block", parts):
        calls = record(problem)
    for name, call in calls.items():
        assert call.num_waits >= 2
        idle = 0
        for number in range(call.num_waits):
            wrong = with_mistake(problem, "block", parts, name, number, -1, -1)
            if not wrong.violations:
                idle += 1
                assert order_of(wrong) == order_of(call), f"{name}: wait {number}"
        allowed = 2 if parts > 1 and name == "backward" else 0
        assert idle == allowed, f"{name}: {idle} of {call.num_waits} waits order nothing"


def test_memory_freed_too_early_is_seen() -> None:
    """What another stream than its owner works with, freed when the last of that is enqueued."""
    problem = Problem("lstm", torch.float32, (2, 1, 2, 3))
    with forced("block"):
        call = record(problem)["backward"]
    uses = {
        number: [
            index
            for index, one in enumerate(call.operations)
            if number in one.reads | one.writes and one.stream != owner
        ]
        for number, owner in enumerate(call.owners)
        if owner >= 0
    }
    shared = [(number, indices[-1]) for number, indices in uses.items() if indices]
    assert len(shared) > 4
    for number, last in shared[:: len(shared) // 4]:
        wrong = with_mistake(problem, "block", 1, "backward", -1, number, last)
        assert any("is freed before" in text for text in wrong.violations), f"{number} of {uses}"
