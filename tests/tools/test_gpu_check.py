"""The command behind ``make gpu-check``, as far as a machine without a GPU can show it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gpu_check
import gpu_progress
import pytest
import torch
from benchmark_support import fake_entry, fake_results, tiny_case
from gpu_check import NOT_RUN, Part

import build
from benchmarks.measure import nvcc
from benchmarks.sections import micro

SCRIPT = Path(gpu_check.__file__)


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
    assert sum(part.seconds for part in gpu_check.PARTS) < 9 * 60
    assert len(gpu_check.OUTPUTS) <= 8


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


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
        Part("hanging", 5, python(hang)),
        Part("lacking", 30, python(f"print('note: no tool'); raise SystemExit({NOT_RUN})")),
        Part(
            "fine",
            30,
            (*python("import sys; open(sys.argv[1] + '/device.json', 'w').write('{}')"), "OUT"),
        ),
    ]
    assert gpu_check.run_parts(parts, out, "abc") == 1
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
        "hanging": ("timed out", "killed after 5 s; half way"),
        "lacking": ("not run", "no tool"),
        "fine": ("ok", ""),
    }
    printed = capsys.readouterr().out
    assert "so it was" in printed
    assert all(part.name in printed.split("result")[-1] for part in parts)
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
        "assert not summary['complete'] and len(summary['parts']) == 1\n"
        "assert not os.path.exists(sys.argv[1] + '/micro.json')\n"
    )
    parts = [Part("one", 30, python("pass")), Part("two", 30, (*python(check), "OUT"))]
    assert gpu_check.run_parts(parts, out, None) == 0
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


def test_a_test_that_hangs_or_breaks_the_device_costs_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_one.py").write_text(SUITE)
    (tmp_path / "test_two.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "test_three.py").write_text("def test_other(): pass\n")
    groups = [[str(tmp_path / f"test_{name}.py")] for name in ("one", "two", "three")]
    options = [f"--rootdir={tmp_path}", "--confcutdir", str(tmp_path)]
    record = tmp_path / "tests.jsonl"
    found = gpu_progress.run_tests(groups, record, 500, options, seconds_of_a_test=3)
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


def test_the_time_of_all_tests_is_kept(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import time, pytest\n"
        "@pytest.mark.parametrize('i', range(1000))\n"
        "def test_slow(i): time.sleep(0.5)\n"
    )
    options = [f"--rootdir={tmp_path}", "--confcutdir", str(tmp_path)]
    groups, record = [[str(tmp_path / "test_slow.py")]], tmp_path / "tests.jsonl"
    for seconds in (5, 20, 80, 320):  # on a busy machine pytest starts late
        found = gpu_progress.run_tests(groups, record, seconds, options)
        if len(found) > 1:
            break
    assert 1 < len(found) < 1000
    assert [entry["outcome"] for entry in found.values()][-1] == "out of time"


def test_the_cases_of_a_program_that_fails_are_run_alone(tmp_path: Path) -> None:
    program = tmp_path / "cases"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "names = sys.argv[1:]\n"
        "if names == ['list']: print('good bad fine')\n"
        "else: sys.exit(int(not names or 'bad' in names))\n"
    )
    program.chmod(0o700)
    assert gpu_check.run_cases(program, []) == ["cases: bad"]


def test_the_commit_is_found() -> None:
    commit = gpu_check.find_commit()
    if not (gpu_check.ROOT / ".git").exists():
        assert commit is None
    else:
        assert commit is not None and len(commit.split()[0]) == 40


def test_the_last_part_measures_and_notes_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.PARTS[-1].name == "cuda"
    commands = []

    def run(command: Sequence[str]) -> int:
        commands.append(list(command)[1:])
        if "cuda" in command:
            entry = fake_entry("layers/a", [1e-3, 1e-3], [2e-3, 2e-3])
            entry["case"] = tiny_case().as_dict()
            fake_results(tmp_path / "cuda.json", [entry], command="cuda")
        else:
            micro.save(tmp_path / "micro.json", {"results": [{}, {}], "errors": []})
        return 0

    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.part_cuda(tmp_path) == gpu_check.part_micro(tmp_path) == 0
    out = ["--out", str(tmp_path / "cuda.json")]
    assert commands[0] == ["-m", "benchmarks", "cuda", "--preset", "quick", *out]
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
