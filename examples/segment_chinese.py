"""Chinese word segmentation with a bidirectional recurrent network.

    python examples/segment_chinese.py train
    python examples/segment_chinese.py segment 他来到北京天安门

`train` learns from a newspaper month of 1.84 million characters, downloaded once, and reports on
the paragraphs held out, on a CPU also with the layers in 8 bits. It saves the model and a picture
of the learning curves; then it runs its first batches again with torch.nn in place of birnn_cuda,
for the speed and to check the losses.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from chinese_corpus import (
    ARCHIVE,
    CorpusError,
    Score,
    Sentence,
    fetch_archive,
    read_archive,
    score,
    split,
)
from segmenter import (
    CELLS,
    IGNORED,
    ModelError,
    Segmenter,
    TorchBiRNN,
    Vocabulary,
    bucket,
    collate,
    load,
    save,
    segment,
    tag,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import birnn_cuda
from birnn_cuda.ops import build_info

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as EtaColumn
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"segment_chinese.py: error: {error}: pip install matplotlib rich") from None

MODEL = Path(__file__).with_name("output") / "segmenter.pt"
EVALUATIONS_PER_EPOCH = 3
CHECKED_BATCHES = 50
TOLERANCE = 1e-3
REFUSED = 2


class InputError(Exception):
    """There is nothing to work on."""


class Step(NamedTuple):
    """One batch of the training."""

    loss: float
    num_characters: int
    seconds: float


class Evaluation(NamedTuple):
    """How the model did on the held-out text at some point of the training."""

    score: Score
    characters_per_second: float
    after: int  # characters of training


@dataclass
class History:
    """What the learning curves show."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def num_characters(self) -> int:
        return sum(step.num_characters for step in self.steps)

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)


