"""The emulator of the kernels' intrinsics, and the tests of the kernel tests.

Programs of tests/kernels are built against the emulator, plain and under sanitizers, and run under
several schedules. Conformance: every intrinsic does what device.h says. Litmus: global accesses
show the outcomes that the memory model allows and no others. Defects: protocols like those of the
recurrence kernels are clean, and each planted defect is caught by what should catch it.
"""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import build

KERNELS = Path(__file__).parents[1] / "kernels"

ORDERS = ("shuffle", "fifo", "reverse", "skew")
LANDINGS = ("random", "late", "eager")
ALL_SCHEDULES = tuple(itertools.product(ORDERS, LANDINGS))
# Each order and each landing at least once: for the slow variants.
FEW_SCHEDULES = (("shuffle", "random"), ("fifo", "eager"), ("skew", "late"), ("reverse", "random"))

RACE = r"WARNING: ThreadSanitizer: data race"
WRONG = r"FAILED: wrong value"
DEADLOCK = r"deadlock\n  \d+ thread\(s\) in .* at defects\.cu:\d+"
LIVELOCK = r"livelock\n  \d+ thread\(s\) in .* at \w+\.(cu|h):\d+"


def diagnosis(text: str) -> str:
    """What the emulator says, with a line of the kernel."""
    return rf"FAILED: launch: {text}.* at defects\.cu:\d+"


# What must catch each planted defect, and how.
DEFECTS = {
    # st.async and mbarriers across a cluster
    "missing_mbarrier_wait": {"plain": rf"{WRONG}|more arrivals", "thread": RACE},
    "wrong_parity": {"plain": rf"{DEADLOCK}|more arrivals", "thread": RACE},
    "block_scope_acquire": {"thread": RACE},
    "missing_init_barrier": {"plain": diagnosis("st_async: peers may not have begun")},
    "too_few_bytes_expected": {"plain": rf"{WRONG}|has exited", "thread": RACE},
    "too_many_bytes_expected": {"plain": DEADLOCK, "address": DEADLOCK, "thread": DEADLOCK},
    "not_rearmed": {"plain": DEADLOCK},
    "rearmed_by_every_thread": {"plain": diagnosis("mbarrier: more arrivals in a phase")},
    "single_buffer": {"plain": WRONG, "thread": RACE},
    "stage_read_early": {"plain": WRONG, "thread": RACE},
    "stage_reused_early": {"thread": RACE},
    "push_at_last_step": {
        "plain": r"asynchronous store to a block that has exited, issued at defects\.cu:\d+",
        "thread": RACE,
    },
    "wrong_rank": {"plain": diagnosis("map_rank: rank outside the cluster")},
    "misaligned_push": {"plain": diagnosis("st_async: misaligned address")},
    "uninitialised_state": {"plain": WRONG},
    "shared_out_of_bounds": {
        "plain": r"a store outside every shared array",
        "address": r"AddressSanitizer: use-after-poison",
    },
    "global_out_of_bounds": {
        "plain": WRONG,
        "address": r"AddressSanitizer: use-after-poison",
    },
    "divergent_collective": {"plain": diagnosis("warp diverged: this lane is at sync_warp")},
    "different_lines": {"plain": diagnosis("warp diverged: this lane is at sync_warp")},
    "too_much_shared": {"plain": diagnosis(r"Smem::alloc: \d+ bytes needed, \d+ in the launch")},
    # remote stores and cluster barriers
    "missing_cluster_barrier": {"plain": rf"{WRONG}|that block has exited", "thread": RACE},
    "relaxed_arrive": {"thread": RACE},
    "missing_start_barrier": {"plain": diagnosis("st.shared::cluster: peers may not have begun")},
    "missing_end_barrier": {
        "plain": diagnosis("st.shared::cluster: that block has exited"),
        "thread": RACE,
    },
    "missing_cluster_wait": {"plain": diagnosis("second cluster_arrive without a cluster_wait")},
    # cp.async
    "missing_copy_wait": {"plain": WRONG, "thread": RACE},
    "too_many_pending": {"plain": WRONG, "thread": RACE},
    "missing_commit": {"plain": rf"{WRONG}|ends with cp.async in flight", "thread": RACE},
    "copy_not_shared": {"plain": WRONG, "thread": RACE},
    "stage_refilled_early": {"plain": WRONG, "thread": RACE},
    "copy_out_of_bounds": {"address": diagnosis("cp_async: source out of bounds")},
    # named barriers
    "arrive_instead_of_sync": {"thread": RACE},
    "wrong_thread_count": {"plain": diagnosis("bar_(sync|arrive): thread counts differ")},
    "shared_barrier_id": {"thread": RACE},
    "partials_reused": {"thread": RACE},
    "divergent_block_barrier": {"plain": diagnosis("divergent sync_threads")},
    "skipped_barrier": {"plain": DEADLOCK},
    "unordered_element": {"plain": WRONG, "thread": RACE},
    # global memory
    "relaxed_flag": {"thread": RACE},
    "relaxed_poll": {"thread": RACE},
    "missing_release_fence": {"thread": RACE},
    "missing_acquire_fence": {"thread": RACE},
    "missing_barrier_before_release": {"plain": WRONG, "thread": RACE},
    "slot_reused": {"thread": RACE},
    "missing_grid_barrier": {"plain": WRONG, "thread": RACE},
    "wrong_generation": {"plain": LIVELOCK},
    "not_cooperative": {"plain": LIVELOCK},
    # words that carry their epoch
    "word_slot_reused": {"plain": r"FAILED: launch: check failed: a word was overwritten"},
    "words_not_awaited": {"plain": WRONG},
    "ring_not_cleared": {"plain": WRONG},
    "published_before_read": {"plain": WRONG, "thread": RACE},
}


