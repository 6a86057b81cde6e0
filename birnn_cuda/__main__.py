"""``python -m birnn_cuda``: what is built here, and which kernel a shape would run and why."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence

import torch

from . import __version__, ops


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    rows = _plan(options) if options.command == "plan" else _information()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m birnn_cuda", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    plan = commands.add_parser("plan", help="which kernel a shape would run, and why")
    plan.add_argument("--cell", choices=("tanh", "relu", "gru", "lstm"), default="lstm")
    plan.add_argument("--input", type=_positive, default=128, help="features of the input")
    plan.add_argument("--hidden", type=_positive, default=128, help="features of the state")
    plan.add_argument("--batch", type=_positive, default=32, help="sequences")
    plan.add_argument("--steps", type=_positive, default=128, help="steps of a sequence")
    plan.add_argument("--directions", type=int, choices=(1, 2), default=2)
    plan.add_argument(
        "--dtype", choices=("float32", "float64", "float16", "bfloat16"), default="float32"
    )
    plan.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    plan.add_argument("--inference", action="store_true", help="keep nothing for backward")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _information() -> list[tuple[str, str]]:
    rows = [
        ("birnn_cuda", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
    ]
    rows += [(f"build: {name}", str(value)) for name, value in ops.build_info().items()]
    rows.append(("device: cpu", f"{torch.get_num_threads()} threads"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        rows.append(
            (
                f"device: cuda:{index}",
                f"{device.name}, sm_{device.major}{device.minor}, "
                f"{device.multi_processor_count} SMs, {device.total_memory / 2**30:.0f} GiB",
            )
        )
    return rows


def _plan(options: argparse.Namespace) -> list[tuple[str, str]]:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = (
        f"{options.cell}, T={options.steps}, B={options.batch}, I={options.input}, "
        f"H={options.hidden}, {options.directions} direction(s), {options.dtype}, "
        f"{'inference' if options.inference else 'training'}, {device}"
    )
    if device == "cpu":
        compute = "float32" if options.dtype in ("float16", "bfloat16") else options.dtype
        kernel = f"cpu, {ops.build_info().get('cpu_instruction_set', 'portable')}"
        reason = f"the tensors are on the CPU; computes in {compute}"
    else:
        kernel = "none"
        reason = "this build has no CUDA kernels: a CUDA tensor raises an error"
    return [("shape", shape), ("kernel", kernel), ("because", reason)]


if __name__ == "__main__":
    raise SystemExit(main())
