"""The benchmark suite itself: what it refuses, what it catches, what it counts. No timings."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="the benchmarks print by rich")

from benchmark_support import (
    StandIn,
    command,
    fake_entry,
    fake_results,
    noisy,
    tiny_case,
)
from rich.console import Console
from rich.progress import Progress

from benchmarks import __main__, cpu, cpu_cases
from benchmarks import command as measuring
from benchmarks.measure import cases, child, progress, timing
from benchmarks.measure.cases import Case, FilterError, Limits, Preset, grid
from benchmarks.measure.flops import flops, products
from benchmarks.measure.problem import TIMES_TORCH, LayerRun, Problem, relative_error
from benchmarks.measure.results import Results, ResultsError
from benchmarks.measure.terminal import Table, Terminal
from benchmarks.report import compare, metrics
from benchmarks.sections import lengths, memory, memory_child, session
from benchmarks.sections.contest import Entrant, contest

TINY_LIMITS = Limits(seconds=0.0, min_rounds=2, max_rounds=2, min_sample=0.0)
TINY = Preset(
    cases={
        "layers": grid(cases.CELLS, ((4, 2, 3), (5, 1, 2)), ("fp32",)),
        "lengths": grid(("gru",), cases.over_length((4, 6), 2, 3), ("fp32",)),
        "memory": [],
        "accuracy": grid(("lstm",), ((4, 2, 3),), ("fp32", "fp64"), ("training",)),
    },
    limits=TINY_LIMITS,
    accuracy_draws=2,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products on many threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks cpu` on two tiny shapes, as the preset standard."""
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    monkeypatch.setattr(cpu.CpuCommand, "presets", {"standard": TINY})
    monkeypatch.setitem(timing.GEMM_SIZES, "cpu", 16)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


# What the entrants are held to.


@pytest.mark.parametrize("tensor", ["output", "h_n", "d_input", "d_weight_hh_l0_reverse"])
def test_a_peer_with_wrong_results_is_reported_and_not_timed(tensor: str) -> None:
    problem = Problem.random(tiny_case(), seed=random.getrandbits(32))

    class Wrong(LayerRun):
        def results(self, returned: Any) -> dict[str, torch.Tensor]:
            results = {name: value.clone() for name, value in super().results(returned).items()}
            results[tensor].view(-1)[0] += 0.01
            return results

    entrants = [
        Entrant("right", lambda: LayerRun(torch.nn, problem, torch.float32), problem),
        Entrant("wrong", lambda: Wrong(torch.nn, problem, torch.float32), problem),
    ]
    entry = contest(entrants, TINY_LIMITS, random.Random(0), required="right")
    assert list(entry["failed"]) == ["wrong"]
    assert tensor in entry["failed"]["wrong"]
    assert list(entry["samples"]) == ["right"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda results: results.pop("h_n"), "returned no h_n"),
        (lambda results: results["output"].fill_(float("nan")), "wrong output"),
        (lambda results: results.update(c_n=results["c_n"][:1]), "c_n has shape"),
    ],
)
def test_missing_nan_and_misshapen_results_are_wrong(spoil: Any, reason: str) -> None:
    problem = Problem.random(tiny_case(), seed=1)
    results = {name: value.clone() for name, value in problem.answer.items()}
    assert problem.check(results).reason is None
    spoil(results)
    assert reason in (problem.check(results).reason or "")


def test_a_peer_that_raises_does_not_end_the_run() -> None:
    problem = Problem.random(tiny_case(pass_name="inference"), seed=1)

    def broken() -> LayerRun:
        raise RuntimeError("no such kernel")

    entrants = [
        Entrant("right", lambda: LayerRun(torch.nn, problem, torch.float32), problem),
        Entrant("broken", broken, problem),
    ]
    entry = contest(entrants, TINY_LIMITS, random.Random(0), required="right")
    assert entry["failed"] == {"broken": "RuntimeError: no such kernel"}
    assert len(entry["samples"]["right"]) == TINY_LIMITS.min_rounds
    assert contest(entrants, TINY_LIMITS, random.Random(0), required="broken")["samples"] == {}


