"""A detector that is fed a signal 10 ms at a time, with torch.nn's GRU and with birnn_cuda's.

    python examples/streaming_detector.py
    python examples/streaming_detector.py --threads 1 --seconds 60

Hops of 10 ms become log-mel features, a GRU of one direction carries its state from hop to hop, and
each hop gets a score: does somebody speak? The signal is made up: voiced sounds in noise. The
network learns on whole sequences first, then works hop by hop. The exit status is 1 if a step at a
time does not give the bits of the whole.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from figures_page import processor, write_between
from torch import Tensor, nn

import birnn_cuda

RATE = 16000
HOP = RATE // 100  # 10 ms
WINDOW = 5 * HOP // 2  # 25 ms
NUM_BINS = 512
NUM_MELS = 40
STEPS_OF_TRAINING = 30

BEGIN = "<!-- examples/streaming_detector.py: from here -->"
END = "<!-- examples/streaming_detector.py: to here -->"

Value = TypeVar("Value")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    detector = Detector(arguments.hidden_size, arguments.layers)
    train(detector, progress=Progress("learning", STEPS_OF_TRAINING))
    signal, speaks = made_up_signal(arguments.seconds)
    networks = {
        "torch.nn": birnn_cuda.to_torch(copy.deepcopy(detector)),
        "birnn_cuda": birnn_cuda.replace_rnns(copy.deepcopy(detector)),
    }
    hops = len(signal) // HOP
    run = listen(networks, signal, arguments.seed, Progress("listening", hops))
    right = (run.scores["birnn_cuda"] > 0).eq(speaks).float().mean().item()
    unequal = differences(networks["birnn_cuda"], run)
    lines = report(arguments, run, right, unequal)
    if load > (os.cpu_count() or 1) / 4:
        lines.append(f"the machine was busy before the run (load {load:.1f}): expect noise")
    print("\n".join(lines))
    if unequal:
        return 1
    if arguments.write is not None:
        try:
            write_between(arguments.write, BEGIN, END, "\n".join(["```text", *lines, "```"]))
        except ValueError as error:
            sys.exit(str(error))
    return 0


# ---- the detector


class Features(nn.Module):
    """Log-mel energies of a signal, hop by hop: keeps the samples that the next window reaches back
    to."""

    window: Tensor
    filters: Tensor
    tail: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.register_buffer("filters", mel_filters())
        self.register_buffer("tail", torch.zeros(WINDOW - HOP))

    def forward(self, samples: Tensor) -> Tensor:
        """``[T*HOP]`` samples, the next ones, to ``[T, NUM_MELS]``."""
        signal = torch.cat([self.tail, samples])
        self.tail = signal[-(WINDOW - HOP) :]
        frames = signal.unfold(0, WINDOW, HOP) * self.window
        power = torch.fft.rfft(frames, NUM_BINS).abs().square()
        return torch.log(power @ self.filters + 1e-4)


def mel_filters() -> Tensor:
    """Triangles that are even on the mel scale, ``[NUM_BINS // 2 + 1, NUM_MELS]``."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    mels = torch.linspace(0, top, NUM_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1) / RATE * NUM_BINS  # in bins
    bins = torch.arange(NUM_BINS // 2 + 1).unsqueeze(1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class Detector(nn.Module):
    """A score of each hop, from it and those before: above 0, somebody speaks."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(NUM_MELS, hidden_size, num_layers)
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[T, B, NUM_MELS]``, and the state after the hops before, to scores ``[T, B]``."""
        output, state = self.rnn(features, state)
        return self.linear(output).squeeze(-1), state


def made_up_signal(seconds: float) -> tuple[Tensor, Tensor]:
    """Noise with voiced sounds of half a second or so; and of each hop, whether one sounds."""
    hops = round(100 * seconds)
    speaks = torch.zeros(hops, dtype=torch.bool)
    at = 0
    while at < hops:
        pause, sound = (int(torch.randint(20, 80, ()).item()) for _ in range(2))
        speaks[at + pause : at + pause + sound] = True
        at += pause + sound
    pitch = 120 + 40 * torch.rand(hops).cumsum(0).sin()  # Hz
    phase = 2 * math.pi * (pitch / RATE).repeat_interleave(HOP).cumsum(0)
    voice = sum((harmonic * phase).sin() / harmonic for harmonic in range(1, 12))
    assert isinstance(voice, Tensor)
    signal = 0.1 * voice * speaks.repeat_interleave(HOP) + 0.1 * torch.randn(hops * HOP)
    return signal, speaks


def train(detector: Detector, progress: Progress) -> None:
    """On whole sequences: all hops in one call."""
    fast = birnn_cuda.replace_rnns(detector)
    optimizer = torch.optim.Adam(fast.parameters(), 5e-3)
    for _ in progress.over(range(STEPS_OF_TRAINING)):
        pairs = [made_up_signal(2) for _ in range(4)]
        features = torch.stack([Features()(signal) for signal, _ in pairs], dim=1)
        speaks = torch.stack([speaks for _, speaks in pairs], dim=1).float()
        optimizer.zero_grad()
        scores, _ = fast(features)
        nn.functional.binary_cross_entropy_with_logits(scores, speaks).backward()
        optimizer.step()


# ---- hop by hop


class Run:
    """What was fed, what came out, and how long each hop took, by network."""

    def __init__(self, names: Sequence[str]) -> None:
        self.features: Tensor = torch.empty(0)  # [T, NUM_MELS]
        self.outputs: dict[str, Tensor] = {}  # of the GRU, [T, H]
        self.scores: dict[str, Tensor] = {}  # [T]
        self.states: dict[str, Tensor] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in ("features", *names)}


def listen(networks: Mapping[str, nn.Module], signal: Tensor, seed: int, progress: Progress) -> Run:
    """Feed the signal 10 ms at a time; the networks take turns in random order within a hop."""
    run, order, rng = Run(list(networks)), list(networks), random.Random(seed)
    features, make_features = [], Features()
    outputs: dict[str, list[Tensor]] = {name: [] for name in networks}
    scores: dict[str, list[Tensor]] = {name: [] for name in networks}
    for name, network in networks.items():
        layer = network.eval().rnn
        assert isinstance(layer, nn.GRU)
        layer.register_forward_hook(lambda _, args, out, name=name: outputs[name].append(out[0]))
        run.states[name] = torch.zeros(layer.num_layers, 1, layer.hidden_size)
    with torch.inference_mode():
        for samples in progress.over(signal.split(HOP)):
            step = timed(partial(make_features, samples), run.seconds["features"])
            features.append(step)
            rng.shuffle(order)
            for name in order:
                hop = partial(networks[name], step.unsqueeze(1), run.states[name])
                score, run.states[name] = timed(hop, run.seconds[name])
                scores[name].append(score)
    run.features = torch.cat(features)
    for name in networks:
        run.outputs[name] = torch.cat(outputs[name]).squeeze(1)
        run.scores[name] = torch.cat(scores[name]).squeeze(1)
    return run


def timed(call: Callable[[], Value], seconds: list[float]) -> Value:
    start = time.perf_counter()
    value = call()
    seconds.append(time.perf_counter() - start)
    return value


def differences(network: nn.Module, run: Run) -> list[str]:
    """In which of its results the whole, in one call, differs from a step at a time."""
    layer = network.rnn
    assert isinstance(layer, nn.GRU)
    with torch.inference_mode():
        output, state = layer(run.features.unsqueeze(1))
    by_steps = {"output": run.outputs["birnn_cuda"], "state": run.states["birnn_cuda"]}
    whole = {"output": output.squeeze(1), "state": state}
    return [name for name, tensor in whole.items() if not torch.equal(tensor, by_steps[name])]


# ---- what is said of it


def report(
    arguments: argparse.Namespace, run: Run, right: float, unequal: Sequence[str]
) -> list[str]:
    hops = len(run.seconds["features"])
    lines = [
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        f"{hops} hops of 10 ms; GRU, {arguments.layers} layers of {arguments.hidden_size}; "
        f"{right:.0%} of the hops are told right",
        f"{'us a hop':>12} {'p50':>8} {'p99':>8}",
    ]
    for name, seconds in run.seconds.items():
        settled = seconds[len(seconds) // 10 :]  # the first hops load code and start threads
        p50, p99 = statistics.median(settled), statistics.quantiles(settled, n=100)[98]
        lines.append(f"{name:>12} {1e6 * p50:8.1f} {1e6 * p99:8.1f}")
    verdict = f"DIFFER in {', '.join(unequal)}" if unequal else "are the same bits"
    lines.append(f"birnn_cuda: a step at a time and the whole in one call {verdict}")
    return lines


class Progress:
    """A line that says how far it is, on a terminal alone."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total

    def over(self, items: Sequence[Value]) -> Iterator[Value]:
        shown = -1
        for done, item in enumerate(items):
            percent = 100 * done // self.total
            if sys.stderr.isatty() and percent != shown:
                print(f"\r{self.what}: {percent:3}%", end="", file=sys.stderr, flush=True)
                shown = percent
            yield item
        if shown >= 0:
            print(f"\r{self.what}: done", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main_parser.add_argument("--seconds", type=float, default=20, help="of signal (default 20)")
    main_parser.add_argument("--hidden-size", type=int, default=128)
    main_parser.add_argument("--layers", type=int, default=2)
    main_parser.add_argument("--threads", type=int, help="torch's default, if not given")
    main_parser.add_argument("--seed", type=int, default=0)
    main_parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the report between this page's markers"
    )
    return main_parser


if __name__ == "__main__":
    sys.exit(main())
