"""Timing the divisions that the plan chooses from, and the constants made of it: on stand-ins, and
on a GPU where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_support import Repeated, command
from test_benchmarks_cuda import DEVICE, OnGpu, play_a_gpu

from benchmarks import cuda, tune
from benchmarks.measure.cases import Case, Limits, Preset, grid
from benchmarks.measure.problem import make_layer
from benchmarks.measure.results import Results
from benchmarks.model import fit
from benchmarks.sections import divisions
from benchmarks.sections.divisions import PROJECTION, SIDES, Recurrence, name_of, worth_timing
from birnn_cuda import ops

H100 = next(device for device in ops.known_devices() if device["name"] == "h100")
LIMITS = Limits(seconds=0.0, min_rounds=3, max_rounds=3, min_sample=0.0)
TINY = Preset(
    cases={"divisions": grid(("gru", "lstm"), ((4, 2, 3),), ("tf32", "fp16"), ("training",))},
    limits=LIMITS,
    compiled=(),
)


@pytest.fixture
def tiny_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks tune` on the CPU: events, graphs and the GPU are played. The kernels
    are the CPU's, so that all divisions are the same."""
    play_a_gpu(monkeypatch, tune.TuneCommand, TINY)
    monkeypatch.setattr(divisions, "GraphRun", Repeated)


# ---- what is timed


@pytest.mark.parametrize("preset", tune.PRESETS.values(), ids=tune.PRESETS)
def test_presets_hold_both_passes_of_every_case_once(preset: Preset) -> None:
    measurements = tune.COMMAND.plan(preset, ("divisions",), {})
    keys = [measurement.key for measurement in measurements]
    assert len(set(keys)) == len(keys) == 2 * len(preset.cases["divisions"])


def test_what_is_worth_timing() -> None:
    """stepwise first; what the plan takes; of each kernel several numbers of blocks; few in all."""
    for case in tune.PRESETS["standard"].cases["divisions"]:
        for side in SIDES:
            choices, chosen = ops.divisions(H100, side, **divisions.plan_arguments(case))
            picked = worth_timing(choices, chosen)
            assert picked[0]["kernel"] == "stepwise" and choices[chosen] in picked
            assert len({name_of(choice) for choice in picked}) == len(picked) <= 32
            best = min(choices, key=lambda choice: choice["microseconds_per_step"])
            assert best in picked
            most = divisions.HOPELESS * best["microseconds_per_step"]
            assert all(choice["microseconds_per_step"] <= most for choice in picked[2:])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_recurrence_is_that_of_the_layer(cell: str) -> None:
    """Forward its output and states, backward the gradients of its initial states: by torch.nn."""
    case = Case(cell, 5, 3, 4, 6, "training", "fp64")
    forward, backward = (Recurrence(case, side, 11, "cpu") for side in SIDES)
    layer = make_layer(torch.nn, case, torch.float64)
    for parameter, weight in zip(layer.parameters(), forward.weights, strict=True):
        parameter.data.copy_(weight)
    states = [
        state.clone().requires_grad_() for state in (forward.hx, forward.cx) if state is not None
    ]
    output, final = layer(forward.input, tuple(states) if cell == "lstm" else states[0])
    final = final if cell == "lstm" else (final,)
    for found, expected in (
        (forward.results(forward.step()), (output, *final)),
        (
            backward.results(backward.step()),
            torch.autograd.grad((output * backward.d_output).sum(), states),
        ),
    ):
        torch.testing.assert_close(list(found.values()), list(expected))
    assert [list(t.shape) for t in forward.projection()] == [
        [15, len(forward.weights[0])] for _ in range(2)
    ]