@pytest.mark.parametrize("feed", ["lengths", "packed"])
@pytest.mark.parametrize("pass_name", cases.PASSES)
def test_unequal_lengths_have_one_answer_however_they_are_fed(feed: str, pass_name: str) -> None:
    problem = Problem.random(tiny_case("gru", pass_name), seed=3, equal_lengths=False)
    run = LayerRun(StandIn.Namespace, problem, torch.float32, feed)
    assert problem.check(run.results(run.step())).reason is None
    equal = Problem.random(tiny_case("gru", pass_name), seed=3)
    assert equal.check(run.results(run.step())).reason is not None


def test_sixteen_bits_are_held_to_a_multiple_of_torchs_error() -> None:
    problem = Problem.random(tiny_case(dtype="bf16", pass_name="inference"), seed=5)
    run = LayerRun(torch.nn, problem, torch.bfloat16)
    results = run.results(run.step())
    assert problem.check(results).reason is None
    error = relative_error(results["output"], problem.answer["output"])
    assert problem.tolerances["output"] == pytest.approx(TIMES_TORCH * error + 2**-8)


# What is counted.


def test_flops_by_hand() -> None:
    # LSTM, T=3, B=2, I=5, H=7: 2 directions x 6 rows x 28 gate rows, 2 operations a weight.
    case = Case("lstm", 3, 2, 5, 7, "inference")
    assert products(case) == {"input_projection": 3360, "recurrent": 4704}
    assert flops(case) == 8064
    training = Case("lstm", 3, 2, 5, 7, "training")
    assert flops(training) == 3 * 8064
    assert products(training)["d_weight_hh"] == 4704
    assert flops(Case("gru", 3, 2, 5, 7, "inference")) == 8064 * 3 // 4
    assert flops(Case("rnn", 3, 2, 5, 7, "inference")) == 8064 // 4


def test_ratios_are_taken_pair_by_pair() -> None:
    assert timing.median_ratio([2, 30, 4], [1, 10, 4]) == 2
    assert timing.geometric_mean([2, 8]) == pytest.approx(4)
    assert timing.geometric_mean([]) is None
    assert timing.spread([1.0, 1.0, 1.0]) == 0


def test_the_interval_of_a_median() -> None:
    assert timing.median_interval([3.0]) == (3.0, 3.0)
    assert timing.median_interval([2.0, 1.0, 3.0]) == (1.0, 3.0)
    # 10 samples: P(the median lies outside the extremes) = 2/1024; outside the next: 22/1024.
    ten = [float(value) for value in range(1, 11)]
    assert timing.median_interval(ten) == (1.0, 10.0)
    assert timing.median_interval(ten, confidence=0.97) == (2.0, 9.0)


def test_every_round_times_everyone_once_in_random_order() -> None:
    """Each after an untimed call of its own."""
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    limits = Limits(seconds=0.0, min_rounds=30, max_rounds=30, min_sample=0.0)
    repeats, samples = timing.interleave(steps, random.Random(0), limits)
    assert repeats == 1
    assert all(len(taken) == 30 for taken in samples.values())
    assert order[::2] == order[1::2]
    timed = order[1::2]
    rounds = ["".join(timed[i : i + 3]) for i in range(3, len(timed), 3)]
    assert {"".join(sorted(played)) for played in rounds} == {"abc"}
    assert len(set(rounds)) == 6


def test_share_of_floor() -> None:
    entry = {"flops": 10**6, "case": {"dtype": "fp32"}, "samples": {"birnn_cuda": [4e-3]}}
    gemm = {"fp32": [1e3, 2 * timing.GEMM_SIZES["cpu"] ** 3 / 1e9]}  # the best of them: 1 GFLOP/s
    assert metrics.share_of_floor(entry, gemm) == pytest.approx(0.25)


