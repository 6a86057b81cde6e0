"""How fast a step of the recurrence could be on an H100: the limit that kernels are measured by.

A model, not a measurement. A direction's [G*H, H] recurrent weights are spread over R blocks, each
with the rows of H/R units, and the batch over Q tiles; both directions run at once. A step then is

    max(products, exchange) + 0.35 min(products, exchange)     they overlap in part
    + adding the parts of a product that was split along H
    + the cell + the latency of the exchange + what a loop costs

clocks, times a factor for all that a model forgets; or the clocks of a warp's step by the machine
code, without its products, if those are more; or the time in which device memory moves what the
step reads and writes, if that is longer. Of all R and Q that fit the fastest is taken, among nearly
equal ones the smallest. The exchange of the new h goes through one block's shared memory
(R = 1), that of a cluster (R up to 16), or through L2 (R up to 128). Against these stands a library
GEMM and a kernel of the cell for each step, replayed from a CUDA graph, which any shape can have.

The model is of the forward pass of training, which writes the activations that backward needs. The
constants are published figures and estimates from them until measured: what `python -m benchmarks
micro` measures replaces them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.flops import NUM_GATES, products

CLUSTER_SIZES = (1, 2, 4, 8, 16)
GRID_SIZES = (16, 32, 64)
SERIAL_GRID_SIZE = 128  # so large that the directions take turns


@dataclass(frozen=True)
class Constants:
    """What the model believes of the chip. Clocks are an SM's, bytes and FLOP those of one SM."""

    source: str = "published figures and estimates from them: not measured"
    clocks_per_microsecond: float = 1900.0
    clusters_that_fit: Mapping[int, int] = field(
        default_factory=lambda: {1: 132, 2: 66, 4: 30, 8: 15, 16: 7}  # by size, one block an SM
    )
    # Exchange: until the last byte has arrived, beside the time that the bytes themselves take.
    block_exchange_clocks: float = 70.0
    cluster_exchange_clocks: float = 240.0
    cluster_bytes_per_clock: float = 18.0
    l2_exchange_clocks: float = 850.0
    l2_bytes_per_clock: float = 32.0
    # Products: mma.sync, and FFMA for strict fp32 where a batch is too small for it to pay.
    mma_flops_per_clock: float = 2650.0
    wide_mma_flops_per_clock: float = 3800.0  # from 64 batch columns
    ffma_flops_per_clock: float = 2 * 128 * 0.8
    shared_bytes_per_clock: float = 128.0
    product_latency_clocks: float = 100.0
    reduction_latency_clocks: float = 110.0
    transcendentals_per_clock: float = 16.0
    loop_clocks: float = 40.0
    forgotten_factor: float = 1.2
    # Memory of an SM.
    register_weight_bytes: int = 128 * 1024
    shared_memory_bytes: int = 215 * 1024
    other_shared_bytes: int = 24 * 1024
    # The whole device, a microsecond.
    memory_bytes_per_microsecond: float = 3.0e6
    gemm_flops_per_microsecond: Mapping[str, float] = field(
        default_factory=lambda: {"16": 600e6, "tf32": 300e6, "fp32": 200e6}
    )
    l2_weight_bytes_per_microsecond: float = 5.0e6
    memory_weight_bytes_per_microsecond: float = 2.9e6
    l2_weight_bytes: float = 40e6
    graph_step_microseconds: float = 2.7  # two kernels of a graph


PUBLISHED = Constants()

# By mode: bytes of a weight and of an exchanged element, and products for each one of the format.
# fp32 is bf16x3; three products of TF32 would cost up to twice as much.
MODES = {"fp16": "16", "bf16": "16", "tf32": "tf32", "fp32": "fp32"}
ELEMENT_BYTES = {"16": 2, "tf32": 4, "fp32": 4}
PRODUCTS = {"16": 1, "tf32": 2, "fp32": 3}

TRANSCENDENTALS = {"rnn": 1, "gru": 3, "lstm": 5}  # of a unit
CELL_LATENCY_CLOCKS = {"rnn": 60, "gru": 130, "lstm": 140}
SLOW_CELL_CLOCKS = 60  # exact tanh and exp instead of approximations
# What a warp issues and waits for in a step besides its products, in training, by `python -m
# benchmarks steps`: as csrc/cuda/plan/cost_model.cpp has it.
SERIAL_CLOCKS = {
    "16": {"rnn": 680, "gru": 1095, "lstm": 890},
    "tf32": {"rnn": 730, "gru": 2005, "lstm": 1635},
    "fp32": {"rnn": 535, "gru": 2035, "lstm": 1635},
}
MEMORY_ELEMENTS = {"rnn": 2, "gru": 8, "lstm": 10}  # read and written for a unit of a sequence

