"""The grid forward kernel, run by the emulator, against the reference in fp64.

The backward pass behind it is stepwise's, in the same format: so what the kernel leaves in the
reserve is judged by the gradients. In tf32 the error allowed is twice that of an fp64 computation
whose recurrent product rounds its operands to tf32.
"""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import planted_defects
import pytest
import test_stepwise as stepwise
import torch
from test_cluster_backward import CELLS, PRECISIONS, draw_lengths, rounded_to_tf32
from test_cluster_forward import Tf32ForwardProduct
from test_stepwise import KERNELS, NAN, Problem, Run, build, exact, integers, is_equal
from torch import Tensor

# H, B, blocks of a direction, batch tiles, groups at once. H: one unit; blocks with no unit of
# their own; odd; K split over both warps, and over pieces; weights in shared memory. B: one group,
# several in turn, side by side, and both.
SHAPES = (
    (1, 1, 1, 1, 1),
    (9, 3, 4, 1, 1),
    (20, 9, 2, 1, 1),
    (37, 17, 4, 1, 2),
    (33, 17, 3, 2, 1),
    (64, 10, 6, 1, 3),
    (61, 2, 7, 1, 1),
    (50, 18, 4, 2, 2),
)


@functools.cache
def driver() -> build.Emulator:
    emulator = build.Emulator(build.shared_library(KERNELS / "grid_forward_driver.cpp"))
    emulator.configure()
    return emulator


class GridRun(Run):
    """Forward by the kernel under test, both directions in one launch or each alone; backward by
    stepwise."""

    def __init__(
        self,
        emulator: build.Emulator,
        problem: Problem,
        tiling: tuple[int, int, int] = (1, 1, 1),
        tf32: bool = False,
        num_directions: int = 2,
        save_reserve: bool = True,
        in_place: bool = False,
    ) -> None:
        # NaN past the end of the weights: what is read there spoils what it is multiplied with.
        weight = problem.weight_hh
        guarded = torch.full((2 * weight.numel() + 4096,), NAN, dtype=weight.dtype)
        guarded[: weight.numel()] = weight.flatten()
        problem.weight_hh = guarded[: weight.numel()].view_as(weight)
        waiting: list[Any] = []

        def forward(
            sizes: Any, d: int, save: int, lengths: Any, pointers: Any, strides: Any, _: Any
        ) -> int:
            waiting.extend(pointers)
            if num_directions == 2 and d == 0:
                return 0
            given = (type(pointers)._type_ * len(waiting))(*waiting)
            waiting.clear()
            status: int = emulator.library.grid_forward_driver(
                sizes, num_directions, d, save, lengths, given, strides, integers(*tiling, tf32)
            )
            return status

        library = SimpleNamespace(
            stepwise_forward_driver=forward,
            stepwise_backward_driver=stepwise.driver().library.stepwise_backward_driver,
        )
        self.emulator = SimpleNamespace(library=library, last_error=emulator.last_error)
        super().__init__(self.emulator, problem, save_reserve, in_place)  # type: ignore[arg-type]

    def written(self) -> list[Tensor]:
        return [self.output, self.hy, self.cy, self.gates]


def check(problem: Problem, run: Run, tf32: bool = False) -> None:
    model = rounded_to_tf32(Tf32ForwardProduct) if tf32 else None
    stepwise.check(problem, run.results(), problem.results(exact), model)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_reserve(cell: str, precision: str, seed: int) -> None:
    emulator = driver()
    tf32 = precision == "tf32"
    shapes = itertools.cycle(SHAPES[seed % 8 :] + SHAPES[: seed % 8])
    patterns = itertools.cycle(("mixed", "none", "short", "full"))
    for index, T in enumerate(stepwise.SEQUENCE_LENGTHS):
        H, B, *tiling = next(shapes)
        lengths = draw_lengths(next(patterns), T, B)
        bias, states = stepwise.OPTIONS[(index + seed) % 4]
        problem = Problem(cell, PRECISIONS[precision], (T, B, H), lengths, bias, states)
        run = GridRun(emulator, problem, tuple(tiling), tf32, 1 if index == 3 else 2)
        check(problem, run, tf32)
        if T != 2:
            continue
        inference = GridRun(emulator, problem, tuple(tiling), tf32, save_reserve=False)
        assert is_equal(run.written()[:3], inference.written()[:3])
        given = torch.where(problem.inside, problem.gates, NAN)
        assert is_equal([inference.gates[..., : given.size(3)]], [given]), "inference keeps nothing"
        if cell in ("tanh", "relu"):
            in_place = GridRun(emulator, problem, tuple(tiling), tf32, in_place=True)
            assert is_equal([run.output, run.hy], [in_place.output, in_place.hy])