def test_a_child_measures_the_memory_of_a_step() -> None:
    case = Case("gru", 64, 32, 64, 128, "training")
    output = 64 * 32 * 2 * 128 * 4
    peak, kept = memory.cpu_bytes("torch.nn", case)
    assert output < peak < 100 * output
    # torch.nn's GRU keeps the activations of its three gates at least.
    assert 3 * output <= kept < peak


def test_what_a_forward_pass_keeps_is_counted_once() -> None:
    class Run:
        leaves = (torch.zeros(100, requires_grad=True),)

        def forward(self) -> Any:
            x = self.leaves[0] * 1
            saved = x.exp()  # keeps its result
            view = saved[:10].sin() + saved[10:20].sin()  # keep views of it
            return view.tanh(), view.exp()  # each keeps its result, which is returned

    assert memory_child.kept_bytes(Run()) == 100 * 4  # type: ignore[arg-type]


def test_a_failed_child_says_why() -> None:
    with pytest.raises(child.ChildError, match="No module named 'no_such_layers'"):
        child.run_python("-c", "import no_such_layers")


def test_time_left_follows_the_pace() -> None:
    column, now = progress.TimeLeftColumn(), [0.0]
    bar = Progress(column, get_time=lambda: now[0])
    bar.add_task("", total=100.0)
    task = bar.tasks[0]
    assert str(column.render(task)) == "0:01:40 left"
    now[0] = 30.0
    bar.advance(task.id, 10.0)  # three times as slow as estimated
    assert str(column.render(task)) == "0:04:30 left"
    now[0] = 40.0
    assert str(column.render(task)) == "0:04:20 left"
    now[0] = 4000.0
    assert str(column.render(task)) == "0:00:00 left"


# Filters.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cell", "lstn"), "--cell lstn: valid values are rnn, gru, lstm"),
        (
            ("--hidden", "100"),
            "--hidden 100: valid values are 50, 64, 128, 256, 300, 512, 768, 1024",
        ),
        (("--pass", "backward"), "--pass backward: valid values are inference, training"),
        (("--batch", "64", "--length", "100"), "together; the shapes are (T=100, B=1, H=64)"),
        (("--preset", "slow"), "--preset slow: valid values are quick, standard, full"),
        (
            ("--section", "all"),
            "--section all: valid values are layers, dtypes, lengths, resets, memory, accuracy",
        ),
        (("--peer", "keras"), "--peer keras: valid values are torch.nn, onnxruntime, openvino"),
        (("--threads", "0"), "--threads 0: it must be at least 1"),
    ],
)
def test_an_unknown_filter_lists_the_valid_ones(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measuring, "LayerPeer", StandIn)
    out = tmp_path / "a.json"
    assert command("cpu", "--out", out, *arguments) == __main__.REFUSED
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_filters_choose_cases() -> None:
    wanted = {"cell": ["gru"], "hidden": ["256", "64"], "pass": ["training"]}
    chosen = cases.select(cpu_cases.PRESETS["standard"].cases, wanted)
    keys = [case.key for case in chosen["layers"]]
    assert keys == [
        "gru/T100-B1-I64-H64/fp32/training",
        "gru/T100-B1-I256-H256/fp32/training",
        "gru/T100-B8-I256-H256/fp32/training",
    ]
    assert chosen["memory"] == []
    with pytest.raises(FilterError, match="import has no cases"):
        cpu.COMMAND.plan(cpu_cases.PRESETS["quick"], ["import"], {"cell": ["gru"]})


# The results file.


def test_truncated_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fake_results(tmp_path / "a.json", [fake_entry("x", [1.0], [1.0])])
    cut = tmp_path / "cut.json"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ResultsError, match="truncated"):
        Results.load(cut)
    assert command("compare", whole, cut) == __main__.REFUSED
    assert "cut.json is truncated or damaged" in capsys.readouterr().err
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[1, 2]")
    with pytest.raises(ResultsError, match="not a results file"):
        Results.load(foreign)
    data = json.loads(whole.read_text())
    del data["entries"]
    foreign.write_text(json.dumps(data))
    with pytest.raises(ResultsError, match="lacks entries"):
        Results.load(foreign)
    with pytest.raises(ResultsError, match="cannot be read"):
        Results.load(tmp_path / "none.json")


