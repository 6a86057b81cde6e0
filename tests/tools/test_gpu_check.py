"""The command behind ``make gpu-check``, as far as a machine without a GPU can show it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_check
import gpu_parts
import gpu_progress
import gpu_stand_in
import pytest
import torch
from benchmark_support import fake_entry, fake_results, tiny_case
from gpu_device import Device
from gpu_runner import NOT_RUN, Part, run_parts

import build
from benchmarks.measure import nvcc
from benchmarks.sections import micro

SCRIPT = Path(gpu_check.__file__)
OUTPUTS = gpu_check.OUTPUTS


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60
    )


def test_unknown_part_is_refused_by_name() -> None:
    result = run_script("--parts", "device,conformence")
    assert result.returncode == 2
    assert "no part named conformence" in result.stderr
    assert all(part.name in result.stderr for part in gpu_check.PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    result = run_script("--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == gpu_check.NO_GPU + "."
    assert not (tmp_path / "out").exists()


def test_parts_keep_their_order() -> None:
    assert [part.name for part in gpu_check.chosen_parts("micro, build device")] == [
        "device",
        "build",
        "micro",
    ]
    assert gpu_check.chosen_parts("") == gpu_check.PARTS


def test_all_parts_together_fit_the_time_and_the_files() -> None:
    """On the way that takes longest, each part until it is killed."""
    ends: dict[str, float] = {}
    for part in gpu_check.PARTS:
        ends[part.name] = part.seconds + max((ends[name] for name in part.after), default=0)
    assert max(ends.values()) < 9 * 60
    assert len(OUTPUTS) <= 8


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.long
def test_neither_a_failure_nor_a_hang_stops_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    grandchild = tmp_path / "pid"
    hang = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(grandchild)!r}, 'w').write(str(child.pid))\n"
        "print('note: half way', flush=True)\n"
        "time.sleep(600)\n"
    )
    parts = [
        Part("failing", 30, python("print('so it was'); raise SystemExit(3)")),
        Part("hanging", 8, python(hang)),
        Part("lacking", 30, python(f"print('note: no tool'); raise SystemExit({NOT_RUN})")),
        Part(
            "fine",
            30,
            (*python("import sys; open(sys.argv[1] + '/device.json', 'w').write('{}')"), "OUT"),
            after=("failing", "lacking"),
        ),
        Part("spoilt", 30, python("pass"), after=("failing",), needs=("failing",)),
    ]
    assert run_parts(parts, out, "abc", OUTPUTS) == 1
    pid = int(grandchild.read_text())
    for _ in range(50):
        if not is_running(pid):
            break
        time.sleep(0.1)
    assert not is_running(pid)

    summary = json.loads((out / "summary.json").read_text())
    assert summary["commit"] == "abc" and summary["complete"]
    assert {part["name"]: (part["status"], part["note"]) for part in summary["parts"]} == {
        "failing": ("failed", ""),
        "hanging": ("timed out", "killed after 8 s; half way"),
        "lacking": ("not run", "no tool"),
        "fine": ("ok", ""),
        "spoilt": ("not run", "failing is failed"),
    }
    printed = capsys.readouterr().out
    assert "so it was" in printed
    assert all(part.name in printed.split("result")[-1] for part in parts)
    assert "failing| so it was\n" in (out / "log.txt").read_text()
    files = sorted(path.name for path in out.iterdir())
    assert files == ["device.json", "log.txt", "summary.json"]


def test_summary_is_there_after_each_part(tmp_path: Path) -> None:
    """A part sees what became of those before it; and what an earlier run left is gone."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "micro.json").write_text("stale")
    check = (
        "import json, os, sys\n"
        "summary = json.load(open(sys.argv[1] + '/summary.json'))\n"
        "assert not summary['complete'] and summary['parts'][0]['status'] == 'ok'\n"
        "assert not os.path.exists(sys.argv[1] + '/micro.json')\n"
    )
    parts = [
        Part("one", 30, python("pass")),
        Part("two", 30, (*python(check), "OUT"), after=("one",)),
    ]
    assert run_parts(parts, out, None, OUTPUTS) == 0
    assert json.loads((out / "summary.json").read_text())["complete"]


