"""The package as a whole: the command line, what importing it costs, a missing extension."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import birnn_cuda
from birnn_cuda.__main__ import main

ROOT = Path(__file__).parents[2]


def printed_rows(capsys):
    return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())


def test_information(capsys):
    assert main([]) == 0
    rows = {name: value.strip() for name, value in printed_rows(capsys).items()}
    assert rows["birnn_cuda"] == birnn_cuda.__version__
    assert rows["torch"] == torch.__version__
    assert rows["device: cpu"] == f"{torch.get_num_threads()} threads"
    assert any(name.startswith("build: ") for name in rows)


def test_as_a_program():
    command = [sys.executable, "-m", "birnn_cuda", "plan", "--cell", "gru", "--hidden", "512"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "gru" in result.stdout and "H=512" in result.stdout


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_plan_on_the_cpu(capsys, dtype):
    assert main(["plan", "--cell", "tanh", "--device", "cpu", "--dtype", dtype]) == 0
    rows = printed_rows(capsys)
    assert rows["kernel"].strip().startswith("cpu")
    assert rows["because"].endswith("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize(
    "arguments", [["--cell", "cnn"], ["--hidden", "0"], ["--hidden", "x"], ["--directions", "3"]]
)
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as info:
        main(["plan", *arguments])
    assert info.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_missing_extension_says_how_to_build():
    code = "import sys; sys.modules['birnn_cuda._C'] = None; import birnn_cuda"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "pip install --no-build-isolation" in last


def test_importing_brings_in_nothing_heavy():
    """Nothing of torch that `import torch` leaves out but a few small modules."""
    code = (
        "import sys, torch; before = set(sys.modules); import birnn_cuda; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    added = [name for name in result.stdout.split() if not name.startswith("birnn_cuda")]
    heavy = ("torch._dynamo", "torch._inductor", "torch.fx.experimental", "sympy", "numpy")
    assert not [name for name in added if name.startswith(heavy)]


def test_public_names():
    assert all(hasattr(birnn_cuda, name) for name in birnn_cuda.__all__)
    assert (Path(birnn_cuda.__file__).parent / "py.typed").exists()
