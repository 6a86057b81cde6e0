"""replace_rnns on the networks of published packages: outputs, gradients and times, in one table.

    make real-models        (or, in an environment with torch and birnn_cuda:)
    python examples/replace_in_packages.py --install FOLDER

`published_networks.py` builds each network as its package builds it. It runs with torch.nn's layers
and with its recurrent layers replaced, from one seed: in fp64 to compare every output, in training
and in inference, and every gradient; in fp32 for the times, turn by turn. What could not be
installed or imported is named. The exit status is 1 if a network differs or could not be compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import invalidate_caches, metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from figures_page import processor, write_between
from published_networks import CASES, Case
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

import birnn_cuda

TOLERANCE = 1e-9  # of relative errors in fp64
ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "real-models.txt"
BEGIN = "<!-- make real-models: from here -->"
END = "<!-- make real-models: to here -->"


class Pair(NamedTuple):
    """What was measured with torch.nn's layers and with this package's: medians in milliseconds."""

    torch_nn: float
    birnn_cuda: float

    def __str__(self) -> str:
        return f"{self.torch_nn:.1f} / {self.birnn_cuda:.1f}"

    @property
    def ratio(self) -> float:
        return self.torch_nn / self.birnn_cuda


class Result(NamedTuple):
    """What a case gave."""

    layers: list[str]  # that were replaced
    output_error: float
    gradient_error: float
    inference: Pair
    training: Pair  # forward and backward
    share: float  # of torch.nn's inference that its recurrent layers take


def tensors(result: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a result, however deep they lie."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict):
        yield from tensors(list(result.values()))
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors(part)


def converted(inputs: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The inputs on a device, in a dtype if they are floating-point."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, dtype if inputs.is_floating_point() else None)
    if isinstance(inputs, list | tuple):
        return type(inputs)(converted(x, device, dtype) for x in inputs)
    return inputs


def train(model: nn.Module, inputs: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of inputs and weights; dropout from one seed."""
    torch.manual_seed(1)
    leaves = [
        x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    outputs = [x for x in tensors(model.train()(*leaves)) if x.requires_grad]
    loss = sum((x.square().mean() for x in outputs), torch.zeros((), dtype=outputs[0].dtype))
    operands = [x for x in tensors(leaves) if x.requires_grad]
    operands += [x for x in model.parameters() if x.requires_grad]
    return outputs, list(torch.autograd.grad(loss, operands, materialize_grads=True))


def infer(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    with torch.inference_mode():
        return list(tensors(model.eval()(*inputs)))


def largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The greatest relative error of a whole tensor; infinite if there is a NaN.

    What should be zero is rounding errors alone (the gradient of a bias before a normalization),
    so that none counts as smaller than 1e-4 of the largest.
    """
    floor = 1e-4 * max((e.norm().item() for e in expected), default=0.0)
    errors = [
        ((a - e).norm() / e.norm().clamp(min=floor + 1e-300)).item()
        for a, e in zip(actual, expected, strict=True)
    ]
    return max((error if error == error else float("inf") for error in errors), default=0.0)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """For tensors that a network makes itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def median_times(
    calls: Sequence[Callable[[], Any]], rounds: int, device: torch.device
) -> list[float]:
    """Milliseconds of each, one after the other in every round; a round to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for round in range(rounds + 1):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round > 0:
                mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


@contextmanager
def timed_layers(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """The milliseconds of each call of a recurrent layer of torch.nn, as they come."""
    started: list[float] = []
    times: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * time.perf_counter()

    def begin(*_: Any) -> None:
        started.append(now())

    def end(*_: Any) -> None:
        times.append(now() - started.pop())

    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    hooks = [layer.register_forward_pre_hook(begin) for layer in layers]
    hooks += [layer.register_forward_hook(end) for layer in layers]
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def share_of_layers(model: nn.Module, inputs: Any, rounds: int, device: torch.device) -> float:
    """How much of an inference is spent in recurrent layers, the median of the rounds."""
    shares = []
    for _ in range(rounds):
        with timed_layers(model, device) as times:
            [whole] = median_times([partial(infer, model, inputs)], 1, device)
        shares.append(sum(times[len(times) // 2 :]) / whole)  # without the round to warm up
    return statistics.median(shares)


def compare(case: Case, rounds: int, device: torch.device) -> Result:
    """Replace the layers of the case's network, and compare before with after."""
    models = []
    for _ in range(2):  # not a copy: some networks cannot be copied
        torch.manual_seed(0)
        models.append(case.build().to(device))
    theirs, ours = models
    inputs = case.make_inputs()
    before = {name: type(module) for name, module in theirs.named_modules()}
    ours = birnn_cuda.replace_rnns(ours)
    layers = [
        f"{name or '(itself)'}: {type(module).__name__}"
        for name, module in ours.named_modules()
        if type(module) is not before[name]
    ]

    theirs.double(), ours.double()
    exact = converted(inputs, device, torch.float64)
    with default_dtype(torch.float64):
        inferred = largest_error(infer(ours, exact), infer(theirs, exact))
        outputs, gradients = train(ours, exact)
        expected_outputs, expected_gradients = train(theirs, exact)
    theirs.float(), ours.float()

    inputs = converted(inputs, device, torch.float32)
    return Result(
        layers,
        max(inferred, largest_error(outputs, expected_outputs)),
        largest_error(gradients, expected_gradients),
        Pair(*median_times([partial(infer, m, inputs) for m in (theirs, ours)], rounds, device)),
        Pair(*median_times([partial(train, m, inputs) for m in (theirs, ours)], rounds, device)),
        share_of_layers(theirs, inputs, rounds, device),
    )


HEADINGS = (
    *("package", "network", "weights", "replaced", "recurrent", "inference", "faster"),
    *("training", "faster", "outputs", "gradients"),
)


def cells(case: Case, result: Result) -> tuple[str, ...]:
    kinds = [layer.rpartition(" ")[2] for layer in result.layers]
    replaced = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return (
        *(case.package, case.network, case.weights, replaced or "nothing", f"{result.share:.0%}"),
        *(str(result.inference), f"{result.inference.ratio:.2f}x"),
        *(str(result.training), f"{result.training.ratio:.2f}x"),
        *(f"{result.output_error:.0e}", f"{result.gradient_error:.0e}"),
    )


def report(results: Sequence[tuple[Case, Result]]) -> Table:
    table = Table(*HEADINGS)
    for column in table.columns[4:]:
        column.justify = "right"
    for case, result in results:
        table.add_row(*cells(case, result))
    return table


def write_table(path: Path, results: Sequence[tuple[Case, Result]], rounds: int) -> None:
    """Put the table between the two marks of a page.

    Raises:
        ValueError: the marks are not there.
    """
    rows = [HEADINGS, ["---"] * 4 + ["--:"] * 7]
    rows += [cells(case, result) for case, result in results]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    where = (
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}; medians of "
        f"{rounds} rounds, torch.nn / birnn_cuda in ms."
    )
    write_between(path, BEGIN, END, f"{table}\n\n{where}")


def packages_of(folder: Path) -> str:
    """Where pip puts packages whose prefix is the folder."""
    return sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder)})


