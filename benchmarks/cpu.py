"""``python -m benchmarks cpu``: the layer on CPU cores, against torch.nn and onnxruntime."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import table
from benchmarks.cases import FILTERS, PRESETS, SECTIONS, FilterError, Preset, cases_of, select
from benchmarks.import_time import ImportMeasurement
from benchmarks.layers import LayerMeasurement
from benchmarks.lengths import LengthsMeasurement
from benchmarks.machine import code, load_average, machine, versions
from benchmarks.memory import MemoryMeasurement
from benchmarks.onnx_peer import OnnxPeer
from benchmarks.peers import SUBJECT, LayerPeer, Peer
from benchmarks.results import Results, ResultsError
from benchmarks.session import Measurement, Session, run

COMMAND = "cpu"
RESULTS_FOLDER = Path(__file__).parent / "results"
INTERRUPTED = 130


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        COMMAND,
        help="measure on CPU cores, against torch.nn and onnxruntime",
        description=__doc__,
    )
    parser.set_defaults(execute=execute)
    parser.add_argument(
        "--preset",
        help="quick (under 1 minute), standard (under 10; the default) or full",
    )
    for name in FILTERS:
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE", help="measure only these")
    parser.add_argument("--section", nargs="+", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, help="for everyone alike; torch's default")
    parser.add_argument("--seed", type=int, help="of the random numbers; fresh by default")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the results file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run: of --out, or else the latest one",
    )


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Run what was asked for, print the tables, return the exit status."""
    subject, torch_layer = LayerPeer(SUBJECT), LayerPeer("torch.nn")
    reason = subject.absent()
    if reason is not None:
        raise ResultsError(f"{SUBJECT} {reason}")
    results, resumed = _open(arguments)
    settings = results.data["settings"]
    preset = PRESETS[settings["preset"]]
    session = Session(
        preset=preset,
        seed=settings["seed"],
        subject=subject,
        torch_layer=torch_layer,
        peers=[peer for peer in _peers() if peer.absent() is None],
        gemm=results.data["gemm"],
    )
    measurements = measurements_of(preset, settings["sections"], settings["filters"])
    if resumed:
        console.print(f"continuing {results.path}: {len(results.entries)} entries are done")
    console.print(f"seed {session.seed}, {torch.get_num_threads()} threads", highlight=False)
    try:
        run(measurements, results, session, console)
    except KeyboardInterrupt:
        table.show(results, console)
        console.print(
            f"interrupted; continue by: python -m benchmarks cpu --resume --out {results.path}",
            soft_wrap=True,
        )
        return INTERRUPTED
    table.show(results, console)
    console.print(f"results: {results.path}", soft_wrap=True)
    return 1 if subject_failures(results) else 0


def measurements_of(
    preset: Preset, sections: Sequence[str], filters: Mapping[str, Sequence[str]]
) -> list[Measurement]:
    """Everything to be measured. Filters leave out what they cannot judge: importing."""
    cases = {name: chosen for name, chosen in cases_of(preset).items() if name in sections}
    chosen = select(cases, filters) if cases else {}
    measurements: list[Measurement] = []
    measurements += [LayerMeasurement(case) for case in chosen.get("layers", [])]
    measurements += [LengthsMeasurement(case) for case in chosen.get("lengths", [])]
    measurements += [MemoryMeasurement(case) for case in chosen.get("memory", [])]
    if "import" in sections and not filters:
        measurements.append(ImportMeasurement())
    if not measurements:
        raise FilterError("the section import has no cases to filter")
    return measurements


def subject_failures(results: Results) -> list[str]:
    """The entries in which this package itself failed."""
    return [
        entry["key"]
        for entry in results.entries
        if any(name in entry["failed"] for name in entry["subjects"])
    ]


def _open(arguments: argparse.Namespace) -> tuple[Results, bool]:
    """The results file to write, and whether it continues an earlier run."""
    if not arguments.resume:
        header = _header(_settings(arguments))
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = arguments.out or RESULTS_FOLDER / f"{COMMAND}-{stamp}.json"
        return Results.create(path, COMMAND, header), False
    settled = [*FILTERS, "preset", "section", "threads", "seed"]
    given = [f"--{name}" for name in settled if getattr(arguments, name) is not None]
    if given:
        names = " ".join(given)
        raise ResultsError(f"--resume takes its settings from the file: leave out {names}")
    results = Results.load(arguments.out or _latest())
    if results.data["command"] != COMMAND:
        raise ResultsError(f"{results.path} is of the sub-command {results.data['command']}")
    torch.set_num_threads(results.data["settings"]["threads"])
    results.refuse_to_mix(_header(results.data["settings"]))
    return results, True


def _latest() -> Path:
    files = sorted(RESULTS_FOLDER.glob(f"{COMMAND}-*.json"))
    if not files:
        raise ResultsError(f"there is no run to continue in {RESULTS_FOLDER}")
    return files[-1]


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, checked; the number of threads is set."""
    preset = arguments.preset or "standard"
    if preset not in PRESETS:
        raise FilterError(f"--preset {preset}: valid values are {', '.join(PRESETS)}")
    sections = arguments.section or list(SECTIONS)
    for section in sections:
        if section not in SECTIONS:
            raise FilterError(f"--section {section}: valid values are {', '.join(SECTIONS)}")
    filters = {
        name: getattr(arguments, name) for name in FILTERS if getattr(arguments, name) is not None
    }
    measurements_of(PRESETS[preset], sections, filters)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise FilterError(f"--threads {arguments.threads}: it must be at least 1")
        torch.set_num_threads(arguments.threads)
    return {
        "preset": preset,
        "sections": sections,
        "filters": filters,
        "seed": random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed,
        "threads": torch.get_num_threads(),
    }


def _peers() -> list[Peer]:
    return [LayerPeer("torch.nn"), OnnxPeer()]


def _header(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "machine": {**machine(), "load_average": load_average()},
        "versions": versions(),
        "code": code(SUBJECT),
        "absent": {peer.name: reason for peer in _peers() if (reason := peer.absent()) is not None},
    }