WARPS = 8
BLOCK_COST_MICROSECONDS = 0.0005  # settles between nearly equal ones for the smaller


@dataclass(frozen=True)
class Estimate:
    """A step's time, and the arrangement that has it."""

    microseconds: float
    blocks: int
    batch_tiles: int
    exchange: str  # block, cluster, l2, serial or graph


def recurrence(
    cell: str, hidden_size: int, batch_size: int, mode: str, constants: Constants = PUBLISHED
) -> Estimate:
    """The fastest step of both directions; `mode` is 16, tf32 or fp32."""
    estimates = _arrangements(cell, hidden_size, batch_size, mode, constants)
    return min(
        estimates,
        key=lambda estimate: (
            estimate.microseconds
            + BLOCK_COST_MICROSECONDS
            * (estimate.blocks * estimate.batch_tiles if estimate.exchange != "graph" else 0)
        ),
    )


def microseconds_a_step(
    case: Case, gemm_rate: float | None, constants: Constants = PUBLISHED
) -> float | None:
    """The limit of a whole case, or None where the model does not reach (fp64, training).

    That is the recurrence, and the input projection of all steps at `gemm_rate`, the large GEMM's
    measured floating-point operations a second; without one, at the model's.
    """
    if case.training or case.dtype not in MODES or not case.bidirectional:
        return None
    mode = MODES[case.dtype]
    step = recurrence(case.cell, case.hidden_size, case.batch_size, mode, constants)
    rate = gemm_rate / 1e6 if gemm_rate else constants.gemm_flops_per_microsecond[mode]
    return step.microseconds + products(case)["input_projection"] / rate / case.seq_len


