"""How shapes are divided on a GPU: every way there is, what each is estimated to take, and the one
that a call asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plans import DEVICES, plan

from birnn_cuda import ops

SHAPE = {
    "cell": "gru",
    "dtype": "float16",
    "seq_len": 100,
    "batch_size": 40,
    "input_size": 16,
    "hidden_size": 256,
}


@pytest.mark.parametrize("side", ["forward", "backward"])
def test_divisions_hold_what_the_plan_takes(side):
    for changes in ({}, {"dtype": "float32"}, {"dtype": "float64"}, {"hidden_size": 1024}):
        choices, chosen = ops.divisions(DEVICES["h100"], side, **SHAPE | changes)
        taken = plan(**SHAPE | changes)[side]
        assert choices[chosen] == {name: taken[name] for name in choices[chosen]}
        least = min(choice["microseconds_per_step"] for choice in choices)
        # Of equal ones the smaller, and a tenth for what asks more of the device.
        assert choices[chosen]["microseconds_per_step"] <= least / 0.9 / 0.9 + 0.1
        kernels = {choice["kernel"] for choice in choices}
        assert kernels == ({"stepwise"} if "float64" in changes.values() else kernels | {"grid"})


@pytest.mark.parametrize("side", ["forward", "backward"])
def test_every_division_can_be_asked_for(side):
    choices, _ = ops.divisions(DEVICES["h100"], side, **SHAPE)
    assert len({tuple(choice.items()) for choice in choices}) == len(choices) > 50
    for choice in choices:
        taken = plan(**SHAPE, **{side: choice})[side]
        assert {name: taken[name] for name in choice} == choice
        assert "asked for" in taken["reason"]


def test_a_division_that_does_not_fit_is_refused():
    choices, _ = ops.divisions(DEVICES["h100"], "forward", **SHAPE)
    cluster = next(choice for choice in choices if choice["kernel"] == "cluster")
    for wrong in ({"blocks": 17}, {"batch_tiles": 3}, {"groups_at_once": 5}):
        with pytest.raises(ValueError, match=r"no cluster of blocks .* runs this forward pass"):
            plan(**SHAPE, forward=cluster | wrong)
    with pytest.raises(ValueError, match=r"no cluster of blocks .* on a100"):
        plan("a100", **SHAPE, forward=cluster)
    with pytest.raises(ValueError, match='no kernel "warp"; valid: block, cluster, grid, stepwise'):
        plan(**SHAPE, forward=cluster | {"kernel": "warp"})


def test_divisions_of_what_runs_nowhere_are_refused():
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        ops.divisions(DEVICES["h100"], "forward", **SHAPE | {"hidden_size": 0})
    with pytest.raises(ValueError, match=r"t4 has compute capability 7\.5"):
        ops.divisions(DEVICES["t4"], "backward", **SHAPE)


def test_forced_divisions():
    choices, _ = ops.divisions(DEVICES["h100"], "forward", **SHAPE)
    with ops.forced_kernel(forward=choices[0], backward=choices[-1]):
        forced = ops.extension.forced()
        for given, found in zip((choices[0], choices[-1]), forced[2:], strict=True):
            assert all(found[name] == given[name] for name in ("kernel", "blocks", "k_split"))
    assert ops.extension.forced() == ("", 0, None, None)


def test_clusters_are_those_of_the_published_table_without_a_driver():
    """Of a device that is here the driver is asked: kernels/test_residency.py."""
    shape = {"dtype": "float16", "hidden_size": 256, "batch_size": 64}
    published = plan(**shape)
    assert {device["index"] for device in DEVICES.values()} == {None}
    assert published["residency"] == "published table"
    forward = published["forward"]
    assert forward["kernel"] == "cluster"
    apart = {4: 30, 8: 15, 16: 7}
    choices, _ = ops.divisions(DEVICES["h100"], "forward", **SHAPE)
    found = {choice["blocks"]: choice for choice in choices if choice["kernel"] == "cluster"}
    assert {size: found[size]["clusters_apart"] for size in apart} == apart
    assert (
        f"{forward['resident_clusters']} clusters on the device at once (published table)"
        in forward["reason"]
    )
    small = plan(num_multiprocessors=14, kernel="cluster", **shape)["forward"]
    assert small["blocks"] <= 8  # none of 16 fits
    assert re.search(r"; cluster: room for no cluster of (9|1\d) blocks of ", small["reason"])


def resident(choices):
    """As divisions takes what it has returned."""
    names = ("blocks", "batch_tiles", "k_split", "resident_clusters", "clusters_apart")
    return [
        [choice[name] for name in names]
        for choice in choices
        if choice["kernel"] in ("block", "cluster")
    ]


@pytest.mark.parametrize("side", ["forward", "backward"])
def test_answers_of_a_driver_stand_for_it_elsewhere(side):
    many = SHAPE | {"batch_size": 240}
    published = ops.divisions(DEVICES["h100"], side, **many)
    answers = resident(published[0])
    assert ops.divisions(DEVICES["h100"], side, **many, resident_clusters=answers) == published
    half = [[*row[:3], max(row[3] // 2, 1), max(row[4] // 2, 1)] for row in answers]
    choices, _ = ops.divisions(DEVICES["h100"], side, **many, resident_clusters=half)
    pairs = [
        (after["microseconds_per_step"], before["microseconds_per_step"])
        for before, after in zip(published[0], choices, strict=True)
    ]
    assert all(after >= before for after, before in pairs)
    assert any(after > 1.5 * before for after, before in pairs)
    # What no driver has an answer for does not run.
    kept = [row for row in answers if row[0] in (1, 4)]
    choices, _ = ops.divisions(DEVICES["h100"], side, **many, resident_clusters=kept)
    assert resident(choices) == kept


def test_divisions_follow_the_constants():
    constants = ops.cost_constants()

    def every(changed):
        large = SHAPE | {"batch_size": 128, "cell": "lstm", "hidden_size": 512}
        fp32 = SHAPE | {"batch_size": 1, "dtype": "float32"}
        shapes = (SHAPE, SHAPE | {"hidden_size": 64}, large, fp32)
        return [
            ops.divisions(DEVICES["h100"], side, **shape, constants=changed)
            for shape in shapes
            for side in ("forward", "backward")
        ]

    for name, value in constants.items():
        changed = [every({name: factor * value}) for factor in (1000, 0.001)]
        assert changed != [every({})] * 2, name
    slow = {"cluster_latency": 1e6, "product_us": 1e6}
    choices, chosen = ops.divisions(DEVICES["h100"], "forward", **SHAPE, constants=slow)
    assert choices[chosen]["kernel"] == "grid"
    with pytest.raises(ValueError, match=r'a constant must be one of flop_per_cycle.*got "flop"'):
        ops.divisions(DEVICES["h100"], "forward", **SHAPE, constants={"flop": 1.0})
    with pytest.raises(ValueError, match="pass must be one of forward, backward"):
        ops.divisions(DEVICES["h100"], "sideways", **SHAPE)


def estimates(side="forward", **changes):
    choices, _ = ops.divisions(DEVICES["h100"], side, **SHAPE | changes)
    return {
        tuple(choice.values())[:5]: choice["microseconds_per_step"]
        for choice in choices
        if choice["kernel"] != "stepwise"
    }


def test_blocks_that_share_a_multiprocessor_share_what_it_issues():
    """Blocks of few threads fit four to a multiprocessor: slower than one, faster than one after
    the other."""

    def times(batch_size):
        small = {"cell": "lstm", "hidden_size": 16, "batch_size": batch_size}
        return {one: time for one, time in estimates(**small).items() if one[:3] == ("block", 1, 1)}

    apart, shared = times(8 * 66), times(4 * 8 * 66)  # 66 groups of each direction: an SM each
    assert apart.keys() == shared.keys() and apart
    of_64_threads = ("block", 1, 1, 1, 1)
    assert 1 < shared[of_64_threads] / apart[of_64_threads] < 2
    whole = {"cell": "lstm", "hidden_size": 64}
    one, two = (
        estimates(**whole, batch_size=batch_size)[("block", 1, 1, 1, 1)]
        for batch_size in (8 * 66, 2 * 8 * 66)
    )
    assert two == pytest.approx(2 * one)  # 256 threads: the registers are full


def counted_steps():
    """Of kernels/steps.txt: shape, pass, and cycles of a warp's step by the machine code."""
    for line in Path(__file__).with_name("steps.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        cell, precision, hidden_size, batch_size, which, kernel, *_, serial, _ = line.split()
        shape = {
            "cell": "tanh" if cell == "rnn" else cell,
            "dtype": {"fp16": "float16"}[precision],
            "hidden_size": int(hidden_size),
            "batch_size": int(batch_size),
        }
        if kernel.startswith("cluster") and which != "inference":  # the model has training
            yield shape, which, float(serial)


@pytest.mark.parametrize(("shape", "which", "serial"), list(counted_steps()), ids=str)
def test_a_step_takes_what_a_warp_issues(shape, which, serial):
    """The model is lines through counts: 13 % off, and a tenth for a second warp beside it."""
    taken = plan(**shape)["backward" if which == "backward" else "forward"]
    cycles = 1900 * taken["microseconds_per_step"]
    assert 0.85 < cycles / serial < 1.3


def test_more_warps_use_more_of_a_multiprocessor_in_shorter_chains():
    """A K split has a quarter of each, for a sum of four parts: as far as the way to the peers
    goes, worth it on 2 warps a block."""
    shape = {"cell": "tanh", "hidden_size": 512, "batch_size": 8}
    whole, split = (("cluster", 16, 1, k_split, 1) for k_split in (1, 4))
    way = {"serial": 1e-3}  # whatever else a warp issues
    now = estimates(**shape, constants=way)
    assert now[split] < now[whole]
    slow = estimates(**shape, constants=way | {"mma_latency": 1000})
    assert slow[whole] - now[whole] == pytest.approx(4 * (slow[split] - now[split]), rel=0.15)
    free = way | {"mma_latency": 1e-3, "shared_bytes_per_cycle": 1e9}
    at_rate, at_half = (
        estimates(**shape, constants=free | {"flop_per_cycle": rate}) for rate in (20, 10)
    )
    assert at_half[whole] / at_rate[whole] == pytest.approx(2, rel=0.1)
    # Two of four parts multiply, or all.
    assert at_rate[whole] / at_rate[split] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_few_sequences_in_fp32_are_multiplied_without_matrix_units(cell):
    one, two, three, tf32 = (
        estimates(cell=cell, dtype="float32", batch_size=batch_size, precision=precision)
        for batch_size, precision in ((1, "ieee"), (2, "ieee"), (3, "ieee"), (2, "tf32"))
    )
    assert one.keys() == two.keys() == three.keys() == tf32.keys()
    for division, time in three.items():
        if division[0] == "grid":
            assert one[division] == two[division] == time
        else:
            assert one[division] <= two[division] <= time
    assert any(one[division] < 0.9 * time for division, time in three.items())
    one, two = (
        estimates("backward", cell=cell, dtype="float32", batch_size=size) for size in (1, 2)
    )
    assert one == two
