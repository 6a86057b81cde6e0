"""``python -m benchmarks.gpu``: a short comparison with torch.nn (cuDNN) on a GPU, as JSON.

``timing`` times bidirectional layers, eager and captured in a CUDA graph; ``concurrency`` asks how
much longer two directions take than one. Every result is checked first: against torch's layer in
fp64, where it may be twice as wrong as torch's own, and one rounding. What does not pass is not
timed. Each call is timed by CUDA events, in rounds of random order; medians.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import birnn_cuda
from benchmarks.timing import Step, interleave, median_ratio

STEPS = 128
SHAPES = ((256, 32), (512, 32), (128, 1), (1024, 64))  # H, B
CELLS = ("lstm", "gru", "rnn")
# The dtype, what cuDNN and our products may do in fp32, and one rounding.
MODES = {
    "fp16": (torch.float16, "ieee", 2**-11),
    "tf32": (torch.float32, "tf32", 2**-11),
    "bf16": (torch.bfloat16, "ieee", 2**-8),
    "fp32": (torch.float32, "ieee", 1e-5),
}
PASSES = ("forward", "forward+backward")
SEED = 0


@dataclass(frozen=True)
class Case:
    cell: str
    hidden_size: int
    batch_size: int
    mode: str
    which: str  # of PASSES
    bidirectional: bool = True

    def label(self) -> str:
        return f"{self.cell} H={self.hidden_size} B={self.batch_size} {self.mode} {self.which}"


def make_layer(package: Any, case: Case) -> nn.Module:
    kind = {"lstm": package.LSTM, "gru": package.GRU, "rnn": package.RNN}[case.cell]
    layer: nn.Module = kind(
        case.hidden_size, case.hidden_size, bidirectional=case.bidirectional, device="cuda"
    )
    return layer.train(case.which != "forward")


def make_call(layer: nn.Module, case: Case, input: Tensor, d_output: Tensor) -> Callable[[], Any]:
    """A function that runs the layer and returns all it computed: outputs, then gradients."""
    if case.which == "forward":

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [layer(input)[0]]

        return forward
    leaves = [input, *layer.parameters()]

    def forward_backward() -> list[Tensor]:
        output = layer(input)[0]
        return [output, *torch.autograd.grad(output, leaves, d_output)]

    return forward_backward


def capture(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """The call as a CUDA graph: a function that replays it, and its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


def event_seconds(step: Step, repeats: int) -> float:
    """Seconds a call took, on average over `repeats` calls, by the device's clock."""
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        step()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000 / repeats


def relative_errors(results: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    return [
        float(
            (result.detach().double() - exact.detach()).norm()
            / exact.detach().norm().clamp_min(1e-300)
        )
        for result, exact in zip(results, reference, strict=True)
    ]


def prepare(case: Case) -> tuple[dict[str, Step], dict[str, Any]]:
    """The entrants that gave the right result, by name, and what was found out on the way."""
    dtype, precision, rounding = MODES[case.mode]
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]
    generator = torch.Generator("cuda").manual_seed(SEED)
    torch.manual_seed(SEED)
    directions = 2 if case.bidirectional else 1

    def draw(features: int) -> Tensor:
        size = (STEPS, case.batch_size, features)
        return torch.randn(size, device="cuda", generator=generator).to(dtype)

    input = draw(case.hidden_size).requires_grad_(case.which != "forward")
    d_output = draw(directions * case.hidden_size)
    torchs = make_layer(nn, case).to(dtype)
    ours = make_layer(birnn_cuda, case).to(dtype)
    ours.load_state_dict(torchs.state_dict())
    exact_layer = copy.deepcopy(torchs).double()
    exact_input = input.detach().double().requires_grad_(input.requires_grad)
    reference = make_call(exact_layer, case, exact_input, d_output.double())()

    steps: dict[str, Step] = {}
    found: dict[str, Any] = {"errors": {}, "refused": {}}
    bounds: list[float] | None = None
    for name, layer in (("torch", torchs), ("ours", ours)):
        call = make_call(layer, case, input, d_output)
        for way in ("eager", "graph"):
            entrant = f"{name} {way}"
            try:
                if way == "eager":
                    step: Step = call
                    results = call()
                else:
                    step, results = capture(call)
                    step()
                torch.cuda.synchronize()
            except RuntimeError as error:
                found["refused"][entrant] = str(error).split("\n")[0]
                continue
            errors = relative_errors(results, reference)
            found["errors"][entrant] = max(errors)
            if bounds is None:  # torch, eager: the first
                bounds = [2 * error + rounding for error in errors]
            # `not <=` rather than `>`: NaN is wrong.
            if any(not error <= bound for error, bound in zip(errors, bounds, strict=True)):
                found["refused"][entrant] = "wrong results"
                continue
            steps[entrant] = step
    return steps, found