def install(folder: Path, console: Console) -> list[str]:
    """Install what is required and not there, one by one; returns what could not be installed.

    Into a folder of its own, so that no package changes what the environment holds.
    """
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    missing = [line for line in lines if line and not is_installed(*line.split("=="))]
    failed = []
    for index, requirement in enumerate(missing):
        console.print(f"installing {requirement} ({index + 1} of {len(missing)})")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--ignore-installed", "--prefix", str(folder), requirement]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            reason = (run.stderr.strip() or run.stdout.strip()).splitlines()[-1:]
            failed.append(f"{requirement}: {' '.join(reason)}")
    return failed


def is_installed(name: str, version: str) -> bool:
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main_parser.add_argument(
        "package", nargs="*", metavar="package", help=f"of {', '.join(CASES)} (default: all)"
    )
    main_parser.add_argument(
        "--install",
        type=Path,
        metavar="FOLDER",
        help="install what requirements/real-models.txt names into this folder, and use it",
    )
    main_parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    main_parser.add_argument("--device", type=torch.device, default="cpu", help="(default: cpu)")
    main_parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table into a page of the documentation"
    )
    return main_parser


def compare_all(
    names: Collection[str], rounds: int, device: torch.device, console: Console
) -> tuple[list[tuple[Case, Result]], list[str]]:
    """Results, and what could not be compared and why; says so as it goes."""
    results, failed = [], []
    for index, name in enumerate(names):
        console.print(f"comparing {name} ({index + 1} of {len(names)})")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what other packages have to say of themselves
                case = CASES[name]()
                result = compare(case, rounds, device)
        except (ImportError, metadata.PackageNotFoundError) as error:
            failed.append(f"{name}: {error}")
            console.print(f"{name}: not there: {escape(str(error))}")
            continue
        results.append((case, result))
        console.print(
            f"{case.package}: {escape('; '.join(result.layers))}: inference "
            f"{result.inference.ratio:.2f}x, training {result.training.ratio:.2f}x"
        )
    return results, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    main_parser = parser()
    arguments: Any = main_parser.parse_args(argv)
    for name in arguments.package:
        if name not in CASES:
            main_parser.error(f"no case {name!r}: choose from {', '.join(CASES)}")
    if arguments.rounds < 1:
        main_parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    console = Console(width=max(Console().width, 190), highlight=False)  # the table is as wide
    not_installed: list[str] = []
    if arguments.install:
        sys.path.insert(0, packages_of(arguments.install.resolve()))
        not_installed = install(arguments.install.resolve(), console)
        invalidate_caches()
    names = arguments.package or CASES
    results, missing = compare_all(names, arguments.rounds, arguments.device, console)
    if results:
        console.print(report(results))
        console.print(
            "Milliseconds of the whole network in fp32, torch.nn / birnn_cuda, medians; recurrent: "
            "its layers' share of torch.nn's inference. Errors: fp64."
        )
    failed = [
        case.network
        for case, result in results
        if not result.layers or not max(result.output_error, result.gradient_error) <= TOLERANCE
    ]
    for line in not_installed:
        console.print(f"NOT INSTALLED: {escape(line)}", style="bold red")
    for line in missing:
        console.print(f"NOT COMPARED: {escape(line)}", style="bold red")
    if missing and not arguments.install:
        console.print("--install FOLDER installs what requirements/real-models.txt names")
    if failed:
        console.print(f"DIFFERENT: {', '.join(failed)}", style="bold red")
    if failed or missing:
        return 1
    if arguments.write:
        write_table(arguments.write, results, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
