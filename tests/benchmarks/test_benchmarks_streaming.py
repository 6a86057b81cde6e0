"""Sections streaming and busy: what is fed, counted and shown, and that nobody is left alive."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="the benchmarks print by rich")

from benchmark_support import StandIn, command, fake_results

from benchmarks import command as measuring
from benchmarks import cpu, cpu_cases
from benchmarks.measure import child, streams, timing
from benchmarks.measure.cases import CELLS, Case, Limits, Preset
from benchmarks.measure.child import ChildError, Neighbour
from benchmarks.measure.flops import compulsory_bytes, flops
from benchmarks.measure.problem import LayerRun, Problem
from benchmarks.measure.results import Results
from benchmarks.measure.streams import CellRun, Stream, StreamRun
from benchmarks.peers.onnxruntime import OnnxPeer
from benchmarks.peers.peer import counterpart, is_subject
from benchmarks.report import compare, metrics, readme, table
from benchmarks.sections import busy
from benchmarks.sections.busy import NEIGHBOURS, SECOND, SPINNING

LIMITS = Limits(seconds=0.0, min_rounds=2, max_rounds=2, min_sample=0.0)


def stream_case(cell: str = "lstm", steps: int = 1, **options: Any) -> Case:
    return Case(cell, steps, 3, 5, 6, "inference", **{"bidirectional": False, **options})


# What is fed.


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 3}])
def test_the_states_are_carried(cell: str, options: dict[str, Any]) -> None:
    """Chunk after chunk has the answer of the whole, where a layer reads in one direction."""
    stream = Stream.begin(stream_case(cell, 2, **options), random.getrandbits(32))
    run = StreamRun(torch.nn, stream, torch.float32)
    assert stream.check(run.results(run.step())).reason is None
    whole = run.module(stream.input, stream.states if len(stream.states) > 1 else stream.states[0])[
        0
    ]
    carried = stream.answer["output"]
    if options.get("bidirectional"):
        assert not torch.allclose(whole.double(), carried, atol=1e-3)
    else:
        torch.testing.assert_close(whole.double(), carried, atol=1e-5, rtol=0)


def test_a_layer_that_forgets_its_state_is_wrong() -> None:
    stream = Stream.begin(stream_case(), 3)

    class Forgetful(StreamRun):
        def step(self) -> Any:
            self.states = tuple(torch.zeros_like(state) for state in self.states)
            return super().step()

    run = Forgetful(torch.nn, stream, torch.float32)
    assert "wrong output" in (stream.check(run.results(run.step())).reason or "")


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_fed_the_same_stream(cell: str) -> None:
    stream = Stream.begin(stream_case(cell), random.getrandbits(32))
    run = CellRun(torch.nn, stream, torch.float32)
    assert stream.check(run.results(run.step())).reason is None
    again = run.results(run.step())  # goes on from there
    assert stream.check(again).reason is not None
    assert streams.is_one_cell(stream.case)
    for options in ({"steps": 2}, {"num_layers": 2}, {"bidirectional": True}):
        assert not streams.is_one_cell(stream_case(cell, **options))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_onnxruntime_carries_its_states(cell: str, bidirectional: bool, num_layers: int) -> None:
    peer = OnnxPeer()
    if (reason := peer.absent()) is not None:
        pytest.skip(reason)
    stream = Stream.begin(
        stream_case(cell, 2, bidirectional=bidirectional, num_layers=num_layers), 5
    )
    run = peer.build_stream(stream)
    assert stream.check(run.results(run.step())).reason is None
    torchs = StreamRun(torch.nn, stream, torch.float32)
    torchs.results(torchs.step())
    theirs, expected = run.results(run.step()), torchs.results(torchs.step())  # go on from there
    assert theirs.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


def test_layers_above_each_other_are_counted() -> None:
    # One direction: each layer of I = H costs the same; of two directions those above read 2*H.
    one = Case("gru", 4, 3, 8, 8, "inference", bidirectional=False)
    assert flops(dataclasses.replace(one, num_layers=3)) == 3 * flops(one)
    two = dataclasses.replace(one, bidirectional=True)
    above = 2 * 2 * 4 * 3 * 3 * 8 * (16 + 8)  # both directions, 12 rows, 24 gate rows
    assert flops(dataclasses.replace(two, num_layers=2)) == flops(two) + above
    weights = 2 * 24 * (16 + 8 + 2) * 4
    assert (
        compulsory_bytes(dataclasses.replace(two, num_layers=2)) == compulsory_bytes(two) + weights
    )
    problem = Problem.random(dataclasses.replace(two, num_layers=2), 1)
    run = LayerRun(torch.nn, problem, torch.float32)
    assert problem.check(run.results(run.step())).reason is None
    assert dataclasses.replace(one, num_layers=3).key.endswith("/one-direction/3-layers")


@pytest.mark.parametrize(("preset", "cells"), [("quick", 2), ("standard", 3), ("full", 3)])
def test_every_preset_streams(preset: str, cells: int) -> None:
    chosen = cpu_cases.PRESETS[preset].cases["streaming"]
    assert len(set(chosen)) == len(chosen)
    assert len({case.cell for case in chosen}) == cells
    assert {case.num_layers for case in chosen} == {1, 3}
    assert {case.num_directions for case in chosen} == {1, 2}
    assert not any(case.training for case in chosen)
    if preset != "quick":
        assert {case.seq_len for case in chosen} == {1, 2, 4, 16}
        assert {case.batch_size for case in chosen} == {1, 4}
        assert {case.hidden_size for case in chosen} == {64, 128, 256, 512, 1024}


# What is counted.


def test_percentiles() -> None:
    samples = [float(value) for value in range(1, 201)]
    random.shuffle(samples)
    assert timing.percentile(samples, 50) == 100
    assert timing.percentile(samples, 99) == 198
    assert timing.percentile([7.0], 99) == timing.percentile([7.0], 0) == 7


def test_every_call_is_timed_alone() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    limits = Limits(seconds=0.0, min_rounds=4, max_rounds=4, min_sample=1e-9)
    repeats, calls = timing.interleave_calls(steps, random.Random(0), limits)
    assert all([len(taken) for taken in calls[name]] == [repeats] * 4 for name in "ab")
    assert order.count("a") == order.count("b") == 6 + 4 * (1 + repeats)  # an untimed one first


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks cpu` on tiny streams."""
    preset = Preset(
        cases={
            "streaming": [
                stream_case("gru"),
                stream_case("lstm", 2, bidirectional=True),
                stream_case("rnn", num_layers=3),
            ],
            "busy": [Case("gru", 4, 2, 3, 3, "inference")],
        },
        limits=LIMITS,
        streaming=LIMITS,
        busy=LIMITS,
    )
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    monkeypatch.setattr(cpu.CpuCommand, "presets", {"standard": preset})
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