class Training:
    """Everything that decides how a model trains, so that a second library can repeat it."""

    def __init__(self, sentences: Sequence[Sentence], arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device: torch.device = arguments.device
        self.vocabulary = Vocabulary.of([sentence.text for sentence in sentences])
        self.encoded = [self.vocabulary.encode(*sentence) for sentence in sentences]
        self.num_characters = sum(len(sentence.text) for sentence in sentences) * arguments.epochs
        generator = torch.Generator().manual_seed(arguments.seed)
        lengths = [len(sentence.text) for sentence in sentences]
        self.batches = [
            batch
            for _ in range(arguments.epochs)
            for batch in bucket(lengths, arguments.batch_characters, generator)
        ]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of Segmenter."""
        names = ("embedding_size", "hidden_size", "cell", "dropout")
        return {name: getattr(self.arguments, name) for name in names}

    def model(self, **changes: Any) -> Segmenter:
        """A model at its start: of one seed, the same with each library."""
        torch.manual_seed(self.arguments.seed)
        return Segmenter(self.vocabulary, **self.options, **changes).to(self.device)

    def steps(self, model: Segmenter) -> Iterator[Step]:
        """Train, one batch a step."""
        sparse = [model.bigrams.weight]
        dense = [p for p in model.parameters() if p is not model.bigrams.weight]
        # Only the rows that a batch met: the table of bigrams is 90% of all parameters.
        optimizers = [torch.optim.Adam(dense), torch.optim.SparseAdam(sparse)]
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=self.arguments.learning_rate,
                total_steps=len(self.batches) + 1,
                pct_start=0.2,
                cycle_momentum=False,
            )
            for optimizer in optimizers
        ]
        torch.manual_seed(self.arguments.seed)  # of dropout
        for indices in self.batches:
            start = time.perf_counter()
            model.train()
            loss = self.loss(model, indices)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(dense, 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            num_characters = sum(len(self.encoded[i].tags) for i in indices)
            yield Step(loss.item(), num_characters, time.perf_counter() - start)

    def loss(self, model: Segmenter, indices: Sequence[int]) -> Tensor:
        """Of a batch, side by side."""
        batch = collate([self.encoded[i] for i in indices], self.device)
        scores = model(batch.characters, batch.bigrams, batch.lengths)
        return cross_entropy(scores.flatten(0, 1), batch.tags.flatten(), ignore_index=IGNORED)


def evaluate(
    model: Segmenter, vocabulary: Vocabulary, sentences: Sequence[Sentence]
) -> tuple[Score, float]:
    """The score on `sentences`, and characters per second of tagging them."""
    texts = [sentence.text for sentence in sentences]
    start = time.perf_counter()
    tags = tag(model, vocabulary, texts)
    seconds = time.perf_counter() - start
    found = score(zip((sentence.tags for sentence in sentences), tags, strict=True))
    return found, sum(map(len, texts)) / seconds


def train(arguments: argparse.Namespace, console: Console) -> int:
    """The command `train`; returns the exit status."""
    picture = check_output(arguments.model)
    if arguments.device.type == "cuda":
        # The losses of two libraries can only be compared at fp32's own precision, not tf32's.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    paragraphs = read_archive(arguments.corpus or fetch_archive())[: arguments.paragraphs]
    train_set, held_out = split(paragraphs)
    if not train_set or not held_out:
        raise InputError(f"{len(paragraphs)} paragraphs are too few to hold some out")
    training = Training(train_set, arguments)
    model = training.model()
    console.print(
        f"{len(paragraphs):,} paragraphs: {training.num_characters // arguments.epochs:,} "
        f"characters to learn from, {sum(len(s.text) for s in held_out):,} held out\n"
        f"{arguments.cell}, {sum(p.numel() for p in model.parameters()):,} parameters "
        f"({model.bigrams.weight.numel():,} of them of bigrams), on {arguments.device}"
    )

    history = fit(training, model, held_out, console)
    save(arguments.model, model, training.vocabulary, training.options)
    draw(history, picture)

    found, speed, _ = history.evaluations[-1]
    console.print(
        f"held out: precision {found.precision:.4f}, recall {found.recall:.4f}, "
        f"F1 {found.f1:.4f}\n"
        f"training {history.num_characters / history.seconds:,.0f} characters/s, "
        f"tagging {speed:,.0f} characters/s\n"
        f"saved: {arguments.model}, {picture}"
    )
    if arguments.device.type == "cpu":
        in_8_bits(model, training.vocabulary, held_out, history.evaluations[-1], console)
    if arguments.compare_batches and not compare(training, history.steps, console):
        return 1
    return 0


def check_output(model: Path) -> Path:
    """See that the model can be saved, before minutes go into it; returns the picture's path."""
    picture = model.with_suffix(".png")
    if picture == model:
        raise InputError(f"--model {model}: the picture goes there, give another suffix")
    model.parent.mkdir(parents=True, exist_ok=True)
    if model.is_dir() or not os.access(model.parent, os.W_OK):
        raise InputError(f"--model {model}: cannot write such a file")
    return picture


def fit(
    training: Training, model: Segmenter, held_out: Sequence[Sentence], console: Console
) -> History:
    """Train `model` under a progress bar, evaluating now and then."""
    history = History()
    num_evaluations = EVALUATIONS_PER_EPOCH * training.arguments.epochs
    evaluate_at = {
        round(len(training.batches) * (i + 1) / num_evaluations) for i in range(num_evaluations)
    }
    with progress_bar(console) as progress:
        task = progress.add_task("birnn_cuda", total=training.num_characters, loss="")
        for number, step in enumerate(training.steps(model), 1):
            history.steps.append(step)
            progress.update(task, advance=step.num_characters, loss=f"loss {step.loss:.3f}")
            if number in evaluate_at:
                found, speed = evaluate(model, training.vocabulary, held_out)
                history.evaluations.append(Evaluation(found, speed, history.num_characters))
                console.print(
                    f"epoch {number / len(training.batches) * training.arguments.epochs:4.2f}: "
                    f"held-out F1 {found.f1:.4f}"
                )
    return history


def in_8_bits(
    model: Segmenter,
    vocabulary: Vocabulary,
    held_out: Sequence[Sentence],
    before: Evaluation,
    console: Console,
) -> None:
    """Print what becomes of the score, the speed and the size of the recurrent layers in int8."""
    small = birnn_cuda.quantize(copy.deepcopy(model).eval())
    found, speed = evaluate(small, vocabulary, held_out)
    sizes = [
        sum(value.nbytes for name, value in each.tagger.state_dict().items() if "hidden" in name)
        / 2**20
        for each in (small, model)
    ]
    console.print(
        f"recurrent layers in 8 bits: F1 {found.f1:.4f} ({found.f1 - before.score.f1:+.4f}), "
        f"tagging {speed:,.0f} characters/s, {sizes[0]:.1f} MiB instead of {sizes[1]:.1f}"
    )


def compare(training: Training, ours: Sequence[Step], console: Console) -> bool:
    """Run the first batches again with torch.nn, print both speeds, and check the losses."""
    count = min(training.arguments.compare_batches, len(ours))
    model = training.model(tagger=TorchBiRNN)
    torchs: list[Step] = []
    with progress_bar(console) as progress:
        total = sum(step.num_characters for step in ours[:count])
        task = progress.add_task("torch.nn  ", total=total, loss="")
        for step in itertools.islice(training.steps(model), count):
            torchs.append(step)
            progress.update(task, advance=step.num_characters, loss=f"loss {step.loss:.3f}")

    speeds = []
    for steps in (ours[:count], torchs):
        speeds.append(sum(s.num_characters for s in steps) / sum(s.seconds for s in steps))
    console.print(
        f"first {count} batches: birnn_cuda {speeds[0]:,.0f} characters/s, "
        f"torch.nn {speeds[1]:,.0f} characters/s: {speeds[0] / speeds[1]:.2f} times as fast"
    )
    checked = min(CHECKED_BATCHES, count)
    pairs = zip(ours[:checked], torchs, strict=False)
    difference = max(abs(a.loss - b.loss) / abs(b.loss) for a, b in pairs)
    agree = difference <= TOLERANCE
    console.print(
        f"losses of the first {checked} batches: greatest relative difference {difference:.1e}, "
        f"{'within' if agree else 'MORE THAN'} {TOLERANCE:.0e}",
        style="green" if agree else "bold red",
    )
    return agree


class RateColumn(ProgressColumn):
    """Characters per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} characters/s", style="cyan")


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        RateColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("ETA"),
        EtaColumn(),
        console=console,
    )


def draw(history: History, path: Path) -> None:
    """The learning curves: loss of each batch and its running mean, held-out F1."""
    million = [n / 1e6 for n in itertools.accumulate(s.num_characters for s in history.steps)]
    losses = [step.loss for step in history.steps]
    smooth = list(itertools.accumulate(losses, lambda mean, loss: 0.9 * mean + 0.1 * loss))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)

    left.semilogy(million, losses, color="tab:blue", alpha=0.3, linewidth=0.6, label="a batch")
    left.semilogy(million, smooth, color="tab:blue", label="running mean")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("cross entropy per character")
    left.set_title("Training loss")
    left.legend(frameon=False)

    at = [evaluation.after / 1e6 for evaluation in history.evaluations]
    found = [evaluation.score for evaluation in history.evaluations]
    right.plot(
        at, [f.precision for f in found], "v:", color="tab:gray", markersize=4, label="precision"
    )
    right.plot(at, [f.recall for f in found], "^:", color="tab:gray", markersize=4, label="recall")
    right.plot(at, [f.f1 for f in found], "o-", color="tab:orange", markersize=5, label="F1")
    right.set_title(f"Held-out words: F1 {found[-1].f1:.4f}")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("million characters read")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def segment_text(arguments: argparse.Namespace, console: Console) -> int:
    """The command `segment`; returns the exit status."""
    model, vocabulary = load(arguments.model, arguments.device)
    interactive = not arguments.text and sys.stdin.isatty()
    if interactive:
        console.print("reading standard input, a text a line")
    empty = True
    try:
        lines = arguments.text or sys.stdin
        for words in segment(model, vocabulary, lines, block_size=1 if interactive else 1000):
            print(arguments.separator.join(words), flush=interactive)
            empty = empty and not words
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error}") from None
    if empty:
        raise InputError("the text is empty")
    return 0


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, got {value}")
    return value


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be greater than 0 and finite, got {value}")
    return value


def device(text: str) -> torch.device:
    try:
        chosen = torch.device(text)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {text!r} here: {reason}") from None
    return chosen


def default_device() -> str:
    """A GPU where there is one and birnn_cuda is built for it."""
    built_for_cuda = build_info()["cuda_version"] is not None
    return "cuda" if built_for_cuda and torch.cuda.is_available() else "cpu"


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = main_parser.add_subparsers(required=True, metavar="command")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", type=Path, default=MODEL, help="file (default: %(default)s)")
    shared.add_argument(
        "--device",
        type=device,
        default=default_device(),
        help="cpu, cuda, cuda:1 (default here: %(default)s)",
    )

    learn = commands.add_parser("train", parents=[shared], help="train, save, and compare")
    learn.set_defaults(run=train)

    def add(option: str, help: str, **options: Any) -> None:
        learn.add_argument(option, help=f"{help} (default: %(default)s)", **options)

    add("--cell", "of the BiRNN", choices=CELLS, default="lstm")
    add("--hidden-size", "of each direction", type=positive, default=128)
    add("--embedding-size", "of a character and of a bigram", type=positive, default=64)
    add("--dropout", "of the embeddings", type=probability, default=0.2)
    add("--epochs", "times to read the corpus", type=positive, default=2)
    add("--batch-characters", "most a batch may hold", type=positive, default=4096)
    add("--learning-rate", "greatest, of a one-cycle schedule", type=rate, default=4e-3)
    add("--seed", "one seed, one result (on a CPU)", type=non_negative, default=0)
    add("--compare-batches", "batches to repeat with torch.nn", type=non_negative, default=200)
    learn.add_argument("--paragraphs", type=positive, help="how many to read (default: all)")
    learn.add_argument("--corpus", type=Path, help=f"{ARCHIVE} (default: downloaded once)")

    cut = commands.add_parser("segment", parents=[shared], help="cut texts into words")
    cut.set_defaults(run=segment_text)
    cut.add_argument("text", nargs="*", help="texts (default: the lines of standard input)")
    cut.add_argument("--separator", default=" ", help="between words (default: a space)")
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = parser().parse_args(argv)
    console = Console(stderr=arguments.run is segment_text, highlight=False, soft_wrap=True)
    try:
        status: int = arguments.run(arguments, console)
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CorpusError, InputError, ModelError, OSError) as error:
        print(f"segment_chinese.py: error: {error}", file=sys.stderr)
        return REFUSED
    return status


if __name__ == "__main__":
    sys.exit(main())