SUITE = """
import os, sys, time
import pytest, torch

def test_before(): pass

@pytest.mark.parametrize("kernel", ["grid", "block", "cluster"])
@pytest.mark.parametrize("size", [1, 2])
def test_kernels(kernel, size):
    if kernel == "grid": time.sleep(600)

def test_wrong(): assert 1 == 2, "as it was meant to"

def test_breaks_the_device(monkeypatch):
    torch.cuda.is_initialized = lambda: True
    def synchronize(): raise RuntimeError("an illegal memory access")
    torch.cuda.synchronize = synchronize
    raise RuntimeError("an illegal memory access was encountered")

def test_ends_the_process(): os._exit(134)

def test_lacks_something(): pytest.skip("not here")

def test_after(): pass
"""


@pytest.mark.long
def test_a_test_that_hangs_or_breaks_the_device_costs_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_one.py").write_text(SUITE)
    (tmp_path / "test_two.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "test_three.py").write_text("def test_other(): pass\n")
    options = [str(tmp_path), f"--rootdir={tmp_path}", "--confcutdir", str(tmp_path)]
    record = tmp_path / "tests.jsonl"
    monkeypatch.setattr(gpu_progress, "SECONDS_OF_A_TEST", 3.0)
    found = gpu_progress.run_tests(options, record, 600, processes=1)
    found = {Path(name.split("::")[-1]).name: entry for name, entry in found.items()}
    outcomes = {name: entry["outcome"] for name, entry in found.items()}
    assert outcomes == {
        "test_before": "passed",
        "test_kernels[1-grid]": "hung",
        "test_kernels[1-block]": "passed",
        "test_kernels[1-cluster]": "passed",
        "test_kernels[2-grid]": "left out",
        "test_kernels[2-block]": "passed",
        "test_kernels[2-cluster]": "passed",
        "test_wrong": "failed",
        "test_breaks_the_device": "failed",
        "test_ends_the_process": "failed",
        "test_lacks_something": "skipped",
        "test_after": "passed",
        "test_other": "passed",
        "test_two.py": "failed",
    }
    errors = {name: entry.get("error") for name, entry in found.items()}
    assert "as it was meant to" in errors["test_wrong"]
    assert (
        "the device answers no more: an illegal memory access" in errors["test_breaks_the_device"]
    )
    assert errors["test_ends_the_process"] == "ended its process with status 134"
    assert errors["test_kernels[2-grid]"] == "the kernel grid hung before"
    assert "a_module_that_is_not_there" in errors["test_two.py"]
    assert "test_kernels[1-block] PASSED" in capfd.readouterr().out


def test_processes_share_the_tests(tmp_path: Path) -> None:
    """Each is run by one of them, once, and the fixtures of a module serve it throughout."""
    (tmp_path / "test_many.py").write_text(
        "import os, time, pytest\n"
        "made = []\n"
        "@pytest.fixture(scope='module')\n"
        "def shared(): made.append(1)\n"
        "@pytest.mark.parametrize('i', range(30))\n"
        "def test_many(i, shared):\n"
        "    assert len(made) == 1\n"
        "    time.sleep(0.05)\n"
    )
    (tmp_path / "test_more.py").write_text("def test_more(): pass\n")
    options = [str(tmp_path), f"--rootdir={tmp_path}", "--confcutdir", str(tmp_path)]
    record = tmp_path / "tests.jsonl"
    found = gpu_progress.run_tests(options, record, 600, processes=3)
    assert len(found) == 31
    assert {entry["outcome"] for entry in found.values()} == {"passed"}
    begun = [entry["test"] for entry in gpu_progress.read(record) if "since" in entry]
    assert sorted(begun) == sorted(found)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [
        ".jsonl",
        ".py",
        ".py",
    ]


class Clock:
    """In the place of the module time: it stands still until something has happened, then runs."""

    def __init__(self, happened: Callable[[], bool]) -> None:
        self.happened, self.now = happened, 0.0
        self.sleep, self.time = time.sleep, time.time

    def monotonic(self) -> float:
        if self.happened():
            self.now += 1000.0
        return self.now


def test_the_time_of_all_tests_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import time, pytest\n"
        "@pytest.mark.parametrize('i', range(100))\n"
        "def test_slow(i): time.sleep(0.5)\n"
    )
    record = tmp_path / "tests.jsonl"
    # It is over while the fourth test runs.
    clock = Clock(lambda: sum("since" in entry for entry in gpu_progress.read(record)) > 3)
    monkeypatch.setattr(gpu_progress, "time", clock)
    options = [str(tmp_path / "test_slow.py"), f"--rootdir={tmp_path}", "--confcutdir"]
    found = gpu_progress.run_tests([*options, str(tmp_path)], record, 500, processes=1)
    assert 3 < len(found) < 100
    assert [entry["outcome"] for entry in found.values()][-1] == "out of time"