@pytest.mark.usefixtures("tiny")
def test_streams_are_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    assert command("cpu", "--out", out, "--section", "streaming") == 0
    results = Results.load(out)
    assert results.data["finished"]
    cell, two, deep = results.section("streaming")
    with_onnx = OnnxPeer().absent() is None
    assert {"birnn_cuda", "birnn_cuda cell", "torch.nn", "torch.nn cell"} <= set(cell["samples"])
    assert cell["subjects"] == ["birnn_cuda", "birnn_cuda cell"]
    for entry in (two, deep):
        assert list(entry["samples"])[:1] == ["birnn_cuda"]
        assert not any(name.endswith(" cell") for name in entry["samples"])
    if with_onnx:
        assert "onnxruntime" in two["samples"] and "onnxruntime" in deep["samples"]
    for entry in (cell, two, deep):
        assert entry["failed"] == {}
        for name, taken in entry["samples"].items():
            calls = entry["calls"][name]
            assert len(taken) == LIMITS.min_rounds
            assert calls["count"] == LIMITS.min_rounds * entry["repeats"]
            assert 0 < calls["p50"] <= calls["p99"]
    shown = table.streaming(results.section("streaming"), results)
    assert [row[0] for row in shown.rows] == [
        "gru, 1 direction",
        "gru, 1 direction",
        "lstm",
        "rnn, 1 direction, 3 layers",
    ]
    assert [row[4] for row in shown.rows] == ["layer", "cell", "layer", "layer"]
    printed = capsys.readouterr().out
    for expected in ("as fast as torch.nn in streaming (geometric mean of 3", "streaming by cells"):
        assert expected in printed
    assert len(compare.compare(results, results).changes) == 4


