"""``python -m benchmarks readme``: the figures and the picture of the READMEs and of docs.

They are made from the committed results files, benchmarks/results/cpu.json, cpu_*.json of other
processors and, once there is one, cuda.json; those of docs/streaming.md from streaming.json, which
`make streaming-figures` measures, and streaming_*.json of other processors. A test fails when they
differ.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.cases import PASSES
from benchmarks.measure.results import Entry, Results, ResultsError
from benchmarks.measure.terminal import Table, Terminal
from benchmarks.measure.timing import gemm_rate, median_ratio
from benchmarks.peers.peer import GRAPH, SUBJECT, TORCH
from benchmarks.report.metrics import (
    FEWER_BITS,
    MEBIBYTE,
    describe,
    describe_device,
    geometric_means,
    means,
    peer_names,
    ratio_in_rounds,
    share_of_floor,
    step_microseconds,
    times_as_fast,
)
from benchmarks.report.table import (
    NONE,
    busy,
    case_cells,
    failures,
    lengths,
    streaming,
    tables,
)
from benchmarks.sections.busy import SECOND, SPINNING

BEGIN = "<!-- python -m benchmarks readme: from here -->"
END = "<!-- python -m benchmarks readme: to here -->"
ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
README_ZH = ROOT / "README.zh-CN.md"
SPEED = ROOT / "docs" / "speed.md"
STREAMING = ROOT / "docs" / "streaming.md"
SUITE_README = ROOT / "benchmarks" / "README.md"
IMAGES = ROOT / "docs" / "images"
SHOWN = ROOT / "benchmarks" / "results" / "cpu.json"
SHOWN_CUDA = ROOT / "benchmarks" / "results" / "cuda.json"
NO_CUDA_RESULTS = "Results of a GPU have not been committed yet."
NOTHING = "Results have not been committed yet.\n"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "readme",
        help="write the figures in the READMEs, docs/speed.md and docs/streaming.md",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    for path, text in shown().items():
        path.write_text(insert(path.read_text(encoding="utf-8"), text), encoding="utf-8")
        terminal.line(f"wrote the figures in {path.relative_to(ROOT)}")
    from benchmarks.report import overview  # matplotlib is slow to import

    for theme in overview.THEMES:
        path = picture_path(theme.name)
        path.write_text(overview.svg(on_processors(), theme), encoding="utf-8")
        terminal.line(f"drew {path.relative_to(ROOT)}")
    return 0


def picture_path(theme: str) -> Path:
    """Where the READMEs' picture for light or dark pages stands."""
    return IMAGES / f"speed-{theme}.svg"


def on_processors() -> list[Results]:
    """The committed results of CPUs."""
    return [Results.load(path) for path in (SHOWN, *sorted(SHOWN.parent.glob("cpu_*.json")))]


def streams() -> list[Results]:
    """The committed results of streaming, of each processor."""
    return [Results.load(path) for path in sorted(SHOWN.parent.glob("streaming*.json"))]


def shown() -> dict[Path, str]:
    """What stands between the markers of each file."""
    results = on_processors()
    if SHOWN_CUDA.exists():
        results.append(Results.load(SHOWN_CUDA))
    parts = [everything(each) for each in results]
    if not SHOWN_CUDA.exists():
        parts.append(f"{NO_CUDA_RESULTS}\n")
    speeds = [speed_on_cuda(each) if each.device == "cuda" else speed(each) for each in results]
    return {
        README: headlines(results, AGAINST, {name: name for name in PASSES}, {}, ERRORS),
        README_ZH: headlines(results, AGAINST_ZH, PASSES_ZH, WORDS_ZH, ERRORS_ZH),
        SPEED: "\n".join(speeds),
        STREAMING: "\n".join(map(of_streams, streams())) or NOTHING,
        SUITE_README: "\n".join(parts),
    }


AGAINST, AGAINST_ZH = "against", "对比对象"
PASSES_ZH = dict(zip(PASSES, ("推理", "训练"), strict=True))
ERRORS = "Largest error of an output against float64: {}."
ERRORS_ZH = "输出相对 float64 的最大误差: {}。"
WORDS_ZH = {
    "on packed sequences": "(打包序列)",
    "in bf16": "(bf16)",
    "in int8": "(int8)",
    "streaming": "(流式)",
    "by cells": "(单步单元)",
    SPINNING.lstrip(", "): "(旁边有空转进程)",
    SECOND.lstrip(", "): "(旁边有第二个同样的进程)",
}