def test_a_run_on_stand_ins_writes_and_shows_everything(
    tiny_tune: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tune.json"
    assert command("tune", "--out", path, "--seed", 5) == 0
    printed = capsys.readouterr().out
    assert "plan / fastest" in printed.replace("\n", " ") and "block 1/1/1/1" in printed
    entries = json.loads(path.read_text())["entries"]
    assert {entry["side"] for entry in entries} == set(SIDES) and len(entries) == 8
    for entry in entries:
        assert not entry["failed"] and entry["chosen"] in entry["samples"]
        timed = set(entry["samples"]) - {PROJECTION}
        assert timed == set(entry["divisions"]) == set(entry["subjects"])
        assert (PROJECTION in entry["samples"]) == (entry["side"] == "forward")
        assert all(len(samples) == 3 for samples in entry["samples"].values())
    assert ops.extension.forced() == ("", 0, None, None)


def test_each_division_is_forced_while_it_is_captured(
    tiny_tune: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Spy(Repeated):
        def __init__(self, run: Any) -> None:
            super().__init__(run)
            _, parts, *both = ops.extension.forced()
            if any(both):
                assert parts == 1
                seen.append([None if each is None else name_of(each) for each in both])

    monkeypatch.setattr(divisions, "GraphRun", Spy)
    path = tmp_path / "tune.json"
    assert command("tune", "--out", path, "--cell", "gru", "--dtype", "fp16") == 0
    forward, backward = Results.load(path).entries
    wanted = [[name, None] for name in forward["divisions"]]
    assert seen == wanted + [[None, name] for name in backward["divisions"]]


def test_a_wrong_division_is_not_timed_and_fails_the_run(
    tiny_tune: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Wrong(Repeated):
        """Grids are wrong by far, clusters raise."""

        def __init__(self, run: Any) -> None:
            super().__init__(run)
            division = ops.extension.forced()[2]
            self.kernel = division["kernel"] if division else ""
            if self.kernel == "cluster":
                raise RuntimeError("out of clusters")

        def results(self, returned: Any) -> Any:
            found = super().results(returned)
            return {k: 2 * v for k, v in found.items()} if self.kernel == "grid" else found

    monkeypatch.setattr(divisions, "GraphRun", Wrong)
    path = tmp_path / "tune.json"
    assert command("tune", "--out", path, "--cell", "gru", "--dtype", "fp16") == 1
    entry = Results.load(path).entries[0]
    for name in entry["divisions"]:
        kernel = name.split()[0]
        assert (name in entry["samples"]) == (kernel in ("block", "stepwise"))
        if kernel == "cluster":
            assert entry["failed"][name] == "RuntimeError: out of clusters"
        if kernel == "grid":
            assert "relative error 1, allowed" in entry["failed"][name]
    assert "failed, not timed: grid" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["raises", "is not finite"])
def test_without_stepwise_nothing_is_timed(
    what: str, tiny_tune: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Repeated):
        def __init__(self, run: Any) -> None:
            super().__init__(run)
            division = ops.extension.forced()[3]
            self.wrong = division is not None and division["kernel"] == "stepwise"
            if self.wrong and what == "raises":
                raise RuntimeError("no library")

        def results(self, returned: Any) -> Any:
            found = super().results(returned)
            return {k: v * float("nan") for k, v in found.items()} if self.wrong else found

    monkeypatch.setattr(divisions, "GraphRun", Broken)
    path = tmp_path / "tune.json"
    assert command("tune", "--out", path, "--cell", "gru", "--dtype", "fp16") == 1
    forward, backward = Results.load(path).entries
    assert forward["samples"] and not forward["failed"]
    assert not backward["samples"] and set(backward["failed"]) == set(backward["divisions"])


# ---- the constants

TRUE = {"serial": 1.3, "grid_latency": 0.6, "product_us": 1.7, "slack": 1.2}


def measured(path: Path, truth: Callable[[str, float], float] = lambda name, time: time) -> Path:
    """A file of tune on a GPU for which the model is right with TRUE times the constants."""
    constants = {name: value * TRUE.get(name, 1.0) for name, value in ops.cost_constants().items()}
    cases = [
        replace(case, input_size=16)
        for case in grid(
            ("lstm", "gru"), ((256, 1, 128), (256, 32, 512), (256, 8, 1024)), ("fp16",)
        )
        if case.training
    ]
    header = {"settings": {}, "machine": {}, "versions": {}, "code": {}, "absent": {}}
    results = Results.create(path, "tune", {**header, "limits": H100, "device": DEVICE})
    for case in cases:
        for side in SIDES:
            arguments = divisions.plan_arguments(case)
            choices, chosen = ops.divisions(H100, side, **arguments)
            now, _ = ops.divisions(H100, side, **arguments, constants=constants)
            times = {name_of(c): truth(name_of(c), c["microseconds_per_step"]) for c in now}
            picked = [name_of(choice) for choice in worth_timing(choices, chosen)]
            before = 3e-4 if side == "forward" else 0.0
            samples = {name: [times[name] * 256e-6 + before] * 3 for name in picked}
            if before:
                samples[PROJECTION] = [before] * 3
            results.add(
                {
                    "key": f"divisions/{case.key}/{side}",
                    "section": "divisions",
                    "divisions": {name_of(choice): choice for choice in choices},
                    "chosen": name_of(choices[chosen]),
                    "resident_clusters": divisions.resident_clusters(choices),
                    "subjects": picked,
                    "control": None,
                    "unit": "seconds",
                    "failed": {},
                    "side": side,
                    "case": case.as_dict(),
                    "samples": samples,
                }
            )
    return path


def test_the_times_are_those_of_the_recurrence(tmp_path: Path) -> None:
    passes = fit.load([measured(tmp_path / "tune.json")])
    constants = {name: value * TRUE.get(name, 1.0) for name, value in ops.cost_constants().items()}
    assert len(passes) == 12
    assert fit.distance(passes, constants) < 1e-6 < 0.1 < fit.distance(passes, ops.cost_constants())


def test_the_estimates_are_of_what_the_driver_said(tmp_path: Path) -> None:
    """Of another device than the one at hand: one cluster at once, the others in turn."""
    path = measured(tmp_path / "tune.json")
    content = json.loads(path.read_text())
    for entry in content["entries"]:
        for answer in entry["resident_clusters"]:
            answer[3:] = [1, 1]
    path.with_name("few.json").write_text(json.dumps(content))
    many, few = (
        [each.estimates(ops.cost_constants())[0] for each in fit.load([file])]
        for file in (path, path.with_name("few.json"))
    )
    longest = 0.0
    for before, after in zip(many, few, strict=True):
        for name, time in before.items():
            of_clusters = name.split()[0] in ("block", "cluster")
            assert after[name] >= time if of_clusters else after[name] == time
        longest = max(longest, *(after[name] / time for name, time in before.items()))
    assert longest > 1.5


@pytest.mark.long
def test_the_fit_finds_the_constants(tmp_path: Path) -> None:
    passes = fit.load([measured(tmp_path / "tune.json")])
    start = ops.cost_constants()
    found = fit.fit(passes, start)
    assert fit.distance(passes, found) < 0.25 * fit.distance(passes, start)
    # What a warp issues in a step of a cluster; of a grid the model knows the product of slack and
    # a latency alone, and of a launch the sum.
    assert found["serial"] == pytest.approx(TRUE["serial"] * start["serial"], rel=0.05)
    slack = TRUE["slack"] * start["slack"] / found["slack"]
    assert found["grid_latency"] == pytest.approx(
        TRUE["grid_latency"] * start["grid_latency"] * slack, rel=0.15
    )
    launch = TRUE["product_us"] * start["product_us"] + start["kernel_us"]
    assert found["product_us"] + found["kernel_us"] == pytest.approx(launch, rel=0.05)
    regrets = [sum(fit.regret(each, c) for each in passes) for c in (start, found)]
    assert regrets[1] <= regrets[0]


def test_regret_is_of_what_was_timed(tmp_path: Path) -> None:
    fit_passes = fit.load([measured(tmp_path / "tune.json")])
    each, start = fit_passes[0], ops.cost_constants()
    estimates, chosen = each.estimates(start)
    fastest = min(each.microseconds, key=lambda name: each.microseconds[name])
    expected = each.microseconds[chosen] / each.microseconds[fastest]
    assert fit.regret(each, start) == expected
    others = {name: time for name, time in each.microseconds.items() if name != chosen}
    without = replace(each, microseconds=others)
    second = min(others, key=lambda name: estimates[name])
    assert fit.regret(without, start) == others[second] / min(others.values())


def test_the_command_prints_constants_and_regret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MOST_ITERATIONS", 1)
    path = measured(tmp_path / "tune.json")
    assert command("fit", path) == 0
    printed = capsys.readouterr().out
    for words in (
        "cluster_latency",
        "now:    estimates off by",
        "fitted: ",
        "the fastest division",
    ):
        assert words in printed


def test_the_report_shows_estimates_against_times(tmp_path: Path) -> None:
    pictures = pytest.importorskip(
        "benchmarks.report.pictures", reason="the report needs matplotlib"
    )
    results = Results.load(measured(tmp_path / "tune.json"))
    (group,) = pictures.groups_of(results)
    assert [picture.name for picture in group.pictures] == [f"divisions-{s}" for s in SIDES]
    for picture, side in zip(group.pictures, SIDES, strict=True):
        _, *kernels = picture.figure.axes[0].get_lines()  # the first is where both are equal
        count = sum(len(line.get_xdata()) for line in kernels)
        entries = [entry for entry in results.entries if entry["side"] == side]
        assert count == sum(len(entry["subjects"]) for entry in entries)


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {"settings": {}, "machine": {}, "versions": {}, "code": {}, "absent": {}}
    Results.create(tmp_path / "cuda.json", "cuda", header)
    assert command("fit", tmp_path / "cuda.json") == 2
    assert "not a file of python -m benchmarks tune" in capsys.readouterr().err
    Results.create(tmp_path / "tune.json", "tune", {**header, "limits": H100})
    assert command("fit", tmp_path / "tune.json") == 2
    assert "nothing was timed" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("tune") == 2
    assert cuda.NO_GPU in capsys.readouterr().err


class TestOnGpu(OnGpu):
    def test_the_command_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "tune.json"
        assert command("tune", "--preset", "quick", "--hidden", 128, "--out", path) == 0
        for entry in Results.load(path).entries:
            assert len(entry["samples"]) > 5
        assert command("fit", path) == 0