def measure(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    _, samples = interleave(
        steps,
        random.Random(SEED),
        seconds=seconds,
        min_rounds=5,
        max_rounds=30,
        min_sample=0.0005,
        clock=event_seconds,
    )
    return samples


def microseconds(samples: Sequence[float]) -> float:
    return statistics.median(samples) * 1e6


class Report:
    """The rows so far, on disk after each, and whether all was well."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.head = {
            "what": what,
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "steps": STEPS,
            "seed": SEED,
        }
        self.save()

    def save(self) -> None:
        partial = self.path.with_suffix(".partial")
        report = {**self.head, "rows": self.rows, "left_out": self.left_out}
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(self.path)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.save()

    def refused(self) -> list[str]:
        """Our own entrants that failed. torch's are reported, and are not ours to mend."""
        return [
            f"{row['case']}, {entrant}: {why}"
            for row in self.rows
            for entrant, why in row["refused"].items()
            if entrant.startswith("ours")
        ]


def describe(case: Case) -> dict[str, Any]:
    return {
        "case": case.label(),
        "cell": case.cell,
        "hidden_size": case.hidden_size,
        "batch_size": case.batch_size,
        "mode": case.mode,
        "pass": case.which,
    }


def timing(report: Report, seconds: float) -> str:
    cases = [
        Case(cell, hidden_size, batch_size, mode, which)
        for (hidden_size, batch_size), mode, cell, which in itertools.product(
            SHAPES, MODES, CELLS, PASSES
        )
    ]
    end = time.monotonic() + seconds
    for index, case in enumerate(cases):
        remaining = end - time.monotonic()
        if remaining <= 0:
            report.left_out = [left.label() for left in cases[index:]]
            report.save()
            break
        begin = time.monotonic()
        steps, found = prepare(case)
        row = {**describe(case), **found, "microseconds": {}, "microseconds_a_step": {}}
        if steps:
            share = remaining / (len(cases) - index)
            samples = measure(steps, max(0.02, share - (time.monotonic() - begin)))
            row["rounds"] = min(len(values) for values in samples.values())
            for name, values in samples.items():
                row["microseconds"][name] = round(microseconds(values), 2)
                row["microseconds_a_step"][name] = round(microseconds(values) / STEPS, 3)
            for way in ("eager", "graph"):
                pair = (f"torch {way}", f"ours {way}")
                if all(name in samples for name in pair):
                    row[f"torch_over_ours_{way}"] = round(
                        median_ratio(samples[pair[0]], samples[pair[1]]), 3
                    )
        report.add(row)
        show(row)
    ratios = [row["torch_over_ours_graph"] for row in report.rows if "torch_over_ours_graph" in row]
    text = f"{len(report.rows)} cases, {len(report.left_out)} left out for time"
    if ratios:
        text += f"; torch / ours captured: median {statistics.median(ratios):.2f}"
    return text


def show(row: dict[str, Any]) -> None:
    times = "  ".join(f"{name} {value:8.2f}" for name, value in row["microseconds_a_step"].items())
    refused = "  ".join(f"{name}: {why}" for name, why in row["refused"].items())
    print(f"{row['case']:<40} us a step: {times}  {refused}", flush=True)


def concurrency(report: Report, seconds: float) -> str:
    """Two directions over one, in time: 1 if the second is free, 2 if they wait for each other."""
    cases = [
        Case(cell, 256, 32, mode, which)
        for cell, which, mode in itertools.product(CELLS, PASSES, ("fp16", "tf32"))
    ]
    end = time.monotonic() + seconds
    ratios: list[float] = []
    for index, case in enumerate(cases):
        remaining = end - time.monotonic()
        if remaining <= 0:
            report.left_out = [left.label() for left in cases[index:]]
            report.save()
            break
        begin = time.monotonic()
        both, found = prepare(case)
        single, found_single = prepare(
            Case(case.cell, 256, 32, case.mode, case.which, bidirectional=False)
        )
        steps = {f"{name} two": step for name, step in both.items()}
        steps.update({f"{name} one": step for name, step in single.items()})
        refused = {f"{name} two": why for name, why in found["refused"].items()}
        refused.update({f"{name} one": why for name, why in found_single["refused"].items()})
        row = {**describe(case), "refused": refused, "microseconds": {}, "two_over_one": {}}
        if steps:
            share = remaining / (len(cases) - index)
            samples = measure(steps, max(0.02, share - (time.monotonic() - begin)))
            for name, values in samples.items():
                row["microseconds"][name] = round(microseconds(values), 2)
            for name in both:
                if name in single:
                    ratio = median_ratio(samples[f"{name} two"], samples[f"{name} one"])
                    row["two_over_one"][name] = round(ratio, 3)
                    if name == "ours graph":
                        ratios.append(ratio)
        report.add(row)
        print(f"{row['case']:<40} two / one: {row['two_over_one']}  {refused or ''}", flush=True)
    if not ratios:
        return "no ratio"
    return f"two directions over one, ours captured: median {statistics.median(ratios):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("what", choices=("timing", "concurrency"))
    parser.add_argument("path", type=Path, help="the JSON to write")
    parser.add_argument("--seconds", type=float, help="stop adding cases after this (45 or 12)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a GPU that torch can use.", file=sys.stderr)
        return 2
    report = Report(options.path, options.what)
    if options.what == "timing":
        note = timing(report, options.seconds or 45)
    else:
        note = concurrency(report, options.seconds or 12)
    refused = report.refused()
    for line in refused:
        print(line)
    print("note: " + note + (f"; {len(refused)} of ours refused" if refused else ""))
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