def headlines(
    results: Sequence[Results],
    against: str,
    passes: Mapping[str, str],
    words: Mapping[str, str],
    errors: str,
) -> str:
    """The geometric means, a line for each peer, and the worst cases; `words` are translated."""
    rows: dict[str, dict[int, str]] = {}  # by column
    heads = [against]
    for each in results:
        where = (
            each.data["device"]["name"] if each.device == "cuda" else each.data["machine"]["cpu"]
        )
        columns = {name: len(heads) + i for i, name in enumerate(PASSES)}
        heads += [f"{where} {passes[name]}" for name in PASSES]
        for mean in means(each):
            pass_name = next((name for name in PASSES if mean.what.startswith(name)), PASSES[0])
            # What the pass alone does not say: in which way, in fewer bits, beside whom.
            way = mean.what.removeprefix(pass_name).lstrip(", ")
            if way.endswith(tuple(f"in {name}" for name in FEWER_BITS)):
                way = "" if mean.peer.endswith(way.removeprefix("in ")) else way
            for word, translated in words.items():
                way = way.replace(word, translated)
            row = rows.setdefault(f"{mean.peer} {way}".strip(), {})
            row[columns[pass_name]] = f"{mean.mean:.2f} ({min(mean.ratios):.2f})"
    table = Table("", heads, [against])
    for peer, figures in rows.items():
        table.add(peer, *(figures.get(column, NONE) for column in range(1, len(heads))))
    lines = table.markdown()
    if largest := _largest_errors(results):
        lines += ["", errors.format(largest)]
    return "\n".join(lines) + "\n"


def _largest_errors(results: Sequence[Results]) -> str:
    """In fewer bits, of every entrant's outputs, on any of the machines."""
    found: dict[str, float] = {}
    for entry in (entry for each in results for entry in each.section("dtypes")):
        for name, tensors in entry["errors"].items():
            if name.endswith(FEWER_BITS):
                found[name] = max(found.get(name, 0.0), *tensors["output"])
    names = sorted(found, key=lambda name: FEWER_BITS.index(name.split()[-1]))
    return ", ".join(f"{name} {found[name]:.0e}" for name in names)


def everything(results: Results) -> str:
    """All tables of a results file as Markdown, and the machine they are of."""
    lines = [f"**{results.path.name}**, {results.data['created'][:10]}:", ""]
    lines += [f"- {line}" for line in describe(results)]
    lines += [f"- {line.strip()}" for line in geometric_means(results)]
    for table in tables(results):
        lines += ["", f"{table.title}:", "", *table.markdown()]
    failed = failures(results)
    return "\n".join([*lines, *([""] if failed else []), *(f"- {line}" for line in failed), ""])


def of_streams(results: Results) -> str:
    """What docs/streaming.md shows: single calls, and beside other processes."""
    lines = [f"- {line}" for line in describe(results)]
    lines += [f"- {line.strip()}" for line in geometric_means(results)]
    for name, make_table in (("streaming", streaming), ("busy", busy)):
        if entries := results.section(name):
            table = make_table(entries, results)
            lines += ["", f"{table.title}:", "", *table.markdown()]
    return "\n".join(lines) + "\n"


def insert(text: str, table: str) -> str:
    """`text` with `table` in place of what stands between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"the table goes between the lines {BEGIN} and {END}: one is missing")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def speed(results: Results) -> str:
    """The results as Markdown."""
    machine, versions, gemm = (results.data[name] for name in ("machine", "versions", "gemm"))
    peers = [name for name in peer_names(results.section("layers")) if name != TORCH]
    against = " and ".join(
        [f"torch.nn of torch {versions['torch']}", *(f"{name} {versions[name]}" for name in peers)]
    )
    lines = [
        f"On {machine['cpu']}, {machine['cores']} cores, {machine['capability']}, fp32, both "
        f"directions unless it is said, against {against}; a 2048 x 2048 matrix product reaches "
        f"{gemm_rate(gemm['fp32']) / 1e9:.0f} GFLOP/s there.",
        "",
        *(f"- {line.strip()}" for line in geometric_means(results)),
        "",
        "| cell | T | B | H | inference, us a step | x torch.nn "
        + "".join(f"| x {name} " for name in peers)
        + "| of floor | training, us a step | x torch.nn | of floor |",
        "|---" + "|--:" * (9 + len(peers)) + "|",
    ]
    rows: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in results.section("layers"):
        case = entry["case"]
        if case["dtype"] == "fp32" and SUBJECT in entry["samples"]:
            row = tuple(case_cells(case)[:4])
            rows.setdefault(row, {})[case["pass_name"]] = entry
    for key, entries in rows.items():
        cells = list(key)
        for pass_name in PASSES:
            beside = [TORCH, *(peers if pass_name == "inference" else [])]
            cells += _cells(entries.get(pass_name), beside, gemm)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_dtypes(results), *_lengths(results), *_memory(results.section("memory"))]
    lines += _import_time(results.section("import"))
    return "\n".join(lines).rstrip("\n") + "\n"


def speed_on_cuda(results: Results) -> str:
    """A GPU's results as Markdown: the means, and the LSTM in fp16."""
    columns = ("cell", "T", "B", "H", "dtype", "pass")
    own, graph = SUBJECT, SUBJECT + GRAPH
    table = Table("", [*columns, "us a step", "in a graph", "x torch.nn", "x in a graph"], columns)
    for entry in results.section("layers"):
        case = entry["case"]
        if (case["cell"], case["dtype"]) == ("lstm", "fp16") and own in entry["samples"]:
            names = ("cell", "seq_len", "batch_size", "hidden_size", "dtype", "pass_name")
            figures = (
                *(step_microseconds(entry, name) for name in (own, graph)),
                *(times_as_fast(entry, peer) for peer in (TORCH, TORCH + GRAPH)),
            )
            cells = [NONE if figure is None else f"{figure:.2f}" for figure in figures]
            table.add(*(str(case[name]) for name in names), *cells)
    return "\n".join(
        [
            f"On {describe_device(results.data['device'])}, against torch.nn of torch "
            f"{results.data['versions']['torch']}, each eager and captured in a CUDA graph:",
            "",
            *(f"- {line.strip()}" for line in geometric_means(results)),
            "",
            *table.markdown(),
            "",
            *_lengths(results),
        ]
    )


