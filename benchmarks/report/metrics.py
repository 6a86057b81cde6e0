"""What the figures in tables, pictures and the README are computed by."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.measure.cases import PASSES, Case
from benchmarks.measure.results import Entry, Results
from benchmarks.measure.timing import gemm_dtype, gemm_rate, geometric_mean, median_ratio
from benchmarks.model.limit_model import Constants, constants_from, microseconds_a_step
from benchmarks.peers.peer import CELL, GRAPH, SUBJECT, TORCH, counterpart, is_subject
from benchmarks.sections.busy import NEIGHBOURS
from benchmarks.sections.lengths import PACKED, TORCH_PACKED

MEBIBYTE = 2**20
FEWER_BITS = ("bf16", "int8")  # of section dtypes


def case_of(entry: Entry) -> Case:
    return Case(**entry["case"])


def peer_names(entries: Iterable[Entry]) -> list[str]:
    """Everyone who was timed beside this package, in the order of appearance."""
    seen = dict.fromkeys(name for entry in entries for name in entry["samples"])
    return [name for name in seen if not is_subject(name)]


def own_names(entries: Iterable[Entry]) -> list[str]:
    """The ways in which this package was timed: eager, and captured in a graph."""
    return [
        name
        for name in (SUBJECT, SUBJECT + GRAPH)
        if any(name in entry["samples"] for entry in entries)
    ]


def step_microseconds(entry: Entry, name: str) -> float | None:
    """Microseconds a step: the median time of the whole pass, over T."""
    samples = entry["samples"].get(name)
    if not samples:
        return None
    return float(statistics.median(samples) / entry["case"]["seq_len"] * 1e6)


def best_own(entry: Entry) -> str | None:
    """The faster way in which this package was timed in an entry."""
    names = own_names([entry])
    return min(names, key=lambda name: statistics.median(entry["samples"][name]), default=None)


def times_as_fast(entry: Entry, peer: str) -> float | None:
    """How many times as fast as a peer: eager against eager, graph against graph."""
    return ratio_in_rounds(entry, peer, counterpart(peer))


def ratio_in_rounds(entry: Entry, name: str, other: str) -> float | None:
    """The time of one entrant over another's: the median over the rounds of the ratio in each."""
    samples = entry["samples"]
    if name not in samples or other not in samples:
        return None
    return median_ratio(samples[name], samples[other])


def share_of_floor(entry: Entry, gemm: Mapping[str, Sequence[float]]) -> float:
    """The time that the products of the pass need at the large GEMM's rate, over the time taken.

    Of a result on CPU cores.
    """
    floor = entry["flops"] / gemm_rate(gemm[gemm_dtype(entry["case"]["dtype"])])
    return float(floor / statistics.median(entry["samples"][SUBJECT]))


def floor_microseconds(
    entry: Entry, results: Results, constants: Constants | None = None
) -> float | None:
    """What a step cannot be faster than: on CUDA by the limit model, on CPU cores by the GEMM."""
    case = case_of(entry)
    seconds = results.data["gemm"].get(gemm_dtype(case.dtype, results.device))
    rate = gemm_rate(seconds, results.device) if seconds else None
    if results.device == "cuda":
        constants = constants or constants_from(results.data["limit_model"])
        return microseconds_a_step(case, rate, constants)
    return None if rate is None else float(entry["flops"] / rate / case.seq_len * 1e6)


@dataclass(frozen=True)
class Mean:
    """How much faster than a peer, in each case of a pass that both were timed in."""

    peer: str
    what: str  # the pass, and on what
    ratios: Sequence[float]

    @property
    def mean(self) -> float:
        mean = geometric_mean(self.ratios)
        assert mean is not None  # there are ratios
        return mean

    def __str__(self) -> str:
        cases = f"geometric mean of {len(self.ratios)} cases, worst {min(self.ratios):.2f}"
        return f"{self.mean:5.2f} x as fast as {self.peer} in {self.what} ({cases})"