@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_gives_the_same_bits(cell: str) -> None:
    emulator = driver()
    kept: list[Tensor] | None = None
    problem = Problem(cell, torch.float32, (7, 9, 20), draw_lengths("mixed", 7, 9))
    for order, landing in (
        ("shuffle", "random"),
        ("fifo", "eager"),
        ("reverse", "random"),
        ("skew", "late"),
    ):
        emulator.configure(order=order, landing=landing, seed=7)
        written = GridRun(emulator, problem, (2, 1, 1)).written()
        assert kept is None or is_equal(kept, written)
        kept = written
    emulator.configure()


def test_the_tiling_changes_no_more_than_rounding() -> None:
    problem = Problem("lstm", torch.float32, (5, 19, 30), None)
    for tiling in ((3, 1, 1), (4, 1, 2), (5, 2, 1), (8, 2, 2), (16, 1, 9)):
        check(problem, GridRun(driver(), problem, tiling))


def test_nan_stays_in_its_sequence() -> None:
    problem = Problem("gru", torch.float32, (4, 3, 9))
    clean = GridRun(driver(), problem)
    problem.gates[:, 2, 1] = NAN
    run = GridRun(driver(), problem)
    assert run.hy[:, 1].isnan().all()
    assert is_equal([run.hy[:, [0, 2]]], [clean.hy[:, [0, 2]]])


@pytest.mark.parametrize(
    "tiling",
    [
        (1, 1, 1),  # more units than a block holds
        (4, 3, 1),  # batch tiles that are not compiled
        (0, 1, 1),
        (4, 1, 0),
    ],
)
def test_a_tiling_that_no_instance_holds_is_refused(tiling: tuple[int, int, int]) -> None:
    problem = Problem("lstm", torch.float32, (1, 1, 40))
    with pytest.raises(AssertionError):
        GridRun(driver(), problem, tiling)


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_clean_under_sanitizers(variant: str) -> None:
    program = build.program(KERNELS / "grid_forward_program.cpp", variant)
    result = build.run(program, order="skew", landing="random")
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout == "ok\n"


# ---------------------------------------------------------------------------------------------
# Defects planted in the text of the kernel: each must be caught by the checks above, under the
# schedules that look for it.

PLACES = (
    (
        "grid_exchange::await(there, source_of(piece), epoch);",
        {
            "no_wait_for_the_words": "",
            "words_of_another_epoch": "grid_exchange::await(there, source_of(piece), epoch - 1);",
        },
    ),
    (
        "reinterpret_cast<uint64_t*>(ring + int64_t{epoch & 1} * args.slot_pairs)",
        {"one_slot": "reinterpret_cast<uint64_t*>(ring)"},
    ),
    (
        "slot + words[chunk]",
        {"one_slot": "slot - int64_t{epoch & 1} * args.slot_pairs + words[chunk]"},
    ),
    (
        "column < H ? grid_exchange::kNever : grid_exchange::kAlways",
        {
            "ring_not_cleared": "grid_exchange::kAlways",
            "missing_units_awaited": "grid_exchange::kNever",
        },
    ),
    (
        "team * args.num_directions + direction",
        {"directions_share_a_ring": "team", "teams_share_a_ring": "direction"},
    ),
    ("sync_threads();  // the lengths of the group before", {"no_barrier_between_groups": ""}),
    ("sync_threads();  // the lengths, at first", {"no_barrier_after_the_lengths": ""}),
    ("sync_threads();  // the sums", {"no_barrier_after_the_sums": ""}),
    ("(epoch & 1) * (kWarps * kSourceFloats)", {"one_buffer_of_sums": "0"}),
    ("own_chunks == 0 && i < kSourceFloats", {"sums_of_idle_warps_not_zeroed": "false"}),
    ("if (thread == 0) *mask = kTf32Mask;", {"no_mask": ""}),
    (
        "if (k + 1 < steps) publish_state(epoch + 1);",
        {"published_after_the_last_step": "publish_state(epoch + 1);"},
    ),
    (
        "if (steps > 0) publish_state(epoch + 1);",
        {"epochs_start_again": "epoch = 0; if (steps > 0) publish_state(epoch + 1);"},
    ),
    ("group += args.teams", {"one_group_of_a_team": "group += args.num_groups"}),
    ("unit < H && column < H", {"missing_columns_not_masked": "unit < H"}),
    (
        "(fragment - kHeld) * 64 + step * 32 + lane",
        {"one_place_for_spare_weights": "step * 32 + lane"},
    ),
    ("fetch(k + 1);", {"gates_of_another_step": "fetch(k + 2);", "gates_not_fetched": ""}),
    (
        "kCell == Cell::kGru && gate == 2 ? 3 : gate",
        {"gru_products_on_the_input_side": "gate"},
    ),
    ("!ended", {"ended_sequences_go_on": "true"}),
    (
        "dir.reverse && k < length[e] ? length[e] - 1 - k : k",
        {"row_of_the_reverse_direction": "dir.reverse && k < length[e] ? steps - 1 - k : k"},
    ),
    ("active ? h[e] : from_float<T>(0.0f)", {"padding_is_not_zero": "h[e]"}),
    ("k < args.seq_len", {"padding_is_not_written": "false"}),
    ("active && args.save_reserve", {"reserve_past_the_end": "args.save_reserve"}),
    (
        "if (dir.hx) h[e] = static_cast<const T*>(dir.hx)[state_offset(e)];",
        {"initial_state_forgotten": ""},
    ),
)

