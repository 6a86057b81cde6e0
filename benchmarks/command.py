"""What the sub-commands that measure have in common: options, files, resuming, the run itself."""

from __future__ import annotations

import abc
import argparse
import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.cases import (
    FILTERS,
    PRESET_NAMES,
    Case,
    FilterError,
    Preset,
    check_values,
    select,
)
from benchmarks.measure.machine import code, load_average, machine, versions
from benchmarks.measure.results import RESULTS_FOLDER, Results, ResultsError
from benchmarks.measure.terminal import Terminal
from benchmarks.peers.peer import SUBJECT, TORCH, LayerPeer, Peer
from benchmarks.report import table
from benchmarks.sections.session import Measurement, Session, left_out, run

INTERRUPTED = 130
DEFAULT_PRESET = "standard"
NOT_IN_THIS_PRESET = "compiles a program for each case: not in this preset"


class MeasuringCommand(abc.ABC):
    """One sub-command: ``name``, its ``help``, its ``sections`` and its ``presets``."""

    name: str
    help: str
    description: str
    sections: Sequence[str]
    presets: Mapping[str, Preset]
    budgets: str  # what the presets' time is, for --help

    @abc.abstractmethod
    def all_peers(self) -> list[Peer]:
        """Every entrant but the package itself, absent ones included."""

    @abc.abstractmethod
    def measurements(
        self, cases: Mapping[str, Sequence[Case]], sections: Sequence[str], filtered: bool
    ) -> list[Measurement]:
        """What is to be measured of the chosen cases."""

    def refusal(self) -> str | None:
        """Why nothing can be measured on this machine, or None."""
        return None

    def facts(self) -> dict[str, Any]:
        """What the header holds beside what every header holds."""
        return {}

    def subject(self) -> LayerPeer:
        return LayerPeer(SUBJECT)

    def torch_layer(self) -> LayerPeer:
        return LayerPeer(TORCH)

    @contextlib.contextmanager
    def session(self, results: Results, peers: Sequence[Peer]) -> Iterator[Session]:
        """What the entries of a run share, while they run."""
        settings = results.data["settings"]
        yield Session(
            preset=self.presets[settings["preset"]],
            seed=settings["seed"],
            subject=self.subject(),
            torch_layer=self.torch_layer(),
            peers=peers,
            gemm=results.data["gemm"],
        )

    # ---- the command line

    def add_parser(self, commands: Any) -> None:
        """Declare the sub-command."""
        parser = commands.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(execute=self.execute)
        parser.add_argument("--preset", metavar="NAME", help=self.budgets)
        for name in FILTERS:
            parser.add_argument(
                f"--{name}", nargs="+", metavar="VALUE", help=f"only the cases with this {name}"
            )
        parser.add_argument(
            "--section", nargs="+", metavar="NAME", help=f"only these: {', '.join(self.sections)}"
        )
        names = ", ".join(peer.name for peer in self.all_peers())
        parser.add_argument(
            "--peer", nargs="+", metavar="NAME", help=f"only these beside {SUBJECT}: {names}"
        )
        parser.add_argument("--threads", type=int, help="for everyone alike; torch's default")
        parser.add_argument("--seed", type=int, help="of the random numbers; fresh by default")
        parser.add_argument(
            "--out",
            type=Path,
            metavar="FILE",
            help=f"the results file (default: {self.name}-DATE.json in benchmarks/results)",
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue an interrupted run: of --out, or else the latest one",
        )

    def execute(self, arguments: argparse.Namespace, terminal: Terminal) -> int:
        """Run what was asked for, print the tables, return the exit status."""
        reason = self.subject().absent()
        if reason is not None:
            raise ResultsError(f"{SUBJECT} {reason}")
        refusal = self.refusal()
        if refusal is not None:
            raise ResultsError(refusal)
        results, resumed, peers = self._open(arguments)
        settings = results.data["settings"]
        preset = self.presets[settings["preset"]]
        measurements = self.plan(preset, settings["sections"], settings["filters"])
        if resumed:
            terminal.line(f"continuing {results.path}: {len(results.entries)} entries are done")
        terminal.line(f"seed {settings['seed']}, {torch.get_num_threads()} threads")
        go_on = f"python -m benchmarks {self.name} --resume --out {results.path}"
        try:
            with self.session(results, peers) as session:
                run(measurements, results, session, terminal)
        except KeyboardInterrupt:
            table.show(results, terminal)
            terminal.line(f"interrupted; continue by: {go_on}")
            return INTERRUPTED
        table.show(results, terminal)
        undone = left_out(measurements, results.by_key())
        if undone:
            terminal.line(
                f"{len(undone)} of {len(measurements)} entries are left out: the preset's "
                f"{preset.budget:g} s are over; continue by: {go_on}"
            )
        terminal.line(f"results: {results.path}")
        return 1 if subject_failures(results) else 0

    # ---- what is to be done

    def plan(
        self, preset: Preset, sections: Sequence[str], filters: Mapping[str, Sequence[str]]
    ) -> list[Measurement]:
        """Everything to be measured. Filters leave out what they cannot judge: importing."""
        cases = {name: chosen for name, chosen in preset.cases.items() if name in sections}
        chosen = select(cases, filters) if cases else {}
        measurements = self.measurements(chosen, sections, bool(filters))
        if not measurements:
            raise FilterError(f"the section {', '.join(sections)} has no cases to filter")
        return measurements

    def _open(self, arguments: argparse.Namespace) -> tuple[Results, bool, list[Peer]]:
        """The results file to write, whether it continues an earlier run, and who takes part."""
        if not arguments.resume:
            settings = self._settings(arguments)
            peers, absent = self._present(settings)
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            path = arguments.out or RESULTS_FOLDER / f"{self.name}-{stamp}.json"
            header = self._header(settings, absent)
            return Results.create(path, self.name, header), False, peers
        settled = [*FILTERS, "preset", "section", "peer", "threads", "seed"]
        given = [f"--{name}" for name in settled if getattr(arguments, name) is not None]
        if given:
            names = " ".join(given)
            raise ResultsError(f"--resume takes its settings from the file: leave out {names}")
        results = Results.load(arguments.out or self._latest())
        if results.data["command"] != self.name:
            raise ResultsError(f"{results.path} is of the sub-command {results.data['command']}")
        settings = results.data["settings"]
        torch.set_num_threads(settings["threads"])
        peers, absent = self._present(settings)
        results.refuse_to_mix(self._header(settings, absent))
        return results, True, peers

    def _latest(self) -> Path:
        files = sorted(RESULTS_FOLDER.glob(f"{self.name}-*.json"))
        if not files:
            raise ResultsError(f"there is no run to continue in {RESULTS_FOLDER}")
        return files[-1]

    def _settings(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """What was asked for, checked; the number of threads is set."""
        preset = arguments.preset or DEFAULT_PRESET
        check_values("preset", [preset], PRESET_NAMES)
        sections = arguments.section or list(self.sections)
        check_values("section", sections, self.sections)
        names = [peer.name for peer in self.all_peers()]
        check_values("peer", arguments.peer or [], names)
        filters = {
            name: getattr(arguments, name)
            for name in FILTERS
            if getattr(arguments, name) is not None
        }
        self.plan(self.presets[preset], sections, filters)
        if arguments.threads is not None:
            if arguments.threads < 1:
                raise FilterError(f"--threads {arguments.threads}: it must be at least 1")
            torch.set_num_threads(arguments.threads)
        seed = arguments.seed
        return {
            "preset": preset,
            "sections": sections,
            "filters": filters,
            "peers": arguments.peer,
            "seed": random.SystemRandom().getrandbits(32) if seed is None else seed,
            "threads": torch.get_num_threads(),
        }

    def _present(self, settings: Mapping[str, Any]) -> tuple[list[Peer], dict[str, str]]:
        """The peers that take part, and why the others do not.

        One that the preset gives no case is not even looked for: importing it takes seconds.
        """
        compiled = self.presets[settings["preset"]].compiled
        present, absent = [], {}
        for peer in self.all_peers():
            if settings.get("peers") and peer.name not in settings["peers"]:
                continue
            if peer.compiles and compiled is not None and not compiled:
                reason: str | None = NOT_IN_THIS_PRESET
            else:
                reason = peer.absent()
            if reason is None:
                present.append(peer)
            else:
                absent[peer.name] = reason
        return present, absent

    def _header(self, settings: Mapping[str, Any], absent: Mapping[str, str]) -> dict[str, Any]:
        return {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": dict(settings),
            "machine": {**machine(), "load_average": load_average()},
            "versions": versions(),
            "code": code(SUBJECT),
            "absent": dict(absent),
            **self.facts(),
        }


def subject_failures(results: Results) -> list[str]:
    """The entries in which this package itself failed."""
    return [
        entry["key"]
        for entry in results.entries
        if any(name in entry["failed"] for name in entry["subjects"])
    ]
