"""replace_rnns on the networks of three published packages: same outputs and gradients, and times.

    make real-models        (or: pip install --no-deps -r requirements/real-models.txt, then)
    python examples/replace_in_packages.py

Each network is built as its package builds it, with random weights. It runs forward and backward
with torch.nn's layers, then again with its recurrent layers replaced, from one seed: in fp64 to
compare every output and every gradient, in fp32 for the time. The exit status is 1 if they differ.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import birnn_cuda

TOLERANCE = 1e-9  # of relative errors in fp64


class Case(NamedTuple):
    """A network of a package, and a batch for it."""

    package: str
    network: str
    build: Callable[[], nn.Module]
    make_inputs: Callable[[], tuple[Tensor, ...]]


class Result(NamedTuple):
    """What a case gave."""

    layers: list[str]  # that were replaced
    output_error: float
    gradient_error: float
    milliseconds: tuple[float, float]  # torch.nn, birnn_cuda: forward and backward


def speech_enhancement() -> Case:
    """Demucs for speech: convolutions around a bidirectional LSTM of two layers, time first."""
    network = import_module("denoiser.demucs").Demucs
    return Case(
        "denoiser 0.1.5",
        "Demucs(hidden=24, causal=False)",
        lambda: network(hidden=24, causal=False),
        lambda: (torch.randn(4, 1, 16000),),
    )


def translation() -> Case:
    """The encoder of a translation network: a bidirectional GRU over packed sentences."""
    network = import_module("joeynmt.encoders").RecurrentEncoder

    def make_inputs() -> tuple[Tensor, ...]:
        lengths = torch.randint(5, 51, (32,)).sort(descending=True).values
        lengths[0] = 50
        mask = torch.arange(50) < lengths.unsqueeze(1)
        return torch.randn(32, 50, 128), lengths, mask.unsqueeze(1)

    return Case(
        "joeynmt 2.3.0",
        "RecurrentEncoder('gru', 128, 2 layers)",
        lambda: network(rnn_type="gru", hidden_size=128, emb_size=128, num_layers=2, dropout=0.1),
        make_inputs,
    )


def graphs() -> Case:
    """Jumping knowledge: for each node a bidirectional LSTM over what the layers made of it."""
    network = import_module("torch_geometric.nn").GCN
    return Case(
        "torch-geometric 2.8.1",
        "GCN(64, 64, 4 layers, jk='lstm')",
        lambda: network(64, 64, 4, out_channels=8, jk="lstm"),
        lambda: (torch.randn(2000, 64), torch.randint(0, 2000, (2, 8000))),
    )


CASES = {"denoiser": speech_enhancement, "joeynmt": translation, "torch-geometric": graphs}


def run(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of inputs and weights; dropout from one seed."""
    torch.manual_seed(1)
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    result = model(*leaves)
    outputs = [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]
    outputs = [x for x in outputs if x.requires_grad]
    loss = sum((x.square().mean() for x in outputs), torch.zeros((), device=inputs[0].device))
    operands = [x for x in (*leaves, *model.parameters()) if x.requires_grad]
    return outputs, list(torch.autograd.grad(loss, operands, materialize_grads=True))


def largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The greatest relative error of a whole tensor; infinite if there is a NaN."""
    errors = [
        ((a - e).norm() / e.norm().clamp(min=1e-30)).item()
        for a, e in zip(actual, expected, strict=True)
    ]
    return max((error if error == error else float("inf") for error in errors), default=0.0)


def compare(case: Case, repeats: int, device: torch.device) -> Result:
    """Replace the layers of the case's network, and compare before with after."""
    torch.manual_seed(0)
    theirs = case.build().to(device)
    inputs = [x.to(device) for x in case.make_inputs()]
    before = {name: type(module) for name, module in theirs.named_modules()}
    ours = birnn_cuda.replace_rnns(copy.deepcopy(theirs))
    layers = [
        f"{name or '(itself)'}: {type(module).__name__}"
        for name, module in ours.named_modules()
        if type(module) is not before[name]
    ]

    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    outputs, gradients = run(copy.deepcopy(ours).double(), exact)
    expected_outputs, expected_gradients = run(copy.deepcopy(theirs).double(), exact)

    seconds: tuple[list[float], list[float]] = ([], [])
    for round in range(repeats + 1):  # one round to warm up
        for model, times in zip((theirs, ours), seconds, strict=True):
            start = time.perf_counter()
            run(model, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round > 0:
                times.append(time.perf_counter() - start)
    theirs_ms, ours_ms = (1e3 * statistics.median(times) for times in seconds)
    return Result(
        layers,
        largest_error(outputs, expected_outputs),
        largest_error(gradients, expected_gradients),
        (theirs_ms, ours_ms),
    )


def report(results: Sequence[tuple[Case, Result]]) -> Table:
    table = Table(
        "package", "network", "replaced", "torch.nn", "birnn_cuda", "outputs", "gradients"
    )
    table.columns[3].justify = table.columns[4].justify = "right"
    for case, result in results:
        before, after = result.milliseconds
        table.add_row(
            case.package,
            case.network,
            "\n".join(result.layers) or "nothing",
            f"{before:.1f} ms",
            f"{after:.1f} ms ({before / after:.2f}x)",
            f"{result.output_error:.0e}",
            f"{result.gradient_error:.0e}",
        )
    return table


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main_parser.add_argument(
        "package", nargs="*", metavar="package", help=f"of {', '.join(CASES)} (default: all)"
    )
    main_parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: 5)")
    main_parser.add_argument("--device", type=torch.device, default="cpu", help="(default: cpu)")
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    main_parser = parser()
    arguments: Any = main_parser.parse_args(argv)
    for name in arguments.package:
        if name not in CASES:
            main_parser.error(f"no case {name!r}: choose from {', '.join(CASES)}")
    if arguments.repeats < 1:
        main_parser.error(f"--repeats must be at least 1, got {arguments.repeats}")
    results = []
    for name in arguments.package or CASES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what other packages have to say of themselves
                case = CASES[name]()
        except ImportError as error:
            main_parser.error(
                f"{error}: pip install --no-deps -r requirements/real-models.txt (make real-models)"
            )
        results.append((case, compare(case, arguments.repeats, arguments.device)))
    console = Console(width=max(Console().width, 132))  # the table is as wide
    console.print(report(results))
    console.print("Times: forward and backward of the whole network in fp32, median. Errors: fp64.")
    failed = [
        case.network
        for case, result in results
        if not result.layers or max(result.output_error, result.gradient_error) > TOLERANCE
    ]
    if failed:
        console.print(f"DIFFERENT: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