@pytest.mark.long
def test_each_case_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cases"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "list) echo good bad stuck fine;;\n"
        "stuck) exec sleep 600;;\n"
        "bad) exit 1;;\n"
        "esac\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(gpu_parts, "SECONDS_OF_A_CASE", 5.0)
    record = tmp_path / "conformance.jsonl"
    bad = gpu_parts.run_cases([(program, [])], record)
    assert sorted(bad) == ["cases: bad failed", "cases: stuck hung"]
    outcomes = {entry["case"]: entry["outcome"] for entry in gpu_progress.read(record)}
    assert outcomes == {
        "cases: good": "ok",
        "cases: bad": "failed",
        "cases: stuck": "hung",
        "cases: fine": "ok",
    }


def test_an_extension_is_taken_for_the_same_sources_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    (tmp_path / "birnn_cuda").mkdir()
    built = tmp_path / "_C.cpython.so"
    built.write_bytes(b"code")
    archive = tmp_path / "extension.tar.gz"
    gpu_parts.pack_extension(archive, [built], "these")
    assert not gpu_parts.unpack_extension(archive, "others")
    assert not gpu_parts.unpack_extension(tmp_path / "absent", "these")
    assert list((tmp_path / "birnn_cuda").iterdir()) == []
    assert gpu_parts.unpack_extension(archive, "these")
    assert (tmp_path / "birnn_cuda" / built.name).read_bytes() == b"code"
    archive.write_bytes(archive.read_bytes()[:40])
    assert not gpu_parts.unpack_extension(archive, "these")


def test_the_key_of_a_build_follows_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_device

    monkeypatch.setattr(gpu_device, "ROOT", tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "csrc" / "a.cpp").write_text("1")
    keys = [Device().build_key("9.0a"), Device().build_key("9.0a"), Device().build_key("8.0")]
    (tmp_path / "csrc" / "a.cpp").write_text("2")
    keys.append(Device().build_key("9.0a"))
    assert keys[0] == keys[1] and len(set(keys)) == 3


# ---- the whole, on a stand-in for the GPU


