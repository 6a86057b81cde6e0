"""What the tests of the benchmark suite share: layers, clocks and results made for the purpose."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import __main__
from benchmarks.measure.cases import Case
from benchmarks.measure.results import Results
from benchmarks.peers.peer import LayerPeer


class LengthsMixin:
    """Gives torch's layers `lengths=`, as far as a batch of full sequences needs it."""

    def forward(self, x: Any, hx: Any = None, lengths: torch.Tensor | None = None) -> Any:
        if lengths is None:
            return super().forward(x, hx)  # type: ignore[misc]
        pack = torch.nn.utils.rnn.pack_padded_sequence
        packed, state = super().forward(pack(x, lengths, enforce_sorted=False))  # type: ignore[misc]
        return torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=len(x))[0], state


class StandIn(LayerPeer):
    """The package under measurement, played by torch.nn: these tests are not about it."""

    class Namespace:
        RNN = type("RNN", (LengthsMixin, torch.nn.RNN), {})
        GRU = type("GRU", (LengthsMixin, torch.nn.GRU), {})
        LSTM = type("LSTM", (LengthsMixin, torch.nn.LSTM), {})
        RNNCell, GRUCell, LSTMCell = torch.nn.RNNCell, torch.nn.GRUCell, torch.nn.LSTMCell

    def absent(self) -> str | None:
        return None

    def namespace(self) -> Any:
        return self.Namespace if self.name == "birnn_cuda" else torch.nn


class WallEvent:
    """A CUDA event, played by the host's clock."""

    moment = 0.0

    def record(self) -> None:
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: WallEvent) -> float:
        return (end_event.moment - self.moment) * 1000


class Repeated:
    """A captured graph, played by doing it again."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def step(self) -> Any:
        return self.run.step()

    def results(self, returned: Any) -> Any:
        return self.run.results(returned)


def command(*arguments: object) -> int:
    return __main__.main([str(argument) for argument in arguments])


def tiny_case(cell: str = "lstm", pass_name: str = "training", dtype: str = "fp32") -> Case:
    return Case(cell, 4, 3, 5, 6, pass_name, dtype)


def fake_entry(key: str, own: list[float], control: list[float]) -> dict[str, Any]:
    return {
        "key": key,
        "section": "layers",
        "unit": "seconds",
        "subjects": ["birnn_cuda"],
        "control": "torch.nn",
        "failed": {},
        "samples": {"birnn_cuda": list(own), "torch.nn": list(control)},
    }


def lengths_entry(case: Case, **seconds: float) -> dict[str, Any]:
    """Made up, as of two rounds: seconds by name, with _ for each blank in it."""
    samples = {name.replace("_", " "): [taken, 2 * taken] for name, taken in seconds.items()}
    return {
        "key": f"lengths/{case.key}",
        "section": "lengths",
        "unit": "seconds",
        "case": case.as_dict(),
        "lengths": [case.seq_len, case.seq_len // 2],
        "subjects": ["plain", "lengths full", "lengths random", "packed random"],
        "control": "torch packed random",
        "failed": {},
        "samples": samples,
    }


def fake_results(
    path: Path, entries: list[dict[str, Any]], command: str = "cpu", **header: Any
) -> Path:
    results = Results.create(
        path,
        command,
        {
            "settings": {},
            "machine": {"cpu": "one", "threads": 2},
            "versions": {"torch": "2"},
            "code": {},
            "absent": {},
            **header,
        },
    )
    for entry in entries:
        results.add(entry)
    return path


def noisy(rng: random.Random, seconds: float) -> list[float]:
    return [seconds * rng.uniform(0.97, 1.03) for _ in range(25)]
