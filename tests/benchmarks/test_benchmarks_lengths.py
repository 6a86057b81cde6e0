"""What the benchmark suite draws, measures and shows of sequences of unequal length."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from benchmark_support import fake_results, lengths_entry

from benchmarks import cpu_cases
from benchmarks.measure import cases
from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem
from benchmarks.measure.results import Results
from benchmarks.report import metrics, table
from benchmarks.sections import lengths


@pytest.mark.parametrize(("seq_len", "batch_size"), [(400, 8), (7, 32), (1, 3), (50, 1)])
def test_unequal_lengths_fill_every_batch_alike(seq_len: int, batch_size: int) -> None:
    """One in each B-th part of 1..T, whichever comes first; the longest is T."""
    case = Case("rnn", seq_len, batch_size, 2, 2, "inference")
    drawn = Problem.random(case, random.getrandbits(32), equal_lengths=False).lengths
    for part, length in enumerate(sorted(drawn.tolist())):
        assert part * seq_len // batch_size < length <= (part + 1) * seq_len // batch_size + 1
    assert drawn.max() == seq_len and drawn.min() >= 1
    if (seq_len, batch_size) == (400, 8):
        orders = {
            tuple(Problem.random(case, seed, equal_lengths=False).lengths.argsort().tolist())
            for seed in range(4)
        }
        assert len(orders) > 1


@pytest.mark.parametrize(("preset", "cells"), [("quick", 1), ("standard", 2), ("full", 3)])
def test_every_preset_takes_unequal_lengths_over_t(preset: str, cells: int) -> None:
    chosen = cpu_cases.PRESETS[preset].cases["lengths"]
    for cell in cases.CELLS[::-1][:cells]:
        for pass_name in cases.PASSES:
            swept = {
                case.seq_len
                for case in chosen
                if (case.cell, case.pass_name, case.hidden_size) == (cell, pass_name, 256)
            }
            assert swept >= ({50, 100, 200} if preset == "quick" else {50, 100, 200, 400})


def test_the_table_of_unequal_lengths_goes_over_t(tmp_path: Path) -> None:
    """Sweep by sweep, T rising; results of fewer ways have fewer columns."""
    entries = [
        lengths_entry(
            Case("gru", seq_len, 2, 3, 3, pass_name),
            plain=2.0,
            lengths_full=2.0,
            lengths_random=1.5,
            packed_random=1.0,
            torch_plain=4.0,
            torch_packed_random=seq_len,
        )
        for seq_len in (20, 5, 10)
        for pass_name in cases.PASSES
    ]
    results = Results.load(fake_results(tmp_path / "a.json", entries))
    shown = table.lengths(results.section("lengths"), results)
    assert [(row[1], row[5]) for row in shown.rows] == [
        (str(seq_len), pass_name) for pass_name in cases.PASSES for seq_len in (5, 10, 20)
    ]
    assert shown.rules == {2, 5}
    row = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert row["us a step"] == "600000.00"  # the median of 2 and 4 seconds, over 5 steps
    assert row["filled"] == "70%"  # lengths of 5 and 2
    assert [row[way] for way in lengths.VARIANTS[1:]] == ["1.00", "0.75", "0.50", "2.00", "2.50"]
    assert row["x torch packed random"] == "5.00"
    assert metrics.geometric_means(results) == [
        f"10.00 x as fast as torch.nn in {pass_name} on packed sequences "
        "(geometric mean of 3 cases, worst 5.00)"
        for pass_name in cases.PASSES
    ]
    for entry in entries:
        del entry["samples"]["torch plain"]
        entry["samples"].pop("plain" if entry["case"]["seq_len"] == 5 else "packed random")
    fewer = table.lengths(entries, results)
    assert "torch plain" not in fewer.columns
    assert fewer.rows[0][6] == "failed" and fewer.rows[1][-1] == table.NONE
