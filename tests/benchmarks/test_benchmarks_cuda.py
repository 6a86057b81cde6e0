"""The benchmarks of a GPU: what can be shown without one on stand-ins, and the rest on one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_support import Repeated, StandIn, WallEvent, command, tiny_case

from benchmarks import __main__, cuda, cuda_cases
from benchmarks import command as measuring
from benchmarks.measure import cases, clocks, timing
from benchmarks.measure.cases import Case, Limits, Preset, grid
from benchmarks.measure.device_clock import EventClock, HostClock, cuda_stopwatch
from benchmarks.measure.flops import compulsory_bytes
from benchmarks.measure.problem import DTYPES, LayerRun, Problem, products_as
from benchmarks.measure.results import Results
from benchmarks.model.limit_model import PUBLISHED
from benchmarks.peers import onnxruntime as onnx_peer
from benchmarks.peers import peer as peers
from benchmarks.sections import memory, micro
from benchmarks.sections.concurrency import ONE, TWO
from birnn_cuda import ops

SHAPE = (4, 2, 3)
TINY = Preset(
    cases={
        "layers": grid(("gru", "lstm"), (SHAPE,), ("tf32", "bf16")),
        "concurrency": grid(("lstm",), (SHAPE,), ("tf32",)),
        "lengths": grid(("gru",), (SHAPE,), ("tf32",), ("inference",)),
        "memory": [],
        "accuracy": grid(("lstm",), (SHAPE,), ("tf32", "fp32"), ("training",)),
    },
    limits=Limits(seconds=0.0, min_rounds=3, max_rounds=3, min_sample=0.0),
    compiled=(),
)
DEVICE = {
    "name": "a stand-in",
    "compute_capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 2**36,
    "l2_bytes": 2**25,
    "cuda": "13.0",
    "cudnn": 91000,
    "driver": "580",
    "max_sm_mhz": "1980 MHz",
}
HOP = {"what": "L2 data-poll hop", "pairs": 8, "clocks": 700.5, "nanoseconds": 400.0}
SMI = """
import time
while True:
    print("1755, 2619, 301.5, [N/A]", flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def play_a_gpu(monkeypatch: pytest.MonkeyPatch, command: type, preset: Preset) -> None:
    """A command for a GPU runs on the CPU, over this preset: all that is asked of a GPU is played
    but for graphs."""
    stopwatch = timing.Stopwatch(EventClock(lambda: None, WallEvent), HostClock(lambda: None))
    h100 = next(device for device in ops.known_devices() if device["name"] == "h100")
    monkeypatch.setattr(command, "presets", {"standard": preset})
    monkeypatch.setattr(command, "refusal", lambda self: None)
    monkeypatch.setattr(command, "device", "cpu")
    monkeypatch.setattr(cuda, "cuda_stopwatch", lambda: stopwatch)
    monkeypatch.setattr(cuda, "device_facts", lambda: DEVICE)
    monkeypatch.setattr(cuda, "device_name", lambda: "GPU-0")
    monkeypatch.setattr(cuda, "limits_of_this_gpu", lambda: h100)
    monkeypatch.setattr(cuda, "sampling_command", lambda device: [sys.executable, "-c", SMI])


@pytest.fixture
def tiny_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks cuda` on the CPU: events and graphs are played, all else is real."""
    play_a_gpu(monkeypatch, cuda.CudaCommand, TINY)
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    monkeypatch.setattr(peers, "GraphRun", Repeated)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)
    for name in timing.GEMM_SIZES:
        monkeypatch.setitem(timing.GEMM_SIZES, name, 16)


# What is asked for.


@pytest.mark.parametrize("preset", cuda_cases.PRESETS.values(), ids=cuda_cases.PRESETS)
def test_the_kernel_of_every_case_is_planned(preset: Preset) -> None:
    for limits in ops.known_devices():
        kernels = {cuda.planned_kernel(limits, case) for case in preset.cases["layers"]}
        assert ("none" in kernels) == (limits["compute_capability"] < 80), limits


@pytest.mark.parametrize("preset", cuda_cases.PRESETS.values(), ids=cuda_cases.PRESETS)
def test_presets_hold_every_case_once(preset: Preset) -> None:
    measurements = cuda.COMMAND.plan(preset, cuda_cases.SECTIONS, {})
    keys = [measurement.key for measurement in measurements]
    assert len(set(keys)) == len(keys)
    layers = preset.cases["layers"]
    assert {case.cell for case in layers} == set(cases.CELLS)
    assert {case.pass_name for case in layers} == set(cases.PASSES)
    assert {case.dtype for case in layers} == set(cuda_cases.DTYPES)
    assert set(cuda_cases.PERSISTENT) <= set(layers)
    assert all(preset.cases[section] for section in cuda_cases.SECTIONS)


def test_full_holds_the_whole_grid_and_the_others_are_parts_of_it() -> None:
    full = set(cuda_cases.PRESETS["full"].cases["layers"])
    for hidden_size in (128, 256, 512, 1024):
        for batch_size in (1, 8, 32, 128):
            shape = (256, batch_size, hidden_size)
            assert set(grid(cases.CELLS, [shape], ("fp16", "bf16", "fp32", "tf32"))) <= full
    for name in ("quick", "standard"):
        assert set(cuda_cases.PRESETS[name].cases["layers"]) <= full
    assert cuda_cases.PERSISTENT[0].key == "lstm/T1024-B16-I768-H768/fp16/inference/one-direction"


def test_the_expected_time_of_the_presets_fits() -> None:
    for name, minutes in (("quick", 1), ("standard", 10)):
        preset = cuda_cases.PRESETS[name]
        assert preset.budget is not None and preset.budget < 60 * minutes
        # As many seconds for the timing itself as leave half of the budget for all else.
        entries = sum(
            len(preset.cases[section]) for section in ("layers", "concurrency", "lengths")
        )
        assert entries * preset.limits.seconds < preset.budget / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cell", "sru"), "--cell sru: valid values are lstm, gru, rnn"),
        (("--dtype", "fp8"), "--dtype fp8: valid values are fp16, tf32, bf16, fp32"),
        (("--hidden", "100"), "--hidden 100: valid values are 128, 256, 512, 768, 1024"),
        (
            ("--section", "import"),
            "valid values are layers, concurrency, lengths, memory, accuracy",
        ),
        (
            ("--peer", "keras"),
            "--peer keras: valid values are birnn_cuda graph, torch.nn, torch.nn",
        ),
    ],
)
def test_an_unknown_value_lists_the_valid_ones(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    monkeypatch.setattr(cuda.CudaCommand, "refusal", lambda self: None)
    out = tmp_path / "a.json"
    assert command("cuda", "--out", out, *arguments) == __main__.REFUSED
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize(("name", "reason"), [("cuda", cuda.NO_GPU), ("micro", micro.NO_GPU)])
def test_without_a_gpu_it_says_so(
    name: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    out = tmp_path / "a.json"
    assert command(name, "--out", out) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


# A run.


@pytest.mark.usefixtures("tiny_cuda")
def test_a_run_on_stand_ins_writes_and_shows_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    assert command("cuda", "--out", out, "--seed", 5) == 0
    printed = capsys.readouterr().out
    results = Results.load(out)
    assert results.data["finished"] and results.data["command"] == "cuda"
    assert results.data["device"] == DEVICE
    assert results.data["limit_model"] == json.loads(json.dumps(dataclasses.asdict(PUBLISHED)))
    assert results.data["absent"]["jax"] == measuring.NOT_IN_THIS_PRESET
    assert CUDA_PROVIDER_REASON in results.data["absent"]["onnxruntime"]
    ways = {"birnn_cuda", "birnn_cuda graph", "torch.nn", "torch.nn graph", "torch.nn packed"}
    layers = results.section("layers")
    assert len(layers) == 8
    for entry in layers:
        assert set(entry["samples"]) == set(entry["host_samples"]) == ways
        assert entry["subjects"] == ["birnn_cuda", "birnn_cuda graph"]
        assert all(len(taken) == 3 for taken in entry["samples"].values())
        assert entry["kernel"] in printed
        assert entry["bytes"] == compulsory_bytes(Case(**entry["case"]))
    assert {name for entry in results.section("concurrency") for name in entry["samples"]} == {
        way + directions for way in ways - {"torch.nn packed"} for directions in (TWO, ONE)
    }
    seen = [entry["clocks"] for entry in results.entries if entry["clocks"]]
    assert seen and all(each["sm_mhz"] == [1755, 1755, 1755] for each in seen)
    assert all("celsius" not in each for each in seen)
    for expected in ("x torch.nn graph", "of limit", "launch us", "1755 to 1755 MHz", "Accuracy"):
        assert expected in printed


CUDA_PROVIDER_REASON = (
    f"no {onnx_peer.CUDA_PROVIDER}"
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")
    else "cannot be imported"
)


@pytest.mark.usefixtures("tiny_cuda")
def test_what_the_budget_leaves_out_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    short = dataclasses.replace(TINY, budget=0.0)
    monkeypatch.setattr(cuda.CudaCommand, "presets", {"standard": short})
    assert command("cuda", "--out", out, "--section", "accuracy") == 0
    assert "2 of 2 entries are left out" in capsys.readouterr().out
    assert not Results.load(out).data["finished"]
    monkeypatch.setattr(cuda.CudaCommand, "presets", {"standard": TINY})
    assert command("cuda", "--resume", "--out", out) == 0
    resumed = Results.load(out)
    assert resumed.data["finished"] and len(resumed.entries) == 2
    assert command("cuda", "--resume", "--out", out, "--peer", "jax") == __main__.REFUSED
    assert "leave out --peer" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_cuda")
def test_another_gpu_cannot_continue_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    assert command("cuda", "--out", out, "--section", "accuracy") == 0
    monkeypatch.setattr(cuda, "device_facts", lambda: {**DEVICE, "name": "another"})
    assert command("cuda", "--resume", "--out", out) == __main__.REFUSED
    assert "device name was a stand-in, is another" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_cuda")
def test_a_wrong_graph_is_reported_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stale(Repeated):
        def results(self, returned: Any) -> Any:
            return {name: torch.zeros_like(t) for name, t in super().results(returned).items()}

    monkeypatch.setattr(peers, "GraphRun", Stale)
    out = tmp_path / "a.json"
    assert command("cuda", "--out", out, "--section", "layers", "--cell", "gru") == 1
    for entry in Results.load(out).entries:
        assert set(entry["failed"]) == {"birnn_cuda graph", "torch.nn graph"}
        assert set(entry["samples"]) == {"birnn_cuda", "torch.nn", "torch.nn packed"}


def test_without_rich_the_same_comes_as_plain_text(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    program = (
        "import sys; sys.modules['rich'] = None\n"
        "from benchmarks import __main__, cpu, cpu_cases\n"
        "from benchmarks.measure import timing\n"
        "from benchmarks.measure.cases import Limits, Preset, grid\n"
        "timing.GEMM_SIZES['cpu'] = 16\n"
        "cases = {'layers': grid(('gru',), ((4, 2, 3),), ('fp32',))}\n"
        "cpu.CpuCommand.presets = {'standard': Preset(cases, Limits(0.0, 2, 2, 0.0))}\n"
        f"sys.exit(__main__.main(['cpu', '--out', {str(out)!r}, '--section', 'layers']))\n"
    )
    root = Path(cuda.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "2/2 layers/gru/" in done.stdout
    assert "us a step" in done.stdout and "━" not in done.stdout
    assert len(Results.load(out).entries) == 2


# Time.


def test_the_event_clock_counts_the_step_alone() -> None:
    order: list[str] = []

    class Mark(WallEvent):
        def record(self) -> None:
            order.append("mark")
            self.moment = len(order)

    clock = EventClock(lambda: order.append("flush"), Mark)
    assert clock(lambda: order.append("step"), 2) == 2.0  # from its first mark to its second
    assert order == ["step"] + ["flush", "mark", "step", "mark"] * 2
    order.clear()
    clock(lambda: order.append("step"), 1)
    assert order == ["flush", "mark", "step", "mark"]


def test_the_host_clock_begins_on_an_idle_device() -> None:
    order: list[str] = []
    HostClock(lambda: order.append("idle"))(lambda: order.append("step"), 2)
    assert order == ["idle", "step", "idle", "step", "idle"]


def test_clocks_are_recorded_between_marks() -> None:
    recorder = clocks.ClockRecorder()
    recorder.read("345, 2619, 70.1, 30\n")
    time.sleep(0.002)
    mark = time.monotonic()
    for line in ("1980, 2619, 500, 40", "1800, 2619, 600, [N/A]", "no such query", "1900,2619,,41"):
        recorder.read(line)
    assert recorder.since(mark) == {
        "sm_mhz": [1800, 1900, 1980],
        "memory_mhz": [2619, 2619, 2619],
        "watts": [500, 550, 600],
        "celsius": [40, 40.5, 41],
    }
    assert recorder.since(time.monotonic() + 1) == {}


def test_without_nvidia_smi_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with clocks.recording(["no-such-program-as-this"]) as recorder:
        assert recorder.since(0.0) == {}
    monkeypatch.setenv("PATH", "")
    assert clocks.query(["clocks.sm"]) == {}


def test_bytes_by_hand() -> None:
    # GRU, T=3, B=2, I=5, H=7: x 30, y 84, weights 2 x 21 x (5 + 7 + 2) = 588; 702 elements.
    case = Case("gru", 3, 2, 5, 7, "inference", "fp16")
    assert compulsory_bytes(case) == 2 * 702
    assert (
        compulsory_bytes(dataclasses.replace(case, pass_name="training", dtype="tf32")) == 8 * 702
    )
    assert compulsory_bytes(case.one_direction()) == 2 * (30 + 42 + 294)


def test_fp32_is_rounded_to_tf32_in_tf32_alone() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    with products_as("tf32"):
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32
        with products_as("fp32"):
            assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 == before


# The microbenchmarks' command.


CHIP = {"device": "a chip"}


@pytest.mark.parametrize(
    ("printed", "status", "errors", "shown"),
    [
        ([CHIP, HOP], 0, [], "pairs 8"),
        (
            [CHIP, HOP, {"error": "barrier: 3 wrong values"}],
            1,
            ["barrier: 3 wrong values"],
            "3 wrong",
        ),
        ([{"error": "no device: oops"}], 1, ["no device: oops"], "no device: oops"),
        (["Segmentation fault"], 1, ["no JSON: Segmentation fault"], "no JSON: Segmentation fault"),
        ([CHIP, HOP], 139, ["exit status 139"], "exit status 139"),
    ],
)
def test_micro_runs_its_program_and_keeps_what_it_prints(
    printed: Any,
    status: int,
    errors: list[str],
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "program"
    out = tmp_path / "micro.json"
    lines = [line if isinstance(line, str) else json.dumps(line) for line in printed]
    program.write_text(
        f"#!{sys.executable}\nfor line in {lines!r}: print(line)\nraise SystemExit({status})\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(micro.shutil, "which", lambda name: name)
    monkeypatch.setattr(micro, "compile_programs", lambda sources, architecture: [program])
    monkeypatch.setattr(micro, "product_nanoseconds", lambda: 4500)
    assert command("micro", "--out", out) == int(status != 0)
    assert shown in capsys.readouterr().out
    report = micro.load(out)
    assert report["errors"] == errors
    assert report.get("device") == ("a chip" if CHIP in printed else None)
    product = {"what": "host enqueues a product", "nanoseconds": 4500}
    assert report["results"] == [line for line in printed if line == HOP] + [product] * (not errors)


def test_micro_keeps_what_came_before_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written after every line, while the program is still running."""
    program, out = tmp_path / "program", tmp_path / "micro.json"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, time\n"
        f"print({json.dumps(HOP)!r}, flush=True)\n"
        f"path = pathlib.Path({str(out)!r})\n"
        "while not path.exists(): time.sleep(0.01)\n"
        "seen = len(json.loads(path.read_text())['results'])\n"
        "print(json.dumps({'what': 'read back', 'seen': seen}))\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(micro.shutil, "which", lambda name: name)
    monkeypatch.setattr(micro, "compile_programs", lambda sources, architecture: [program])
    monkeypatch.setattr(micro, "product_nanoseconds", lambda: 4500)
    assert command("micro", "--out", out) == 0
    assert micro.load(out)["results"][1] == {"what": "read back", "seen": 1}


# On a GPU.

gpu = [
    pytest.mark.gpu,
    pytest.mark.seconds(60),  # packages of peers are imported, some compile
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class OnGpu:
    pytestmark = gpu


class TestOnGpu(OnGpu):
    """The parts that stand-ins played above."""

    @pytest.mark.parametrize(
        "peer",
        # The others take up to minutes to compile; like all they are checked before each timing.
        [peer for peer in cuda.COMMAND.all_peers() if not peer.compiles],
        ids=lambda peer: peer.name,
    )
    @pytest.mark.parametrize("pass_name", cases.PASSES)
    def test_every_peer_that_is_there_is_right(self, peer: peers.Peer, pass_name: str) -> None:
        case = Case("lstm", 6, 8, 64, 64, pass_name, "tf32")
        reason = peer.absent() or peer.declines(case)
        if reason is not None:
            pytest.skip(f"{peer.name}: {reason}")
        with products_as(case.dtype):
            problem = Problem.random(case, random.getrandbits(32), device="cuda")
            run = peer.build(problem)
            run.step()
            assert problem.check(run.results(run.step())).reason is None

    def test_a_graph_computes_anew_in_every_replay(self) -> None:
        problem = Problem.random(Case("gru", 5, 4, 32, 32, "training", "fp16"), 1, device="cuda")
        run = LayerRun(torch.nn, problem, DTYPES["fp16"])
        graph = peers.GraphRun(run)
        returned = graph.step()
        assert problem.check(graph.results(returned)).reason is None
        for tensor in graph.results(returned).values():
            tensor.fill_(float("nan"))
        assert problem.check(graph.results(returned)).reason is not None
        assert problem.check(graph.results(graph.step())).reason is None

    def test_both_clocks_run(self) -> None:
        stopwatch = cuda_stopwatch()
        square = torch.rand(64, 64, device="cuda")
        assert stopwatch.clock(lambda: square @ square, 3) > 0
        assert stopwatch.host_clock is not None
        assert stopwatch.host_clock(lambda: square @ square, 3) > 0

    def test_the_device_is_described(self) -> None:
        facts = cuda.device_facts()
        assert facts["name"] == torch.cuda.get_device_name()
        assert facts["l2_bytes"] > 0 and facts["memory_bytes"] > 0
        assert json.loads(json.dumps(facts)) == facts
        assert cuda.planned_kernel(cuda.limits_of_this_gpu(), tiny_case(dtype="fp16")) != "none"

    def test_memory_counts_what_a_call_takes(self) -> None:
        size = 2**24

        def call() -> torch.Tensor:
            scratch = torch.empty(3 * size, dtype=torch.int8, device="cuda")
            return scratch[:size].clone()

        assert memory.growth(call, torch.cuda.max_memory_allocated) == (4 * size, size)
        assert memory.growth(call, torch.cuda.memory_allocated) == (size, size)

    def test_the_command_runs(self, tmp_path: Path) -> None:
        out = tmp_path / "a.json"
        sections = ("layers", "memory", "accuracy")  # make gpu-check runs them all, after the tests
        cases = ("--cell", "lstm", "--hidden", 256, "--dtype", "fp16", "--pass", "training")
        arguments = ("--preset", "quick", "--section", *sections, *cases)
        assert command("cuda", "--out", out, *arguments) == 0
        results = Results.load(out)
        assert results.data["device"]["name"] == torch.cuda.get_device_name()
        assert {entry["section"] for entry in results.entries} == set(sections)
        for entry in results.section("memory"):
            assert all(kept > 0 for kept in entry["kept"].values())
