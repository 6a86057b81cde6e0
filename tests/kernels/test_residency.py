"""How many clusters run at once is asked of the driver: of which launch, how often, and what the
plan makes of the answer. The layer on the emulator, whose runtime answers as it is told to."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import build

TANH, RELU, GRU, LSTM = range(4)
FLOAT32, FLOAT16 = 1, 2
SIZES = (5, 40, 3, 64)  # steps, batch, input, hidden


@functools.cache
def layer() -> Any:
    return build.layer_module()


@pytest.fixture
def module() -> Iterator[Any]:
    layer().change_driver()
    layer().see_kernels()
    yield layer()
    layer().change_driver()
    layer().force("", 0)


def kernels(module: Any, launched: bool) -> list[tuple[int, ...]]:
    """(kernel, threads, blocks, cluster, shared bytes) of launches, or of questions."""
    return [tuple(seen[:-1]) for seen in module.seen_kernels() if seen[-1] == launched]


def run(cell: str, dtype: torch.dtype, sizes: tuple[int, int, int, int] = SIZES) -> None:
    T, B, input_size, H = sizes
    G = {"lstm": 4, "gru": 3}.get(cell, 1)
    weights = [
        torch.randn(shape, dtype=dtype) / 10
        for _ in range(2)
        for shape in ((G * H, input_size), (G * H, H), (G * H,), (G * H,))
    ]
    input = torch.randn(T, B, input_size, dtype=dtype)
    options = None, None, weights, None, None
    output, _, _, reserve = layer().forward(input, *options, cell, 2, True, "ieee", *[None] * 4)
    needs_grad = [True, False, False, *[True] * len(weights)]
    settings = cell, 2, "ieee", needs_grad, *[None] * 5
    layer().backward(output, None, None, input, *options, output, reserve, *settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
@pytest.mark.parametrize("kernel", ["block", "cluster"])
def test_the_driver_is_asked_of_the_very_launch(
    module: Any, kernel: str, cell: str, dtype: torch.dtype
) -> None:
    """The same instance, threads, cluster, shared memory and grid, forward and backward."""
    module.force(kernel, 0)
    run(cell, dtype, (5, 40, 3, 20))
    asked, launched = kernels(module, False), kernels(module, True)
    recurrences = {seen for seen in launched if seen[-1] > 0}  # the others pack, and sum up
    assert len(recurrences) == 2 and recurrences <= set(asked)
    assert all((cluster == 1) == (kernel == "block") for *_, cluster, _ in recurrences)


def test_each_launch_is_asked_of_once(module: Any) -> None:
    for _ in range(2):
        for forward in (True, False):
            module.divisions(GRU, FLOAT32, SIZES, forward)
        module.planned(GRU, FLOAT32, SIZES, "")
        run("gru", torch.float32)
    asked = kernels(module, False)
    assert len(asked) == len(set(asked)) > 10
    module.see_kernels()
    module.divisions(GRU, FLOAT32, SIZES, True)
    assert kernels(module, False) == []
    module.change_driver()  # another device is asked anew
    module.divisions(GRU, FLOAT32, SIZES, True)
    assert kernels(module, False)


def test_only_what_could_be_chosen_is_asked_of(module: Any) -> None:
    """A layer that chooses among a hundred divisions has few kernels loaded for a question."""
    run("lstm", torch.float16)
    asked = kernels(module, False)
    assert 0 < len(asked) <= 8
    assert len({kernel for kernel, *_ in asked}) <= 4
    ways = sum(len(module.divisions(LSTM, FLOAT16, SIZES, forward)) for forward in (True, False))
    assert ways > 100


def test_fewer_clusters_take_turns_and_others_are_chosen(module: Any) -> None:
    def times() -> dict[tuple[Any, ...], float]:
        return {
            tuple(division[:4]): division[-1]
            for division in module.divisions(LSTM, FLOAT16, (5, 240, 3, 64), True)
        }

    many = times()
    of_many = module.planned(LSTM, FLOAT16, (5, 240, 3, 64), "cluster")[0][0]
    size = of_many[1]
    assert of_many[4:6] == (132 // size, 132 // size)
    module.change_driver(resident_clusters={size: 2})
    few = times()
    assert few.keys() == many.keys()
    for division, time in few.items():
        if division[0] == "cluster" and division[1] == size:
            assert time > 1.5 * many[division]
        else:
            assert time == many[division]
    chosen, reason = module.planned(LSTM, FLOAT16, (5, 240, 3, 64), "cluster")[0]
    assert chosen[1] != size
    assert f"{132 // chosen[1]} clusters on the device at once (asked of the driver)" in reason


def test_blocks_beside_each_other_are_the_drivers_count(module: Any) -> None:
    """Several to a multiprocessor: slower than one to each, faster than in turn."""
    sizes = (5, 2 * 8 * 66, 3, 20)

    def time(**driver: Any) -> float:
        module.change_driver(**driver)
        (found,) = (
            division
            for division in module.divisions(LSTM, FLOAT16, sizes, True)
            if division[:4] == ("block", 1, 1, 1)
        )
        return float(found[-1])

    alone, turns = time(resident_clusters={1: 264}), time(resident_clusters={1: 132})
    shared = time(resident_clusters={1: 264}, blocks_of_multiprocessor=2)
    assert turns == pytest.approx(2 * alone)
    assert alone < shared < turns


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"resident_clusters": dict.fromkeys(range(2, 17), 0)}, r"\(asked of the driver\)"),
        (
            {"resident_clusters": dict.fromkeys(range(2, 17), -1)},
            r"\(asked of the driver: clusters of \d+ are beyond this driver\)",
        ),
        (
            {"code_capability": 80},
            r"\(asked of the driver: its code is for compute capability 8\.0, which has no clust",
        ),
    ],
    ids=["none fit", "an error", "older code"],
)
def test_what_the_driver_refuses_is_ruled_out_and_said(
    module: Any, answer: dict[str, Any], why: str
) -> None:
    room = r"room for no cluster of \d+ blocks of \d+ threads and \d+ bytes of shared memory " + why
    before, _ = module.planned(LSTM, FLOAT16, SIZES, "cluster")[0]
    module.change_driver(**answer)
    with pytest.raises(RuntimeError, match=r'"cluster" does not take this forward pass.*' + room):
        module.planned(LSTM, FLOAT16, SIZES, "cluster")
    for (chosen, reason), forward in zip(
        module.planned(LSTM, FLOAT16, SIZES, ""), (True, False), strict=True
    ):
        assert chosen[0] != "cluster"
        assert re.search("; cluster: " + room, reason), reason
        kinds = {division[0] for division in module.divisions(LSTM, FLOAT16, SIZES, forward)}
        assert kinds == {"block", "grid", "stepwise"}
    module.force_divisions((*before[:4], 1), ("stepwise", 1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="no cluster of blocks.*: " + room):
        run("lstm", torch.float16)
    module.force("", 0)
    run("lstm", torch.float16)


def test_one_size_that_is_refused_leaves_the_others(module: Any) -> None:
    size = module.planned(LSTM, FLOAT16, SIZES, "cluster")[0][0][1]
    module.change_driver(resident_clusters={size: 0})
    chosen, reason = module.planned(LSTM, FLOAT16, SIZES, "cluster")[0]
    assert chosen[0] == "cluster" and chosen[1] != size
    assert f"; cluster: room for no cluster of {size} blocks" in reason


def test_without_a_driver_a_published_table_stands_in(module: Any) -> None:
    module.change_driver(present=False)
    chosen, reason = module.planned(LSTM, FLOAT16, SIZES, "cluster")[0]
    assert f"{chosen[4]} clusters on the device at once (published table)" in reason
    assert kernels(module, False) == []