@pytest.mark.usefixtures("tiny")
def test_a_busy_machine_is_measured_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = recorded(monkeypatch)
    out = tmp_path / "a.json"
    assert command("cpu", "--out", out, "--section", "busy") == 0
    (entry,) = Results.load(out).entries
    names = [name + beside for name in ("birnn_cuda", "torch.nn") for beside in ("", *NEIGHBOURS)]
    assert list(entry["samples"]) == names and entry["failed"] == {}
    assert entry["subjects"] == names[:3]
    assert len(begun) == 3 and all(process.poll() is not None for process in begun)
    assert "beside a process that spins (geometric mean of 1" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_run_leaves_no_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = recorded(monkeypatch)

    def interrupted(step: Any, repeats: int) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(busy, "wall_seconds", interrupted)
    arguments = ("--out", tmp_path / "a.json", "--section", "busy")
    assert command("cpu", *arguments) == measuring.INTERRUPTED
    assert len(begun) == 3 and all(process.poll() is not None for process in begun)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The neighbours that are begun."""
    begun: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if busy.CHILD[1] in self.args:
                begun.append(self)

    monkeypatch.setattr(child.subprocess, "Popen", Recorded)
    return begun


def test_a_neighbour_that_fails_says_why() -> None:
    with (
        pytest.raises(ChildError, match="No module named 'no_such_layers'"),
        Neighbour("-c", "import no_such_layers") as neighbour,
    ):
        neighbour.rest_when_ready()


STATES = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def state_of(pid: int) -> str:
    """R, S or T (stopped), Z (ended), as proc(5) has it; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def awaited(pid: int, states: str) -> str:
    """The state, once it is one of these: a signal takes its time."""
    for _ in range(1000):
        if (state := state_of(pid)) in states:
            return state
        time.sleep(0.005)
    return state


@STATES
def test_a_neighbour_works_only_when_it_is_let_to() -> None:
    with Neighbour("-m", "benchmarks.sections.busy_child", "spin") as neighbour:
        neighbour.rest_when_ready()
        pid = neighbour.process.pid
        assert awaited(pid, "T") == "T"
        with neighbour.at_work():
            assert awaited(pid, "R") == "R"
        assert awaited(pid, "T") == "T"
    assert state_of(pid) == ""