def _cells(
    entry: Entry | None, peers: Sequence[str], gemm: Mapping[str, Sequence[float]]
) -> list[str]:
    if entry is None:
        return [NONE] * (2 + len(peers))
    samples = entry["samples"]
    own = samples[SUBJECT]
    return [
        f"{statistics.median(own) / entry['case']['seq_len'] * 1e6:.2f}",
        *(f"{median_ratio(samples[name], own):.2f}" if name in samples else NONE for name in peers),
        f"{share_of_floor(entry, gemm):.0%}",
    ]


def _dtypes(results: Results) -> list[str]:
    """Speed and error in fewer bits, as multiples of this package's own fp32 and of its peers'."""
    entries = results.section("dtypes")
    if not entries:
        return []
    lines = [
        "In fewer bits, on the same machine: times as fast as this package in fp32, as torch.nn in "
        "the same dtype (int8: `quantize_dynamic`) and, in int8, as onnxruntime; the error of the "
        "output against float64, of the numbers before they were rounded (torch.nn's in "
        "parentheses).",
        "",
        "| cell | T | B | H | pass | bf16 x fp32 | x torch.nn | error | int8 x fp32 | x torch.nn "
        "| x onnxruntime | error |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in entries:
        case = entry["case"]
        cells = [str(case[n]) for n in ("cell", "seq_len", "batch_size", "hidden_size")]
        cells.append(case["pass_name"])
        for dtype, peers in (("bf16", (TORCH,)), ("int8", (TORCH, "onnxruntime"))):
            own = f"{SUBJECT} {dtype}"
            others = [f"{SUBJECT} fp32", *(f"{peer} {dtype}" for peer in peers)]
            for other in others:
                ratio = ratio_in_rounds(entry, other, own)
                cells.append(NONE if ratio is None else f"{ratio:.2f}")
            errors = [
                f"{entry['errors'][name]['output'][0]:.1e}"
                for name in (own, f"{TORCH} {dtype}")
                if name in entry["errors"]
            ]
            cells.append(f"{errors[0]} ({', '.join(errors[1:])})" if errors[1:] else
                         (errors or [NONE])[0])  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _lengths(results: Results) -> list[str]:
    entries = results.section("lengths")
    if not entries:
        return []
    table = lengths(entries, results)
    return [
        "Sequences of unequal length, over T: what a step of the padded batch takes whose "
        "sequences are all full; then, as multiples of that, with `lengths=` (full, and random: "
        "filled says to what share), with the same random lengths packed, and torch.nn's; last, "
        "how many times as fast as torch.nn, both packed.",
        "",
        *table.markdown(),
        "",
    ]


def _memory(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        case = entry["case"]
        taken = " MiB, ".join(
            f"{name} {statistics.median(samples) / MEBIBYTE:.0f}"
            for name, samples in entry["samples"].items()
        )
        shape = f"T={case['seq_len']}, B={case['batch_size']}, H={case['hidden_size']}"
        lines.append(f"- Peak memory of a training step, {case['cell']}, {shape}: {taken} MiB.")
    return lines


def _import_time(entries: Sequence[Entry]) -> list[str]:
    return [
        "- Import: "
        + ", ".join(
            f"`{name}` {statistics.median(samples) * 1e3:.0f} ms"
            for name, samples in entry["samples"].items()
        )
        + "."
        for entry in entries
    ]
