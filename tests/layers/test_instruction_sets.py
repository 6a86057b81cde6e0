"""Every instruction set that this machine has computes what the others do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# A process for each set, which is chosen once; what they import, which takes longer than what they
# compute, is imported before they part.
PROGRAM = """
import dataclasses, itertools, os, sys
import pytest, torch, torch.fx.experimental.symbolic_shapes
import birnn_cuda, properties
from property_cases import PLAIN
from conftest import CELLS, call, make_layer

seed, quantized, *names = sys.argv[1:]
for name in names:
    child = os.fork()
    if child == 0:
        os.environ["BIRNN_CPU_ISA"] = name
        break
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(name)
else:
    sys.exit()

assert birnn_cuda.ops.build_info()["cpu_instruction_set"] == name
torch.manual_seed(int(seed))
# Steps, sequences, features, units: below, at and above tiles of rows, words and panels.
sizes = [(3, 1, 7, 9), (3, 2, 40, 33), (2, 16, 64, 32), (3, 19, 33, 37)]
for cell, dtype, (T, B, I, H) in itertools.product(
    CELLS, (torch.float32, torch.bfloat16, torch.float16), sizes
):
    if cell == "relu" and B * H > 100:
        continue  # of few numbers can it be asked that none lies near relu's kink
    if dtype != torch.bfloat16 and cell != "gru":
        continue  # differs from float32 by its loads, or not at all
    lengths = [T, *torch.randint(0, T + 1, (B - 1,)).tolist()]
    case = dataclasses.replace(
        PLAIN,
        cell=cell, dtype=dtype, seq_len=T, batch_size=B, input_size=I, hidden_size=H,
        lengths=tuple(lengths), used_outputs=(True, True, cell.startswith("lstm")),
        seed=int(torch.randint(2**31, ())),
    )
    try:
        properties.check(case)
    except AssertionError as error:
        raise AssertionError(f"{case}") from error
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--seed", seed,
                      quantized, os.path.join(os.path.dirname(quantized), "test_variants.py"),
                      "-k", "test_values and (gru or proj or peepholes) or depends_on"]))
"""
HERE = Path(__file__).parent
QUANTIZED = str(HERE / "test_quantized.py")


def run(name: str | None, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **({} if name is None else {"BIRNN_CPU_ISA": name}),
            "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent), str(HERE.parent.parent))),
        },
    )


def available() -> list[str]:
    """The error of a set that does not exist names those that do."""
    result = run("none", "import birnn_cuda; birnn_cuda.ops.build_info()")
    found = re.search(r'BIRNN_CPU_ISA is "none", which this machine does not have; it has (.*)',
                      result.stderr)  # fmt: skip
    assert found and result.returncode == 1, result.stderr
    assert "ValueError" in result.stderr
    return found[1].split(", ")


@pytest.mark.long
def test_every_set(seed):
    names = available()
    assert names[0] == "baseline"
    # The best one runs in all other tests.
    result = run(None, PROGRAM, str(seed), QUANTIZED, *names[:-1])
    assert result.returncode == 0, f"{result.stdout[-3000:]}{result.stderr[-3000:]}"
    assert result.stdout.count(" passed") == len(names) - 1


def test_the_command_names_the_set():
    result = subprocess.run(
        [sys.executable, "-m", "birnn_cuda"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "BIRNN_CPU_ISA": "baseline"},
    )
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert rows["build: cpu_instruction_set"].strip() == "baseline"
    assert rows["build: cpu_int8"].strip() == "baseline"
    assert rows["build: cpu_float16"].strip() == "none, computed in float32"


@pytest.mark.parametrize("name", ["AVX2", "sse"])
def test_a_set_that_cannot_be_had(name):
    code = "import torch, birnn_cuda; birnn_cuda.GRU(2, 3)(torch.zeros(1, 1, 2))"
    result = run(name, code)
    assert result.returncode == 1
    assert f'BIRNN_CPU_ISA is "{name}"' in result.stderr and "baseline" in result.stderr
