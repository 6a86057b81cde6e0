"""The results file: JSON, complete and valid after every entry.

    {"format": "birnn_cuda benchmarks", "version": 1, "command": "cpu", "cuda" or "tune",
     "finished": bool, "created": ...,
     "settings": {preset, filters, sections, peers (None: all), seed, threads},
     "machine": {...}, "versions": {...}, "code": {commit, modified, digest},
     "absent": {peer: reason}, "gemm": {dtype: [seconds, ...]}, "entries": [...]}

Those of cuda and tune also hold `device` (the GPU, its driver, its highest clocks) and
`limit_model`, the constants of limit_model.py; those of tune `limits`, the device as the plan
knows it.

Every entry holds its `key`, `section`, `unit` and raw `samples` by name; `subjects`, the names
among them that are this package's; `control`, a name that a subject may be divided by to cancel
the state of the machine, or None; and `failed`, {name: reason}. The rest is the section's own: on
CUDA `host_samples`, the seconds that the host was busy with a call, and `clocks`, the least,
median and highest clock, power and temperature meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of this suite, wherever it is run from.
RESULTS_FOLDER = Path(__file__).resolve().parents[1] / "results"

FORMAT = "birnn_cuda benchmarks"
VERSION = 1
REQUIRED = ("settings", "machine", "versions", "code", "absent", "gemm", "entries")

# What may differ between two halves of a run that are one run, of its circumstances.
CIRCUMSTANCES = ("machine", "versions", "code", "device")
MAY_DIFFER = ("load_average", "commit", "modified")

Entry = dict[str, Any]


class ResultsError(Exception):
    """A results file cannot be read, or cannot be continued."""


class Results:
    """A results file, and its contents."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    @classmethod
    def create(cls, path: Path, command: str, header: Mapping[str, Any]) -> Results:
        """Start a file. An existing one is not overwritten."""
        if path.exists():
            raise ResultsError(
                f"{path} exists: continue it by --resume, or name another file by --out"
            )
        data = {"format": FORMAT, "version": VERSION, "command": command, "finished": False}
        results = cls(path, {**data, **header, "gemm": {}, "entries": []})
        path.parent.mkdir(parents=True, exist_ok=True)
        results.flush()
        return results

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file, and refuse one that is damaged or something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ResultsError(f"{path} is truncated or damaged ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ResultsError(f"{path} is not a results file of this suite")
        if data.get("version") != VERSION:
            found = data.get("version")
            raise ResultsError(f"{path} has version {found} of the format; this is {VERSION}")
        missing = [name for name in REQUIRED if name not in data]
        if missing:
            raise ResultsError(f"{path} is damaged: it lacks {', '.join(missing)}")
        if "running" in data:
            data.setdefault("stopped_at", []).append(data.pop("running"))
        return cls(path, data)

    @property
    def entries(self) -> list[Entry]:
        entries: list[Entry] = self.data["entries"]
        return entries

    def by_key(self) -> dict[str, Entry]:
        return {entry["key"]: entry for entry in self.entries}

    def section(self, name: str) -> list[Entry]:
        return [entry for entry in self.entries if entry["section"] == name]

    def begin(self, key: str) -> None:
        """Say which entry is being measured: if it ends the process, a resumed run passes it by."""
        self.data["running"] = key
        self.flush()

    def add(self, entry: Entry) -> None:
        """Append an entry, and write."""
        self.entries.append(entry)
        self.data.pop("running", None)
        self.flush()

    def interrupt(self) -> None:
        """The entry that was begun is not to blame for its end."""
        self.data.pop("running", None)
        self.flush()

    def is_done(self, key: str) -> bool:
        """Whether an entry is there, or has ended a process before it was."""
        return key in self.by_key() or key in self.data.get("stopped_at", ())

    def finish(self) -> None:
        self.data["finished"] = True
        self.flush()

    def flush(self) -> None:
        """Write the file beside itself and rename: a kill at any time leaves a valid one."""
        unfinished = self.path.with_name(self.path.name + ".writing")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(self.data, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)

    @property
    def device(self) -> str:
        """Where it was measured: cpu or cuda."""
        return "cpu" if self.data["command"] == "cpu" else "cuda"

    def refuse_to_mix(self, current: Mapping[str, Any]) -> None:
        """Raise if `current`, this moment's header, is not that of the run to be continued."""
        differences = [
            f"{part} {name} was {before}, is {now}"
            for part, name, before, now in circumstances_that_differ(self.data, current)
        ]
        if differences:
            raise ResultsError(
                f"{self.path} cannot be continued, its entries would not be comparable: "
                + "; ".join(differences)
            )


def circumstances_that_differ(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, str, Any, Any]]:
    """Part, name and both values of what differs between two headers and is of weight."""
    return [
        (part, name, found, now)
        for part in CIRCUMSTANCES
        for name, found in before.get(part, {}).items()
        if name not in MAY_DIFFER and (now := after.get(part, {}).get(name)) != found
    ]