def means(results: Results) -> Iterator[Mean]:
    """Against each peer and in each pass; against torch.nn where both are given the same packed
    sequences of unequal length; in fewer bits; of streams, by layers and by cells; and beside other
    processes."""
    entries = results.section("layers")
    for peer in peer_names(entries):
        for pass_name in PASSES:
            ratios = [times_as_fast(entry, peer) for entry in _of_pass(entries, pass_name)]
            yield from _mean(peer, pass_name, ratios)
    for pass_name in PASSES:
        entries = _of_pass(results.section("lengths"), pass_name)
        ratios = [ratio_in_rounds(entry, TORCH_PACKED, PACKED) for entry in entries]
        yield from _mean(TORCH, f"{pass_name} on packed sequences", ratios)
    for dtype, pass_name in product(FEWER_BITS, PASSES):
        entries = _of_pass(results.section("dtypes"), pass_name)
        for other in (f"{SUBJECT} fp32", f"{TORCH} {dtype}", f"onnxruntime {dtype}"):
            ratios = [ratio_in_rounds(entry, other, f"{SUBJECT} {dtype}") for entry in entries]
            yield from _mean(other, f"{pass_name} in {dtype}", ratios)
    streams = results.section("streaming")
    for name in peer_names(streams):
        ratios = [times_as_fast(entry, name) for entry in streams]
        what = "streaming" + (" by cells" if name.endswith(CELL) else "")
        yield from _mean(name.removesuffix(CELL), what, ratios)
    for neighbour in NEIGHBOURS:
        ratios = [
            ratio_in_rounds(entry, TORCH + neighbour, SUBJECT + neighbour)
            for entry in results.section("busy")
        ]
        yield from _mean(TORCH, f"inference{neighbour}", ratios)


def geometric_means(results: Results) -> list[str]:
    """The means as lines of text."""
    return [str(mean) for mean in means(results)]


def _of_pass(entries: Iterable[Entry], pass_name: str) -> list[Entry]:
    return [entry for entry in entries if entry["case"]["pass_name"] == pass_name]


def _mean(peer: str, what: str, ratios: Iterable[float | None]) -> Iterator[Mean]:
    timed = [ratio for ratio in ratios if ratio is not None]
    if timed:
        yield Mean(peer, what, timed)


def worst_errors(entry: Entry) -> dict[str, tuple[str, float]]:
    """For each entrant of an accuracy entry the tensor with the largest error, and that error."""
    worst: dict[str, tuple[str, float]] = {}
    for name, tensors in entry["errors"].items():
        tensor = max(tensors, key=lambda tensor: max(tensors[tensor]))
        worst[name] = (tensor, max(tensors[tensor]))
    return worst


def describe(results: Results) -> list[str]:
    """The machine, the versions, the code, and how fast the machine multiplies."""
    data = results.data
    machine, code = data["machine"], data["code"]
    versions = ", ".join(f"{name} {found}" for name, found in data["versions"].items() if found)
    commit = (code["commit"] or "unknown")[:12] + (" (modified)" if code["modified"] else "")
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['capability']}; {versions}; commit {commit}"
    ]
    if "device" in data:
        lines.append(describe_device(data["device"]))
        lines += describe_clocks(results.entries)
    lines += [f"absent: {name} {reason}" for name, reason in data["absent"].items()]
    lines += [
        f"large GEMM, {dtype}: {gemm_rate(seconds, results.device) / 1e9:.0f} GFLOP/s"
        for dtype, seconds in data["gemm"].items()
    ]
    load = machine["load_average"]
    if load is not None and load > machine["cores"] / 4:
        lines.append(f"the machine was busy before the run (load {load:.1f}): expect noise")
    if not data["finished"]:
        lines.append("this run is not finished")
    return lines


def describe_device(device: Mapping[str, Any]) -> str:
    return (
        f"{device['name']}, {device['multiprocessors']} SMs, "
        f"{device['memory_bytes'] / 2**30:.0f} GiB, driver {device['driver'] or 'unknown'}, "
        f"CUDA {device['cuda']}, cuDNN {device['cudnn']}, "
        f"highest SM clock {device['max_sm_mhz'] or 'unknown'}"
    )


def describe_clocks(entries: Iterable[Entry]) -> list[str]:
    """The range of what nvidia-smi saw over the entries."""
    seen = [entry["clocks"]["sm_mhz"] for entry in entries if entry.get("clocks", {}).get("sm_mhz")]
    if not seen:
        return ["the SM clock during the run is not known"]
    middle = statistics.median(median for _, median, _ in seen)
    least, most = min(low for low, _, _ in seen), max(high for _, _, high in seen)
    return [f"SM clock during the run: {least:.0f} to {most:.0f} MHz, median {middle:.0f}"]