def stand_in(tmp_path: Path, speed: float) -> tuple[list[str], dict[str, str]]:
    """A command and its environment: everything so much faster than on a GPU, and limits that a
    machine with much other work keeps, too."""
    environment = gpu_stand_in.environment(10.0, (), 10 * speed)
    environment["BIRNN_STAND_IN_FOLDER"] = str(tmp_path / "stand-in")
    return [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")], environment


def parts_of(out: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((out / "summary.json").read_text())
    return {part["name"]: part for part in summary["parts"]}


@pytest.mark.long
def test_the_whole_leaves_all_files_and_times_alone(tmp_path: Path) -> None:
    command, environment = stand_in(tmp_path, 1000.0)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    parts = parts_of(out)
    assert {part["status"] for part in parts.values()} == {"ok"}
    assert f"{gpu_stand_in.ENTRIES} entries" in parts["cuda"]["note"]
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    cases = gpu_progress.read(out / "conformance.jsonl")
    assert [case["outcome"] for case in cases] == ["ok"] * (3 * (gpu_stand_in.CASES // 3))
    tests = gpu_progress.results(gpu_progress.read(out / "tests.jsonl"))
    assert len(tests) == 3 * (gpu_stand_in.TESTS // 3)
    # What is timed has the device to itself.
    begun = {name: part["begun"] for name, part in parts.items()}
    ended = {name: part["begun"] + part["seconds"] for name, part in parts.items()}
    for name, others in (("micro", ("conformance",)), ("cuda", ("micro", "conformance"))):
        assert all(ended[other] <= begun[name] for other in others)
    assert all(begun[name] >= ended["cuda"] for name in ("tests", "sanitizer"))


@pytest.mark.long
def test_an_entry_that_hangs_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in gpu_stand_in.environment(1.0, ["entry:3", "entry:5"], 1000.0).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "cuda.json"

    written_by_the_dead, real = set(), gpu_parts.measure

    def measure(command: Sequence[str], path: Path) -> int | None:
        status = real(command, path)
        written_by_the_dead.add(path.stat().st_mtime_ns)
        return status

    def hangs() -> bool:
        if not path.exists() or path.stat().st_mtime_ns in written_by_the_dead:
            return False
        return json.loads(path.read_text()).get("running") in ("entry 3", "entry 5")

    monkeypatch.setattr(gpu_parts, "measure", measure)
    monkeypatch.setattr(gpu_parts, "time", Clock(hangs))
    monkeypatch.setattr(gpu_parts, "notes_of", lambda path: "")
    assert gpu_parts.part_cuda(tmp_path) == 1
    assert "2 hung" in capfd.readouterr().out.split("note: ")[-1]
    data = json.loads((tmp_path / "cuda.json").read_text())
    assert data["finished"] and data["stopped_at"] == ["entry 3", "entry 5"]
    assert len(data["entries"]) == gpu_stand_in.ENTRIES - 2


@pytest.mark.long
@pytest.mark.parametrize("moment", range(3))
def test_what_has_ended_is_on_disk_whenever_all_is_killed(
    tmp_path: Path, seed: int, moment: int
) -> None:
    command, environment = stand_in(tmp_path, 30.0)
    after = random.Random(f"{seed} {moment}").uniform(0, 7)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.kill()
        assert process.stdout is not None
        said = process.stdout.read().decode().splitlines()
    ended = [line.split(": ")[0] for line in said if ": ok, " in line]
    if not any(line.endswith(" ...") for line in said):
        return
    parts = parts_of(tmp_path / "out")
    assert [parts[name]["status"] for name in ended] == ["ok"] * len(ended)
    files = {"device": "device.json", "build": "extension.tar.gz", "cuda": "cuda.json"}
    files |= {"micro": "micro.json", "tests": "tests.jsonl", "conformance": "conformance.jsonl"}
    for name in ended:
        assert name == "sanitizer" or (tmp_path / "out" / files[name]).stat().st_size > 0
    for name in ("device.json", "micro.json", "cuda.json"):
        if (tmp_path / "out" / name).exists():
            json.loads((tmp_path / "out" / name).read_text())


def test_the_commit_is_found() -> None:
    commit = gpu_check.find_commit()
    if not (gpu_check.ROOT / ".git").exists():
        assert commit is None
    else:
        assert commit is not None and len(commit.split()[0]) == 40


def test_the_benchmarks_note_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def measure(command: Sequence[str], path: Path) -> int:
        commands.append(list(command)[1:])
        entry = fake_entry("layers/a", [1e-3, 1e-3], [2e-3, 2e-3])
        entry["case"] = tiny_case().as_dict()
        fake_results(path, [entry], command="cuda")
        return 0

    def run(command: Sequence[str]) -> int:
        micro.save(tmp_path / "micro.json", {"results": [{}, {}], "errors": []})
        return 0

    monkeypatch.setattr(gpu_parts, "measure", measure)
    monkeypatch.setattr(gpu_parts, "run", run)
    assert gpu_parts.part_cuda(tmp_path) == gpu_parts.part_micro(tmp_path) == 0
    out = ["--out", str(tmp_path / "cuda.json")]
    assert commands == [["-m", "benchmarks", "cuda", *out, "--preset", "quick"]]
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith("note: 1 entries; 2.00 x as fast as torch.nn in training")
    assert notes[1] == "note: 2 figures"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_micro_compiles(tmp_path: Path) -> None:
    command = [*nvcc.command((9, 0)), "-cubin", "--Werror=all-warnings"]
    command += [str(micro.SOURCE), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert os.path.getsize(tmp_path / "out") > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
def test_micro_is_right_under_the_emulator(variant: str) -> None:
    """What it times is a correct exchange, or its figures mean nothing."""
    program = build.program(gpu_check.ROOT / "tests" / "kernels" / "micro.cu", variant)
    cases = ["cluster_of_2", "l2"] if variant == "thread" else []
    for seed, order in enumerate(["shuffle", "skew"] if variant == "plain" else ["shuffle"]):
        result = build.run(program, *cases, order=order, seed=seed + 1)
        assert result.returncode == 0, result.stdout[-6000:]
        assert "ok\n" in result.stdout
