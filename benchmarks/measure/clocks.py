"""At which clocks the GPU ran: nvidia-smi, asked a few times a second beside the run."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

FIELDS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
}
INTERVAL_MS = 400
SETTINGS = {
    "driver": "driver_version",
    "max_sm_mhz": "clocks.max.sm",
    "max_memory_mhz": "clocks.max.mem",
    "power_limit_watts": "power.limit",
    "mig": "mig.mode.current",
    "ecc": "ecc.mode.current",
}


def query(fields: Sequence[str], device: str = "0") -> dict[str, str]:
    """What nvidia-smi answers, by field; empty where it does not."""
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={','.join(fields)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=15,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def sampling_command(device: str = "0") -> list[str]:
    """nvidia-smi as a process that prints a line of numbers every interval."""
    return [
        "nvidia-smi",
        f"--id={device}",
        f"--query-gpu={','.join(FIELDS.values())}",
        "--format=csv,noheader,nounits",
        f"--loop-ms={INTERVAL_MS}",
    ]


class ClockRecorder:
    """The lines of the sampling process, with the time at which each was read."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, list[float | None]]] = []

    def read(self, line: str) -> None:
        """Take a line; what is no number ([N/A], an error message) counts as unknown."""
        values = line.split(",")
        if len(values) == len(FIELDS):
            self.lines.append((time.monotonic(), [_number(value) for value in values]))

    def since(self, mark: float) -> dict[str, list[float]]:
        """Least, median and most of each field since `mark`, of those that are known."""
        recent = [values for moment, values in self.lines if moment >= mark]
        columns = zip(FIELDS, zip(*recent, strict=True), strict=False)
        known = {name: [value for value in column if value is not None] for name, column in columns}
        return {
            name: [min(values), statistics.median(values), max(values)]
            for name, values in known.items()
            if values
        }


@contextlib.contextmanager
def recording(command: Sequence[str]) -> Iterator[ClockRecorder]:
    """Record while the block runs. Without nvidia-smi nothing is recorded."""
    recorder = ClockRecorder()
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        yield recorder
        return

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            recorder.read(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield recorder
    finally:
        process.terminate()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