# Of the races one of each kind, for every run of the suite.
QUICK_RACES = ("missing_mbarrier_wait", "relaxed_arrive", "missing_copy_wait", "partials_reused")
QUICK_RACES += ("relaxed_flag",)


def variants(*quick: str) -> list[object]:
    """All of them; what is not quick is long."""
    return [
        pytest.param(variant, marks=() if variant in quick else pytest.mark.long)
        for variant in build.VARIANTS
    ]


def planted() -> Iterator[object]:
    for defect, caught in DEFECTS.items():
        for variant in caught:
            quick = variant == "plain" or (variant == "thread" and defect in QUICK_RACES)
            marks = () if quick else pytest.mark.long
            yield pytest.param(defect, variant, marks=marks)


def assert_clean(source: str, variant: str, *arguments: str) -> None:
    executable = build.program(KERNELS / source, variant)
    schedules = ALL_SCHEDULES if variant == "plain" else FEW_SCHEDULES
    for seed, (order, landing) in enumerate(schedules, start=1):
        result = build.run(
            executable, *arguments, order=order, landing=landing, seed=seed, approximate=True
        )
        schedule = f"{source} {variant} {order} {landing} seed {seed}"
        assert result.returncode == 0, f"{schedule}\n{result.stdout[-6000:]}"
        assert "ok\n" in result.stdout, f"{schedule}: ran nothing"


@pytest.mark.parametrize("variant", variants("plain"))
def test_conformance(variant: str) -> None:
    assert_clean("conformance.cu", variant)


@pytest.mark.parametrize("variant", variants("plain"))
def test_litmus(variant: str) -> None:
    assert_clean("litmus.cu", variant)


@pytest.mark.parametrize("variant", variants("plain", "thread"))
def test_protocols_without_defects_are_clean(variant: str) -> None:
    assert_clean("defects.cu", variant, "clean")


def test_every_defect_has_an_expectation() -> None:
    listed = build.run(build.program(KERNELS / "defects.cu"), "list").stdout.split()
    assert listed == list(DEFECTS)


@pytest.mark.parametrize(("defect", "variant"), list(planted()))
def test_defect_is_caught(defect: str, variant: str) -> None:
    executable = build.program(KERNELS / "defects.cu", variant)
    seen = []
    for order, landing in FEW_SCHEDULES:
        result = build.run(executable, defect, order=order, landing=landing)
        if result.returncode != 0 and re.search(DEFECTS[defect][variant], result.stdout):
            # A race must be the kernel's, not the emulator's.
            if variant == "thread" and DEFECTS[defect][variant] == RACE:
                assert re.search(r"defects\.cu:\d+", result.stdout), result.stdout
            return
        seen.append(f"{order} {landing}: status {result.returncode}\n{result.stdout[-1500:]}")
    pytest.fail(f"{defect} was not caught by {variant}\n" + "\n".join(seen))


def test_shared_library() -> None:
    emulator = build.Emulator(build.shared_library(KERNELS / "saxpy_driver.cpp"))
    saxpy = emulator.library.saxpy
    saxpy.argtypes = [
        ctypes.c_float,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
    ]
    x, y = torch.randn(100_003), torch.randn(100_003)
    expected = y + 2.5 * x
    emulator.configure(order="skew", landing="late", seed=7)
    assert saxpy(2.5, x.data_ptr(), y.data_ptr(), x.numel(), 256) == 0
    torch.testing.assert_close(y, expected)
    assert saxpy(2.5, x.data_ptr(), y.data_ptr(), x.numel(), 100) != 0
    assert "multiple of 32" in emulator.last_error()
    with pytest.raises(ValueError, match="sideways"):
        emulator.configure(order="sideways")


def test_a_change_of_a_header_builds_again(tmp_path: Path) -> None:
    header, source = tmp_path / "answer.h", tmp_path / "answer.cpp"
    source.write_text(
        '#include <cstdio>\n#include "answer.h"\nint main() { std::printf("%d", ANSWER); }\n'
    )
    header.write_text("#define ANSWER 41\n")
    first = build.program(source)
    assert build.run(first).stdout == "41"
    modified = first.stat().st_mtime_ns
    assert build.program(source).stat().st_mtime_ns == modified
    header.write_text("#define ANSWER 42\n")
    assert build.run(build.program(source)).stdout == "42"
