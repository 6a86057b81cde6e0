"""Texts packed into rows, beside padded batches of them: a training step of the word segmenter.

    python examples/packed_rows.py
    python examples/packed_rows.py --train      # and what is learned from rows (5 minutes)

One and the same network and clauses of the corpus of segment_chinese.py, four ways to make batches
of about as many characters:

    rows             any clauses, one after another in rows (birnn_cuda.pack_rows, resets=)
    buckets          clauses of about the same length side by side, lengths=
    shuffled         any clauses side by side, lengths=
    padded           the same, padding computed: what a layer without lengths does

and what resets cost a layer: at 1 % and 10 % of all steps, beside none. Times are the process's own
time on the CPU, on one thread, the ways taking turns; the medians of the rounds are compared.

--train trains the segmenter of segment_chinese.py as that does, on buckets, then on rows of any
clauses, and scores both on the text held out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from chinese_corpus import Sentence, fetch_archive, read_archive, split
from rich.console import Console
from segment_chinese import Training, fit
from segment_chinese import parser as segmenter_parser
from segmenter import IGNORED, Encoded, Segmenter, Vocabulary, bucket, collate
from torch import Tensor
from torch.nn.functional import cross_entropy

import birnn_cuda

RESETS = {"none": None, "1 %": 0.01, "10 %": 0.1}
SIZES = ((256, 16, 128), (128, 32, 256))  # T, B, H of the layers with resets


def shuffled_batches(lengths: Sequence[int], max_characters: int) -> list[list[int]]:
    """Texts in random order, at most `max_characters` of them, without padding, to a batch."""
    batches: list[list[int]] = [[]]
    total = 0
    for index in torch.randperm(len(lengths)).tolist():
        if batches[-1] and total + lengths[index] > max_characters:
            batches.append([])
            total = 0
        batches[-1].append(index)
        total += lengths[index]
    return batches


class TrainingOnRows(Training):
    """segment_chinese.py's training, its batches of as many characters packed into rows."""

    row_length: int

    def loss(self, model: Segmenter, indices: Sequence[int]) -> Tensor:
        return Ways(model, self.encoded, self.row_length).rows(indices)


class Ways:
    """A training step of one model by each way of making batches."""

    def __init__(self, model: Segmenter, texts: Sequence[Encoded], row_length: int) -> None:
        self.model, self.texts, self.row_length = model, texts, row_length

    def rows(self, indices: Sequence[int]) -> Tensor:
        texts = [self.texts[i] for i in indices]
        rows = birnn_cuda.pack_rows([text.characters for text in texts], self.row_length)
        before = self.model.bigrams(rows.pack([text.bigrams[:-1] for text in texts]))
        after = self.model.bigrams(rows.pack([text.bigrams[1:] for text in texts]))
        tags = rows.pack([text.tags for text in texts], IGNORED)
        features = self.model.features(rows.input, before, after)
        return loss_of(self.model.tagger(features, resets=rows.resets), tags)

    def side_by_side(self, indices: Sequence[int], with_lengths: bool = True) -> Tensor:
        batch = collate([self.texts[i] for i in indices], torch.device("cpu"))
        pairs = self.model.bigrams(batch.bigrams)
        features = self.model.features(batch.characters, pairs[:-1], pairs[1:])
        options = {"lengths": batch.lengths} if with_lengths else {}
        return loss_of(self.model.tagger(features, **options), batch.tags)

    def padded(self, indices: Sequence[int]) -> Tensor:
        return self.side_by_side(indices, with_lengths=False)


def loss_of(scores: Tensor, tags: Tensor) -> Tensor:
    return cross_entropy(scores.flatten(0, 1), tags.flatten(), ignore_index=IGNORED)