def _arrangements(
    cell: str, hidden_size: int, batch_size: int, mode: str, constants: Constants
) -> Iterator[Estimate]:
    memory = (
        2 * batch_size * hidden_size * MEMORY_ELEMENTS[cell] * ELEMENT_BYTES[mode]
    ) / constants.memory_bytes_per_microsecond
    choices = [
        (blocks, "cluster" if blocks > 1 else "block", constants.clusters_that_fit[blocks] // 2)
        for blocks in CLUSTER_SIZES
    ]
    choices += [(blocks, "l2", GRID_SIZES[-1] // blocks) for blocks in GRID_SIZES]
    choices.append((SERIAL_GRID_SIZE, "serial", 1))
    for blocks, exchange, most_tiles in choices:
        for tiles in range(1, min(most_tiles, batch_size) + 1):
            clocks = _clocks(
                cell, hidden_size, batch_size, mode, constants, blocks, tiles, exchange
            )
            if clocks is not None:
                turns = 2 if exchange == "serial" else 1
                step = turns * clocks / constants.clocks_per_microsecond
                yield Estimate(max(step, memory), blocks, tiles, exchange)
    flops = 2 * 2 * NUM_GATES[cell] * hidden_size**2 * batch_size
    weights = 2 * NUM_GATES[cell] * hidden_size**2 * ELEMENT_BYTES[mode]
    in_l2 = weights < constants.l2_weight_bytes
    rate = (
        constants.l2_weight_bytes_per_microsecond
        if in_l2
        else constants.memory_weight_bytes_per_microsecond
    )
    product = max(flops / constants.gemm_flops_per_microsecond[mode], weights / rate)
    step = product + constants.graph_step_microseconds
    yield Estimate(max(step, memory), constants.clusters_that_fit[1], 1, "graph")


def _clocks(
    cell: str,
    hidden_size: int,
    batch_size: int,
    mode: str,
    constants: Constants,
    blocks: int,
    tiles: int,
    exchange: str,
) -> float | None:
    """A step of one direction, or None if it does not fit."""
    units = hidden_size / blocks
    if units < 4 or units != int(units):
        return None
    element = ELEMENT_BYTES[mode]
    batch = math.ceil(batch_size / tiles)
    columns = _round_up(batch, 8)
    rows = _round_up(int(NUM_GATES[cell] * units), 16)

    # Weights in registers as far as they go, the rest in shared memory beside two buffers of h; h
    # that comes through L2 and is large is read from there.
    state = batch * hidden_size * element
    buffers = 2 * state
    if exchange in ("l2", "serial"):
        buffers = 0 if state > 64 * 1024 else state
    room = constants.shared_memory_bytes - buffers - constants.other_shared_bytes
    in_shared = max(0, rows * hidden_size * element - constants.register_weight_bytes)
    if room < 0 or in_shared > room:
        return None

    rate = constants.mma_flops_per_clock if columns < 64 else constants.wide_mma_flops_per_clock
    product = 2 * rows * columns * hidden_size * PRODUCTS[mode] / rate
    if mode == "fp32":
        product = min(product, 2 * rows * batch * hidden_size / constants.ffma_flops_per_clock)
    row_groups = min(WARPS, max(1, rows // 32))
    reading = (state * row_groups + in_shared) / constants.shared_bytes_per_clock
    computing = max(product, reading) + constants.product_latency_clocks

    reduction = 0.0
    if WARPS // row_groups > 1:  # more warps than rows: each group takes a part of H
        reduction = constants.reduction_latency_clocks
        reduction += rows * columns * 4 * 2 / constants.shared_bytes_per_clock

    slow = mode != "16"
    transcendentals = units * batch * TRANSCENDENTALS[cell] * (2 if slow else 1)
    cell_clocks = transcendentals / constants.transcendentals_per_clock
    cell_clocks += CELL_LATENCY_CLOCKS[cell] + (SLOW_CELL_CLOCKS if slow else 0)

    received = state * (blocks - 1) / blocks
    latency, bandwidth = {
        "block": (constants.block_exchange_clocks, math.inf),
        "cluster": (constants.cluster_exchange_clocks, constants.cluster_bytes_per_clock),
    }.get(exchange, (constants.l2_exchange_clocks, constants.l2_bytes_per_clock))
    moving = received / bandwidth
    overlapped = max(computing, moving) + 0.35 * min(computing, moving)
    clocks = overlapped + reduction + cell_clocks + latency + constants.loop_clocks
    return max(clocks * constants.forgotten_factor, SERIAL_CLOCKS[mode][cell])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def constants_from(saved: Mapping[str, Any]) -> Constants:
    """The constants that a results file holds."""
    clusters = {int(size): count for size, count in saved["clusters_that_fit"].items()}
    return Constants(**{**saved, "clusters_that_fit": clusters})


# ---- measured constants

# What the microbenchmarks call what.
ALL_GATHER, CLUSTERS, L2_HOP = "all-gather", "clusters that fit", "L2 data-poll hop"
LEAST_SHARED_BYTES = 128 * 1024  # a kernel that holds weights has its SM to itself


def measured(micro: Mapping[str, Any], constants: Constants = PUBLISHED) -> Constants:
    """The constants, those replaced that a file of ``python -m benchmarks micro`` measures.

    An all-gather's clocks are latency plus bytes over bandwidth: two of its slice sizes give both,
    for each cluster size, with all clusters at once that fit; the median over the sizes is taken.
    A hop through L2, from a store to its arrival, is the exchange there. What was not measured, or
    is no sensible figure, stays as it was, and the source says what was replaced.
    """
    results: Sequence[Mapping[str, Any]] = micro["results"]
    replaced: dict[str, Any] = {}
    latencies, bandwidths = [], []
    gathers = [result for result in results if result["what"] == ALL_GATHER]
    for size in sorted({gather["cluster"] for gather in gathers}):
        at_once = max(g["clusters"] for g in gathers if g["cluster"] == size)
        same = [g for g in gathers if (g["cluster"], g["clusters"]) == (size, at_once)]
        small = min(same, key=lambda gather: gather["slice_bytes"])
        large = max(same, key=lambda gather: gather["slice_bytes"])
        more_bytes = (large["slice_bytes"] - small["slice_bytes"]) * (size - 1)
        more_clocks = large["clocks"] - small["clocks"]
        if more_bytes > 0 and more_clocks > 0:
            bandwidth = more_bytes / more_clocks
            bandwidths.append(bandwidth)
            latencies.append(small["clocks"] - small["slice_bytes"] * (size - 1) / bandwidth)
    if bandwidths and statistics.median(latencies) > 0:
        replaced["cluster_bytes_per_clock"] = statistics.median(bandwidths)
        replaced["cluster_exchange_clocks"] = statistics.median(latencies)
    hops = [result["clocks"] for result in results if result["what"] == L2_HOP]
    if hops:
        replaced["l2_exchange_clocks"] = statistics.median(hops)
    fitting = dict(constants.clusters_that_fit)
    for result in results:
        if result["what"] == CLUSTERS and result["shared_bytes"] >= LEAST_SHARED_BYTES:
            fitting[result["cluster"]] = result["count"]
    if fitting != dict(constants.clusters_that_fit):
        replaced["clusters_that_fit"] = fitting
    names = ", ".join(replaced) or "nothing"
    source = f"measured on {micro.get('device', 'an unnamed device')}: {names}; else published"
    return replace(constants, **replaced, source=source)