IN_EXCHANGE = (
    (
        "first >= epoch && second >= epoch",
        {"first_word_unchecked": "second >= epoch", "second_word_unchecked": "first >= epoch"},
    ),
    (
        "if (i < count) all_there = is_there(pairs[i]) && all_there;",
        {"last_pair_decides": "all_there = is_there(pairs[i]);"},
    ),
)


@functools.cache
def defective_driver() -> planted_defects.DefectiveEmulator:
    return planted_defects.build_defects(
        "grid_forward", "ieee", PLACES, ("kGru", "kLstm"), {"grid_exchange.cuh": IN_EXCHANGE}
    )


def check_defective(
    emulator: build.Emulator, cell: str, sizes: tuple[int, int], tiling: Any, pattern: str
) -> None:
    H, B = sizes
    lengths = draw_lengths(pattern, 6, B)
    if pattern == "empty":  # the first group
        lengths = [0 if b < 16 else 6 - b % 3 for b in range(B)]
    problem = Problem(cell, torch.float32, (6, B, H), lengths)
    run = GridRun(emulator, problem, tiling)
    check(problem, run)
    assert run.gates[:, ~problem.inside[..., 0]].isnan().all(), "the reserve past the end"


# Warps without columns; weights in shared memory; groups in turn; side by side.
DEFECT_CASES = tuple(
    itertools.product(
        ("lstm", "gru"),
        (
            ((9, 3), (4, 2, 1), "short"),
            ((40, 2), (4, 2, 1), "mixed"),
            ((20, 18), (2, 2, 1), "mixed"),
            ((6, 34), (2, 2, 2), "short"),
            ((6, 34), (2, 2, 1), "empty"),
        ),
    )
)


@pytest.mark.parametrize("defect", planted_defects.names_of([*PLACES, *IN_EXCHANGE]))
def test_defect_is_caught(defect: str) -> None:
    emulator = defective_driver()
    emulator.plant(defect)
    schedules = (("shuffle", "random"), ("skew", "random"), ("reverse", "eager"), ("skew", "eager"))
    for seed, ((order, landing), (cell, (sizes, tiling, pattern))) in enumerate(
        itertools.product(schedules, DEFECT_CASES)
    ):
        emulator.configure(order=order, landing=landing, seed=seed)
        try:
            check_defective(emulator, cell, sizes, tiling, pattern)
        except AssertionError:
            return
    pytest.fail(f"{defect} was not caught")


def test_without_a_defect_all_is_well() -> None:
    emulator = defective_driver()
    emulator.plant(None)
    emulator.configure(order="skew", landing="random")
    for cell, (sizes, tiling, pattern) in DEFECT_CASES:
        check_defective(emulator, cell, sizes, tiling, pattern)