@pytest.mark.usefixtures("tiny_cpu")
def test_a_run_writes_everything_and_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    sections = ("layers", "lengths")
    assert command("cpu", "--out", out, "--seed", 7, "--section", *sections) == 0
    results = Results.load(out)
    assert results.data["finished"]
    assert results.data["settings"]["seed"] == 7
    assert results.data["machine"]["threads"] == torch.get_num_threads()
    assert len(results.section("layers")) == 12
    assert len(results.section("lengths")) == 4
    for entry in results.section("lengths"):
        assert list(entry["samples"]) == list(lengths.VARIANTS)
    for entry in results.entries:
        assert entry["failed"] == {}
        assert all(len(taken) == TINY_LIMITS.min_rounds for taken in entry["samples"].values())
    printed = capsys.readouterr().out
    for expected in ("seed 7", "x torch.nn", "of floor", "packed random", "geometric mean of 6"):
        assert expected in printed
    assert command("cpu", "--out", out, "--section", *sections) == __main__.REFUSED
    assert "exists" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_cpu")
def test_a_failure_of_the_package_itself_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = StandIn.build

    def wrong_for_gru(self: StandIn, problem: Problem, feed: str = "padded") -> LayerRun:
        run = build(self, problem, feed)
        if problem.case.cell == "gru" and self.name == "birnn_cuda":
            run.layer.bias_hh_l0.data[0] += 0.1
        return run

    monkeypatch.setattr(StandIn, "build", wrong_for_gru)
    out = tmp_path / "a.json"
    assert command("cpu", "--out", out, "--section", "layers") == 1
    assert "failed, not timed: birnn_cuda in layers/gru/" in capsys.readouterr().out
    for entry in Results.load(out).entries:
        assert ("birnn_cuda" in entry["samples"]) == (entry["case"]["cell"] != "gru")


@pytest.mark.usefixtures("tiny_cpu")
def test_resume_keeps_what_is_done_and_measures_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    sample_gemm = session.Session.sample_gemm
    calls = []

    def interrupted(self: session.Session, dtype: str) -> None:
        calls.append(dtype)
        if len(calls) == 5:  # two an entry
            raise KeyboardInterrupt
        sample_gemm(self, dtype)

    monkeypatch.setattr(session.Session, "sample_gemm", interrupted)
    arguments = ("--section", "layers", "--cell", "lstm")
    assert command("cpu", "--out", out, *arguments) == measuring.INTERRUPTED
    assert f"--resume --out {out}" in capsys.readouterr().out
    halted = copy.deepcopy(Results.load(out))
    assert not halted.data["finished"]
    assert len(halted.entries) == 2

    assert command("cpu", "--resume", "--out", out, "--cell", "gru") == __main__.REFUSED
    assert "leave out --cell" in capsys.readouterr().err
    assert command("cpu", "--resume", "--out", out) == 0
    resumed = Results.load(out)
    assert resumed.data["finished"]
    assert resumed.entries[:2] == halted.entries
    assert [entry["case"]["cell"] for entry in resumed.entries] == ["lstm"] * 4
    assert len({entry["key"] for entry in resumed.entries}) == 4
    assert len(calls) == 5 + 4


@pytest.mark.usefixtures("tiny_cpu")
def test_resume_refuses_to_mix_two_states_of_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    assert command("cpu", "--out", out, "--section", "layers", "--cell", "rnn") == 0
    data = json.loads(out.read_text())
    data["code"]["digest"] = "another"
    out.write_text(json.dumps(data))
    assert command("cpu", "--resume", "--out", out) == __main__.REFUSED
    assert "code digest was another" in capsys.readouterr().err


# Comparing.