def time_ways(arguments: argparse.Namespace, sentences: Sequence[Sentence]) -> dict[str, float]:
    """Microseconds a character, forward and backward, of each way."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of([sentence.text for sentence in sentences])
    texts = [vocabulary.encode(*sentence) for sentence in sentences]
    lengths = [len(sentence.text) for sentence in sentences]
    model = Segmenter(vocabulary, 64, arguments.hidden_size, "lstm", 0.2)
    ways = Ways(model, texts, max(arguments.row_length, *lengths))
    shuffled = shuffled_batches(lengths, arguments.batch_characters)
    generator = torch.Generator().manual_seed(0)
    buckets = bucket(lengths, arguments.batch_characters, generator)
    chosen: dict[str, tuple[list[list[int]], Callable[[list[int]], Tensor]]] = {
        "rows": (shuffled, ways.rows),
        "buckets": (buckets, ways.side_by_side),
        "shuffled": (shuffled, ways.side_by_side),
        "padded": (shuffled, ways.padded),
    }
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(arguments.rounds + 1):
        for name, (batches, loss) in chosen.items():
            first = number * arguments.batches
            taken = [batches[(first + i) % len(batches)] for i in range(arguments.batches)]
            start = time.process_time()
            for indices in taken:
                model.zero_grad()
                loss(indices).backward()
            seconds = time.process_time() - start
            characters = sum(lengths[i] for indices in taken for i in indices)
            if number > 0:  # the first round warms up
                times[name].append(seconds / characters * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def time_resets(cell: str, sizes: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """A training step of a layer with resets, in times of one without."""
    seq_len, batch_size, hidden_size = sizes
    layer: Any = getattr(birnn_cuda, cell)(hidden_size, hidden_size, bidirectional=True)
    input = torch.randn(seq_len, batch_size, hidden_size, requires_grad=True)
    masks = {
        name: None if share is None else torch.rand(seq_len, batch_size) < share
        for name, share in RESETS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in masks}
    for number in range(rounds + 1):
        for name in [*masks][number % 3 :] + [*masks][: number % 3]:
            start = time.process_time()
            layer(input, resets=masks[name])[0].sum().backward()
            if number > 0:
                times[name].append(time.process_time() - start)
    return {
        name: statistics.median(a / b for a, b in zip(values, times["none"], strict=True))
        for name, values in times.items()
    }


def train_ways(
    arguments: argparse.Namespace, sentences: Sequence[Sentence], held_out: Sequence[Sentence]
) -> None:
    """The score and the speed of a model trained on buckets, and of one trained on rows."""
    options = segmenter_parser().parse_args(["train", "--hidden-size", str(arguments.hidden_size)])
    on_buckets, on_rows = Training(sentences, options), TrainingOnRows(sentences, options)
    lengths = [len(sentence.text) for sentence in sentences]
    on_rows.row_length = max(arguments.row_length, *lengths)
    torch.manual_seed(options.seed)
    on_rows.batches = [
        batch
        for _ in range(options.epochs)
        for batch in shuffled_batches(lengths, options.batch_characters)
    ]
    for name, training in (("buckets", on_buckets), ("rows", on_rows)):
        model = training.model()
        history = fit(training, model, held_out, Console(highlight=False, soft_wrap=True))
        f1 = history.evaluations[-1].score.f1
        speed = history.num_characters / history.seconds
        print(f"trained on {name:8} F1 {f1:.4f}, {speed:,.0f} characters/s", flush=True)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--corpus", type=Path, help="the archive (default: downloaded once)")
    parser.add_argument("--paragraphs", type=int, default=6000, help="(default: %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--batch-characters", type=int, default=8192, help="(default: %(default)s)")
    parser.add_argument("--row-length", type=int, default=320, help="(default: %(default)s)")
    parser.add_argument("--batches", type=int, default=2, help="a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--train", action="store_true", help="and what is learned, of all text")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    paragraphs = read_archive(arguments.corpus or fetch_archive())
    if arguments.train:
        train_ways(arguments, *split(paragraphs))
    sentences, _ = split(paragraphs[: arguments.paragraphs])
    times = time_ways(arguments, sentences)
    mean = sum(len(sentence.text) for sentence in sentences) / len(sentences)
    print("clauses a second, forward and backward, and times as many by rows")
    for name, microseconds in times.items():
        print(f"{name:10} {1e6 / microseconds / mean:8.0f} {microseconds / times['rows']:6.2f}")
    print("a training step of a layer with resets, in times of one without")
    for cell in ("RNN", "GRU", "LSTM"):
        for sizes in SIZES:
            found = time_resets(cell, sizes, 3 * arguments.rounds)
            words = ", ".join(f"{name} {ratio:.3f}" for name, ratio in found.items())
            print(f"{cell:4} T={sizes[0]} B={sizes[1]} H={sizes[2]}: {words}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
