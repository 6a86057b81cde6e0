"""``python -m birnn_cuda``: what is built here, and which kernel a shape would run and why."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from typing import Any

import torch

from . import __version__, ops

_CELLS = ("tanh", "relu", "gru", "lstm")
_VARIANTS = ("gru_reset_before", "lstm_peepholes")  # of plain numbers alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        rows = _plan(options) if options.command == "plan" else _information()
    except ValueError as error:
        parser.error(str(error))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m birnn_cuda", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    plan = commands.add_parser("plan", help="which kernel a shape would run, and why")
    plan.add_argument("--cell", choices=(*_CELLS, *_VARIANTS), default="lstm")
    plan.add_argument("--input", type=_positive, default=128, help="features of the input")
    plan.add_argument("--hidden", type=_positive, default=128, help="features of the state")
    plan.add_argument("--batch", type=_positive, default=32, help="sequences")
    plan.add_argument("--steps", type=_positive, default=128, help="steps of a sequence")
    plan.add_argument("--directions", type=int, choices=(1, 2), default=2)
    plan.add_argument(
        "--dtype", choices=("float32", "float64", "float16", "bfloat16"), default="float32"
    )
    plan.add_argument("--proj", type=int, default=0, help="features of an LSTM's projected state")
    plan.add_argument(
        "--device",
        choices=("cpu", "cuda", *_known_devices()),
        help="the CPU, this machine's GPU, or a GPU by name; default: cuda where there is one",
    )
    plan.add_argument("--precision", choices=("ieee", "tf32"), default="ieee", help="of float32")
    plan.add_argument("--kernel", default="", help="this kernel and no other (GPU)")
    plan.add_argument("--inference", action="store_true", help="keep nothing for backward")
    plan.add_argument(
        "--captured", action="store_true", help="for a CUDA graph, not an eager call (GPU)"
    )
    plan.add_argument("--lengths", action="store_true", help="sequences of different lengths (GPU)")
    plan.add_argument(
        "--resets", action="store_true", help="several sequences in a row, one after another (GPU)"
    )
    plan.add_argument(
        "--recurrent-dropout",
        type=_probability,
        default=0.0,
        metavar="P",
        help="of h before its product, in training (GPU)",
    )
    plan.add_argument(
        "--zoneout",
        type=_probability,
        default=0.0,
        metavar="P",
        help="of a unit keeping its state (GPU)",
    )
    plan.add_argument("--layer-norm", action="store_true", help="a layer-normalised GRU or LSTM")
    return parser


def _known_devices() -> dict[str, dict[str, Any]]:
    return {device["name"]: device for device in ops.known_devices()}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, got {value}")
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
    size = f"H={options.hidden}" + (f", P={options.proj}" if options.proj else "")
    shape = (
        f"{options.cell}, T={options.steps}, B={options.batch}, I={options.input}, {size}, "
        f"{options.directions} direction(s), {options.dtype}, "
        f"{'inference' if options.inference else 'training'}, {device}"
    )
    if options.captured and device != "cpu":
        shape += ", captured in a CUDA graph"
    if options.layer_norm and options.cell not in ("gru", "lstm"):
        raise ValueError(f"--layer-norm is for gru and lstm, got {options.cell}")
    if device == "cpu":
        info = ops.build_info()
        # float64 is computed by the kernels' sets of float32.
        instruction_set = info[f"cpu_{options.dtype.replace('float64', 'float32')}"]
        if options.cell in _VARIANTS and options.dtype != "float64":
            instruction_set, options.dtype = info["cpu_float32"], "float32"
        if instruction_set.startswith("none"):
            instruction_set = info["cpu_float32"]
        compute = {
            "float64": "float64",
            "float32": "float32",
            "float16": "weights stay in float16, all else is float32",
            "bfloat16": "weights stay in bfloat16, cell and sums are float32",
        }[options.dtype]
        kernel = f"cpu, {instruction_set}"
        reason = f"the tensors are on the CPU; computes in {compute}"
        return [("shape", shape), ("kernel", kernel), ("because", reason)]
    if device == "cuda":
        if ops.build_info()["cuda_version"] is None:
            reason = "this build has no CUDA kernels: a CUDA tensor raises an error"
            return [("shape", shape), ("kernel", "none"), ("because", reason)]
        limits = limits_of_this_gpu()
    else:
        limits = _known_devices()[device]
    if options.layer_norm:
        return [("shape", shape), ("device", _describe(limits)), *_plan_of_layer_norm(options)]
    plan = ops.plan(
        limits,
        cell=options.cell,
        dtype=options.dtype,
        seq_len=options.steps,
        batch_size=options.batch,
        input_size=options.input,
        hidden_size=options.hidden,
        proj_size=options.proj,
        num_directions=options.directions,
        precision=options.precision,
        training=not options.inference,
        lengths=options.lengths,
        resets=options.resets,
        recurrent_dropout=options.recurrent_dropout > 0 and not options.inference,
        zoneout=options.zoneout > 0,
        captured=options.captured,
        kernel=options.kernel,
    )
    rows = [("shape", shape), ("device", _describe(limits)), ("residency", plan["residency"])]
    for name in ("forward", "backward"):
        if plan[name] is not None:
            rows += _describe_pass(name, plan[name])
    rows.append(("reserve", f"{plan['reserve_bytes'] / 2**20:.1f} MiB"))
    return rows


def _plan_of_layer_norm(options: argparse.Namespace) -> list[tuple[str, str]]:
    if options.kernel not in ("", "stepwise"):
        raise ValueError(
            f'kernel "{options.kernel}" does not take a layer-normalised cell: stepwise does'
        )
    reason = (
        "a norm needs all sums of a sequence before its cell reads one, and the kernels that keep "
        "the recurrence on the chip share those out: a library product and one kernel a step, a "
        "block to a sequence; computes in float64 if the dtype is that, else in float32"
    )
    launches = {"forward": 2 * options.steps, "backward": 2 * options.steps + 1}
    if options.inference:
        del launches["backward"]
    rows = []
    for name, count in launches.items():
        rows += [
            (name, "stepwise"),
            (f"{name} because", reason),
            (f"{name} launches", f"{count} in each direction, library products included"),
        ]
    return rows


def _describe_pass(name: str, plan: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, plan["kernel"]),
        (f"{name} because", plan["reason"]),
        (f"{name} launches", f"{plan['launches']} in each direction, library products included"),
        (f"{name} grid", f"{plan['ctas']} blocks of {plan['threads']} threads in each direction"),
        (f"{name} workspace", f"{plan['workspace_bytes'] / 2**20:.1f} MiB"),
    ]


def limits_of_this_gpu() -> dict[str, Any]:
    """What `ops.plan` needs to know of the current device. ValueError where there is none."""
    if not torch.cuda.is_available():
        raise ValueError(
            f"this machine has no GPU; name one, such as --device {', '.join(_known_devices())}"
        )
    if ops.build_info()["cuda_version"] is None:
        raise ValueError("this build of birnn_cuda has no CUDA kernels")
    return ops.extension.device_limits(torch.cuda.current_device())


def _describe(limits: dict[str, Any]) -> str:
    capability = limits["compute_capability"]
    return (
        f"{limits['name']}, sm_{capability}, {limits['num_multiprocessors']} SMs, "
        f"{limits['shared_bytes_per_block'] / 2**10:.0f} KiB shared memory a block, "
        f"clusters of {limits['max_cluster_size']}, {limits['memory_bytes'] / 1e9:.0f} GB"
    )


if __name__ == "__main__":
    raise SystemExit(main())