def test_compare_finds_a_planted_slowdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    keys = [f"layers/{name}" for name in "abcdef"]

    def run(name: str, slower_key: str | None, machine: float) -> Path:
        entries = []
        for key in keys:
            own = 1.3e-3 if key == slower_key else 1e-3
            entries.append(fake_entry(key, noisy(rng, own * machine), noisy(rng, 2e-3 * machine)))
        return fake_results(tmp_path / name, entries)

    before = run("before.json", None, 1.0)
    same = run("same.json", None, 1.5)  # the whole machine is slower: not this package's doing
    slower = run("slower.json", "layers/c", 1.0)
    assert command("compare", before, same) == 0
    assert "6 compared: 0 slower" in capsys.readouterr().out
    assert command("compare", before, slower) == 1
    printed = capsys.readouterr().out
    assert "1 slower" in printed
    assert "layers/c" in printed
    assert "layers/d" not in printed
    assert command("compare", slower, before) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out


def test_compare_reports_what_newly_fails(tmp_path: Path) -> None:
    entry = fake_entry("layers/a", [1.0, 1.0], [1.0, 1.0])
    broken = {**entry, "samples": {}, "failed": {"birnn_cuda": "wrong output"}}
    before = fake_results(tmp_path / "before.json", [entry])
    after = fake_results(tmp_path / "after.json", [broken])
    assert command("compare", before, after) == 1
    comparison = compare.compare(Results.load(before), Results.load(after))
    assert comparison.newly_failed == ["now fails: birnn_cuda in layers/a: wrong output"]
    assert compare.compare(Results.load(after), Results.load(after)).newly_failed == []
    # What is not timed can fail too.
    accuracy = {**entry, "section": "accuracy", "samples": {}, "errors": {}}
    untimed = [
        fake_results(tmp_path / name, [{**accuracy, "failed": failed}])
        for name, failed in (("right.json", {}), ("wrong.json", {"birnn_cuda": "wrong h_n"}))
    ]
    assert command("compare", *untimed) == 1


def test_compare_needs_something_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fake_results(tmp_path / "a.json", [fake_entry("layers/a", [1.0], [1.0])])
    after = fake_results(tmp_path / "b.json", [fake_entry("layers/b", [1.0], [1.0])])
    assert command("compare", before, after) == __main__.REFUSED
    assert "no timing in common" in capsys.readouterr().err


def test_compare_without_a_shared_control_looks_at_the_time_itself(tmp_path: Path) -> None:
    rng = random.Random(1)
    quick, slow = noisy(rng, 1e-3), noisy(rng, 2e-3)
    before = fake_results(tmp_path / "a.json", [fake_entry("layers/a", quick, slow)])
    after = fake_results(tmp_path / "b.json", [fake_entry("layers/a", quick, quick)])
    data = json.loads(after.read_text())
    data["versions"]["torch"] = "3"  # a faster torch does not make this package slower
    after.write_text(json.dumps(data))
    comparison = compare.compare(Results.load(before), Results.load(after))
    assert comparison.slower == []
    assert compare.different_circumstances(Results.load(before), Results.load(after)) == [
        "differs: versions torch: 2 -> 3"
    ]


# Printing.


def test_a_narrow_terminal_breaks_lines_and_cuts_no_figure() -> None:
    shown = io.StringIO()
    terminal = Terminal(shown)
    terminal.console = Console(file=shown, width=20)
    columns = [f"column {index}" for index in range(9)]
    table = Table("Title", columns, columns[:1])
    table.add(*[f"{index}.123456" for index in range(9)])
    terminal.table(table)
    assert all(f"{index}.123456" in shown.getvalue() for index in range(9))
    assert table.markdown() == [
        f"| {' | '.join(columns)} |",
        "|---" + "|--:" * 8 + "|",
        "| " + " | ".join(f"{index}.123456" for index in range(9)) + " |",
    ]
    title, head, row = table.plain()
    assert title == "Title" and len(head) == len(row) and row.endswith("  8.123456")