@STATES
@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_neighbour_ends_with_a_parent_that_is_killed() -> None:
    program = """
import time
from benchmarks.measure.child import Neighbour
with Neighbour("-m", "benchmarks.sections.busy_child", "spin") as neighbour:
    neighbour.rest_when_ready()
    print(neighbour.process.pid, flush=True)
    time.sleep(600)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert awaited(pid, "T") == "T"
        parent.send_signal(signal.SIGKILL)
    assert awaited(pid, "Z") in ("", "Z")


# What is shown.


def streaming_entry(case: Case, seconds: dict[str, float]) -> dict[str, Any]:
    """Made up: a call in a hundred takes ten times as long."""
    return {
        "key": f"streaming/{case.key}",
        "section": "streaming",
        "unit": "seconds",
        "case": case.as_dict(),
        "subjects": [name for name in seconds if is_subject(name)],
        "control": "torch.nn",
        "failed": {},
        "skipped": {},
        "samples": {name: [value, value] for name, value in seconds.items()},
        "calls": {
            name: {"count": 200, "p50": value, "p99": 10 * value} for name, value in seconds.items()
        },
    }


def busy_entry(case: Case, factors: tuple[float, float]) -> dict[str, Any]:
    samples = {}
    for name, alone, times in (("birnn_cuda", 1e-3, 1.0), ("torch.nn", 2e-3, 3.0)):
        samples[name] = [alone, 2 * alone]
        for neighbour, factor in zip(NEIGHBOURS, factors, strict=True):
            samples[name + neighbour] = [alone * factor * times, 2 * alone * factor * times]
    return {
        "key": f"busy/{case.key}",
        "section": "busy",
        "unit": "seconds",
        "case": case.as_dict(),
        "subjects": [name for name in samples if name.startswith("birnn_cuda")],
        "control": None,
        "failed": {},
        "samples": samples,
    }


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    entries = []
    for hidden in (64, 128):
        for steps in (1, 4):
            case = Case("gru", steps, 1, hidden, hidden, "inference", bidirectional=False)
            seconds = {"birnn_cuda": 1e-5 * steps, "torch.nn": 3e-5 * steps, "onnxruntime": 2e-5}
            if streams.is_one_cell(case):
                seconds |= {"birnn_cuda cell": 1e-5, "torch.nn cell": 2e-5}
            entries.append(streaming_entry(case, seconds))
    entries.append(busy_entry(Case("lstm", 50, 1, 64, 64, "inference"), (1.5, 2.0)))
    machine = {
        "cpu": "a made-up processor",
        "cores": 4,
        "threads": 4,
        "capability": "AVX2",
        "load_average": 0.0,
    }
    code = {"commit": None, "modified": None, "digest": "0"}
    return fake_results(
        tmp_path / "a.json", entries, created="1970-01-01", machine=machine, code=code
    )


def test_means_of_streams_and_beside_others(made_up: Path) -> None:
    results = Results.load(made_up)
    assert metrics.geometric_means(results) == [
        " 3.00 x as fast as torch.nn in streaming (geometric mean of 4 cases, worst 3.00)",
        " 1.00 x as fast as onnxruntime in streaming (geometric mean of 4 cases, worst 0.50)",
        " 2.00 x as fast as torch.nn in streaming by cells (geometric mean of 2 cases, worst 2.00)",
        *(
            f" 6.00 x as fast as torch.nn in inference{neighbour} "
            "(geometric mean of 1 cases, worst 6.00)"
            for neighbour in (SPINNING, SECOND)
        ),
    ]
    assert counterpart("torch.nn cell") == "birnn_cuda cell" and is_subject("birnn_cuda cell")


def test_the_tables_of_streams_and_of_a_busy_machine(made_up: Path) -> None:
    results = Results.load(made_up)
    shown = table.streaming(results.section("streaming"), results)
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    assert [(row["T"], row["H"], row["by"]) for row in rows] == [
        ("1", "64", "layer"),
        ("1", "64", "cell"),
        ("4", "64", "layer"),
        ("1", "128", "layer"),
        ("1", "128", "cell"),
        ("4", "128", "layer"),
    ]
    assert rows[2]["birnn_cuda, p50 us"] == "40.0" and rows[2]["birnn_cuda, p99 us"] == "400.0"
    assert rows[2]["x torch.nn"] == "3.00" and rows[2]["x onnxruntime"] == "0.50"
    assert rows[1]["torch.nn, p50 us"] == "20.0" and rows[1]["x torch.nn"] == "2.00"
    assert rows[1]["onnxruntime, p50 us"] == rows[1]["x onnxruntime"] == table.NONE
    shown = table.busy(results.section("busy"), results)
    spinning, second = (dict(zip(shown.columns, row, strict=True)) for row in shown.rows)
    assert spinning["beside"] == "a process that spins"
    assert (spinning["birnn_cuda, ms alone"], spinning["birnn_cuda, ms busy"]) == ("1.50", "2.25")
    assert (spinning["birnn_cuda, factor"], spinning["torch.nn, factor"]) == ("1.50", "4.50")
    assert second["birnn_cuda, factor"] == "2.00" and second["x torch.nn, busy"] == "6.00"
    text = readme.of_streams(results)
    assert "a made-up processor" in text and "| gru, 1 direction | 1 | 1 | 64 | layer |" in text


def test_the_page_holds_streams_and_neighbours(made_up: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report draws by matplotlib")
    from benchmarks.report import pictures

    assert command("report", made_up, "--out", tmp_path / "page") == 0
    names = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert names == {
        "streaming-p50-fp32-gru",
        "streaming-p99-fp32-gru",
        "busy-lstm-T50-B1-I64-H64-fp32-inference",
    }
    results = Results.load(made_up)
    p99 = pictures.streaming(results).pictures[1].figure.axes[0]
    drawn = sorted((*line.get_ydata(), line.get_linestyle()) for line in p99.lines)
    assert drawn == [
        (pytest.approx(level), pytest.approx(level), style)
        for level, style in ((100, "-"), (300, "--"), (400, "-"), (1200, "--"))
    ]
