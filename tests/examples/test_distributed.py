"""examples/segment_chinese_distributed.py: two processes do what one does, and survive a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import relative_error
from test_example import write_corpus  # which also finds the examples

import birnn_cuda

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import segment_chinese_distributed as job  # noqa: E402

SMALL = ["--hidden-size", "8", "--embedding-size", "8", "--batch-characters", "100"]
STEPS = 16
PACKAGE = str(Path(birnn_cuda.__file__).parents[1])


def arguments(folder, name, **options):
    given = ["--corpus", str(folder / "corpus.tar.gz"), "--dropout", "0", *SMALL]
    given += ["--checkpoints", str(folder / name), "--model", str(folder / f"{name}.pt")]
    for option, value in {"checkpoint_every": 4, **options}.items():
        given += [f"--{option.replace('_', '-')}", str(value)]
    return given


def launch(given, errors):
    """The job on two processes of this machine, by torchrun, which writes to the file `errors`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *torchrun, EXAMPLES / "segment_chinese_distributed.py", *given],
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PACKAGE},
    )


def losses_in(text):
    """By step: the loss and the norm of the gradient."""
    found = re.findall(r"^step (\d+) loss (\S+) gradient (\S+)$", text, re.M)
    return {int(step): (float(loss), float(norm)) for step, loss, norm in found}


def assert_same_losses(actual, expected, steps):
    assert sorted(actual) == list(steps)
    for step in steps:
        assert actual[step] == pytest.approx(expected[step], rel=1e-4), f"step {step}"


def kill_workers(run):
    """As a machine that goes down: no process of the job can do anything any more."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.long
def test_two_processes_killed_and_resumed(tmp_path, capsys):
    """DDP until a kill, FSDP2 from its checkpoint on; losses and weights are one process's."""
    write_corpus(tmp_path)
    assert job.main(arguments(tmp_path, "single")) == 0
    expected = losses_in(capsys.readouterr().out)
    assert sorted(expected) == list(range(1, STEPS + 1))

    errors = tmp_path / "errors"
    with launch(arguments(tmp_path, "shared", parallel="ddp"), errors) as run:
        lines = []
        for line in run.stdout:
            lines.append(line)
            if line.startswith("step 6 "):
                kill_workers(run)
                break
        lines += run.stdout
    assert run.returncode != 0 and "Signal 9" in errors.read_text()
    before = losses_in("".join(lines))
    assert_same_losses(before, expected, range(1, len(before) + 1))
    assert not (tmp_path / "shared.pt").exists()

    last = max(int(path.parent.name) for path in (tmp_path / "shared").glob("*/.metadata"))
    assert 4 <= last < STEPS
    with launch(arguments(tmp_path, "shared", parallel="fsdp"), errors) as run:
        output = run.stdout.read()
    assert run.returncode == 0, errors.read_text()
    assert f"fsdp on 2 process(es), cpu: steps {last + 1} to {STEPS}" in output
    assert_same_losses(losses_in(output), expected, range(last + 1, STEPS + 1))

    single, shared = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)["weights"]
        for name in ("single", "shared")
    )
    assert list(single) == list(shared)
    for name, weight in single.items():
        assert relative_error(shared[name], weight) < 1e-3, name  # Adam divides by small numbers

    # One process goes on where two stopped: here with nothing left to do.
    assert job.main(arguments(tmp_path, "shared")) == 0
    assert f"steps {STEPS + 1} to {STEPS}" in capsys.readouterr().out


def test_resumed_with_dropout(tmp_path, capsys):
    """The masks of a step depend on the seed and the step alone."""
    write_corpus(tmp_path)
    runs = []
    for every in (STEPS, 5):
        given = arguments(tmp_path, f"every{every}", checkpoint_every=every, dropout=0.5)
        assert job.main(given) == 0
        runs.append(losses_in(capsys.readouterr().out))
    assert runs[0] == runs[1]
    (tmp_path / "every5" / f"{STEPS:07d}" / ".metadata").unlink()  # as if it were not complete
    assert job.main(arguments(tmp_path, "every5", checkpoint_every=5, dropout=0.5)) == 0
    assert_same_losses(losses_in(capsys.readouterr().out), runs[0], [STEPS])


def test_what_is_refused(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path)

    def refusal(**options):
        assert job.main(arguments(tmp_path, "refused", **options)) == job.REFUSED
        return capsys.readouterr().err

    for parallel in ("ddp", "fsdp"):
        assert "needs torchrun: torchrun --nproc-per-node=2" in refusal(parallel=parallel)
    assert "--dropout must be at least 0 and less than 1, got 1.0" in refusal(dropout=1)
    assert "--learning-rate must be greater than 0, got -1.0" in refusal(learning_rate=-1)
    assert "too few paragraphs" in refusal(paragraphs=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--parallel none is for one process" in refusal(parallel="none")
    monkeypatch.delenv("WORLD_SIZE")
    assert job.main(arguments(tmp_path, "refused", epochs=1)) == 0
    message = refusal(hidden_size=9)
    assert "is not a checkpoint of this training" in message and "--checkpoints" in message
