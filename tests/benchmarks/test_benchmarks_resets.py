"""What the benchmark suite draws, measures and shows of rows of several sequences."""

from __future__ import annotations

import dataclasses
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_support import fake_results, tiny_case

import birnn_cuda
from benchmarks import cpu_cases
from benchmarks.measure import cases
from benchmarks.measure.cases import Case
from benchmarks.measure.problem import LayerRun
from benchmarks.measure.results import Results
from benchmarks.measure.rows import Rows, resets_run, segments_run
from benchmarks.measure.timing import WALL
from benchmarks.peers import torchrl
from benchmarks.report import table
from benchmarks.sections.resets import ResetsMeasurement


def draw(cell: str, bidirectional: bool, pass_name: str = "training", share: float = 0.4) -> Rows:
    case = dataclasses.replace(tiny_case(cell, pass_name), bidirectional=bidirectional)
    return Rows.draw(case, random.getrandbits(32), share)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_the_answer_is_each_sequence_alone(cell: str, bidirectional: bool) -> None:
    rows = draw(cell, bidirectional)
    rows.resets[1, 0] = True
    layer = segments_run(rows, torch.float64).layer
    for b, sizes in enumerate(rows.sizes()):
        begin = 0
        for size in sizes:
            part = slice(begin, begin + size)
            alone = super(type(layer), layer).forward(rows.input[part, b : b + 1].double())[0]
            torch.testing.assert_close(rows.answer["output"][part, b : b + 1], alone.detach())
            begin += size
        assert begin == rows.case.seq_len


@pytest.mark.parametrize("pass_name", cases.PASSES)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_all_compute_the_answer(cell: str, bidirectional: bool, pass_name: str) -> None:
    rows = draw(cell, bidirectional, pass_name)
    runs = [
        resets_run(birnn_cuda, rows, torch.float32),
        segments_run(rows, torch.float32),
    ]
    if torchrl.absent() is None and torchrl.declines(rows.case) is None:
        runs.append(torchrl.TorchRlRun(rows))
    for run in runs:
        assert rows.check(run.results(run.step())).reason is None
    rows.resets[1:-1] = ~rows.resets[1:-1]
    wrong = resets_run(birnn_cuda, rows, torch.float32)
    assert "wrong" in (rows.check(wrong.results(wrong.step())).reason or "")


def test_shares_have_the_same_numbers() -> None:
    case = Case("gru", 100, 50, 2, 2, "inference")
    none, few, many = (Rows.draw(case, 5, share) for share in (0.0, 0.01, 0.1))
    assert torch.equal(none.input, many.input) and not none.resets.any()
    assert 0.005 < few.resets.float().mean() < 0.015 and 0.08 < many.resets.float().mean() < 0.12
    assert not many.resets[0].any() and (few.resets <= many.resets).all()
    plain = LayerRun(birnn_cuda, none, torch.float32)
    assert none.check(plain.results(plain.step())).reason is None


@pytest.mark.parametrize("preset", cases.PRESET_NAMES)
def test_every_preset_has_rows(preset: str) -> None:
    chosen = cpu_cases.PRESETS[preset].cases["resets"]
    assert {case.pass_name for case in chosen} == set(cases.PASSES)
    assert any(not case.bidirectional for case in chosen)


def test_what_is_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrl, "absent", partial(str, "cannot be imported: no such module"))
    limits = cases.Limits(seconds=0.0, min_rounds=2, max_rounds=2, min_sample=0.0)
    session = SimpleNamespace(
        seed_of=lambda key: 5,
        subject=SimpleNamespace(
            build=lambda rows: LayerRun(birnn_cuda, rows, torch.float32),
            namespace=lambda: birnn_cuda,
        ),
        preset=SimpleNamespace(limits=limits),
        stopwatch=WALL,
    )
    measurement = ResetsMeasurement(Case("gru", 30, 3, 4, 4, "training", bidirectional=False))
    entry = {"key": measurement.key, **measurement.measure(session)}  # type: ignore[arg-type]
    assert entry["failed"] == {} and entry["skipped"]["torchrl"].startswith("cannot be imported")
    assert set(entry["samples"]) == {"plain", "resets 1%", "resets 10%"}
    entry["samples"] = {"plain": [2.0], "resets 1%": [2.0], "resets 10%": [3.0]}
    entry["samples"] |= {"torchrl 0%": [4.0], "torchrl 10%": [6.0]}
    results = Results.load(fake_results(tmp_path / "a.json", [entry]))
    (shown,) = [each for each in table.tables(results) if each.title.startswith("Resets")]
    row = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert (row["resets 1%"], row["resets 10%"]) == ("1.00", "1.50")
    assert (row["x torchrl 0%"], row["x torchrl 10%"]) == ("2.00", "2.00")
    assert "x torchrl 1%" not in row
