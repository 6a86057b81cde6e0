"""examples/packed_rows.py: all ways see the same characters, and have the same loss."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import packed_rows
from segmenter import Segmenter, Vocabulary, bucket
from test_example import write_corpus


def test_batches_hold_every_text_once():
    lengths = torch.randint(1, 60, (200,)).tolist()
    batches = packed_rows.shuffled_batches(lengths, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(sum(lengths[i] for i in batch) <= 100 for batch in batches)


def test_all_ways_have_the_same_loss_and_gradients(tmp_path):
    corpus = packed_rows.read_archive(write_corpus(tmp_path))
    sentences, _ = packed_rows.split(corpus)
    vocabulary = Vocabulary.of([sentence.text for sentence in sentences])
    texts = [vocabulary.encode(*sentence) for sentence in sentences]
    lengths = [len(sentence.text) for sentence in sentences]
    model = Segmenter(vocabulary, 4, 6, "lstm", dropout=0.0, sparse=False).double()
    ways = packed_rows.Ways(model, texts, max(lengths) + 3)
    (indices,) = bucket(lengths[:12], 10_000)
    results = []
    for loss in (ways.rows(indices), ways.side_by_side(indices)):
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert ways.padded(indices).isfinite()


def test_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packed_rows, "SIZES", ((4, 2, 3),))
    corpus = str(write_corpus(tmp_path))
    options = ["--hidden-size", "8", "--batch-characters", "60", "--batches", "1", "--rounds", "1"]
    threads = torch.get_num_threads()
    try:
        assert packed_rows.main(["--corpus", corpus, *options, "--train"]) == 0
    finally:
        torch.set_num_threads(threads)
    report = capsys.readouterr().out
    for name in ("rows", "buckets", "shuffled", "padded", "LSTM T=4 B=2 H=3: none 1.000"):
        assert name in report
    for name in ("buckets", "rows"):
        assert re.search(rf"trained on {name} +F1 [01]\.\d{{4}}", report)
