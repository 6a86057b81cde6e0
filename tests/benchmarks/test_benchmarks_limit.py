"""The limit model: its table, its constants, and how measured ones replace them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.cases import Case
from benchmarks.measure.flops import products
from benchmarks.measure.results import Results
from benchmarks.model import limit_model
from benchmarks.model.limit_model import PUBLISHED, measured, microseconds_a_step, recurrence
from benchmarks.sections import micro

# Microseconds a step, both directions: LSTM / GRU / RNN in 16 bits; LSTM in fp32 as bf16x3.
BATCH_SIZES = (1, 8, 32, 64, 128, 256)
TABLE = """
64   | .47/.58/.36; .86 | .47/.58/.36; .86 | .47/.58/.36; .86 | .47/.58/.36; .86 | .47/.58/.36; .86 | .47/.58/.36; .86
128  | .47/.58/.36; .86 | .47/.58/.36; .86 | .48/.58/.36; .86 | .48/.58/.36; .86 | .51/.58/.36; .86 | .57/.58/.37; .97
256  | .49/.58/.37; .86 | .51/.58/.39; .86 | .62/.58/.43; .97 | .67/.58/.44; 1.4 | .98/.80/.45; 2.1 | 1.4/.95/.46; 2.9
512  | .71/.62/.43; .95 | .74/.66/.46; 1.2 | 1.2/.89/.56; 1.9 | 1.6/1.3/.71; 2.8 | 2.3/1.8/1.1; 4.6 | 3.3/2.8/1.4; 7.0
1024 | 1.1/1.0/.64; 1.6 | 1.2/1.2/.70; 2.1 | 2.5/1.9/1.1; 5.0 | 4.1/3.0/1.6; 7.9 | 5.6/4.5/2.4; 13 | 9.8/8.1/3.9; 24
2048 | 3.0/2.4/1.0; 49 | 4.1/3.2/1.4; 49 | 8.4/7.9/3.7; 49 | 15/14/4.1; 49 | 26/20/6.3; 49 | 31/24/9.9; 89
"""  # noqa: E501


def table_cells() -> list[tuple[int, int, str]]:
    rows = [line.split("|") for line in TABLE.strip().splitlines()]
    return [
        (int(row[0]), batch_size, cell.strip())
        for row in rows
        for batch_size, cell in zip(BATCH_SIZES, row[1:], strict=True)
    ]


@pytest.mark.parametrize(("hidden_size", "batch_size", "cell"), table_cells())
def test_the_table(hidden_size: int, batch_size: int, cell: str) -> None:
    sixteen_bits, wide = cell.split("; ")
    texts = [*sixteen_bits.split("/"), wide]
    columns = (("lstm", "16"), ("gru", "16"), ("rnn", "16"), ("lstm", "fp32"))
    for (name, mode), text in zip(columns, texts, strict=True):
        value = recurrence(name, hidden_size, batch_size, mode).microseconds
        digits = len(text.partition(".")[2])
        # The table was rounded from two digits after the point.
        assert abs(round(value, 2) - float(text)) <= 0.5 * 10**-digits + 1e-9, (name, mode, value)


def test_which_arrangement_it_takes() -> None:
    assert recurrence("lstm", 64, 8, "16").exchange == "block"
    assert recurrence("lstm", 256, 8, "16").exchange == "cluster"
    assert recurrence("lstm", 1024, 8, "16").exchange == "l2"
    assert recurrence("lstm", 2048, 8, "fp32").exchange == "graph"


def test_the_limit_of_a_case_is_recurrence_and_projection() -> None:
    case = Case("gru", 256, 32, 512, 512, "inference", "bf16")
    alone = recurrence("gru", 512, 32, "16").microseconds
    projection = products(case)["input_projection"] / 500e12 * 1e6 / 256
    assert microseconds_a_step(case, 500e12) == pytest.approx(alone + projection)
    by_the_model = products(case)["input_projection"] / 600e12 * 1e6 / 256
    assert microseconds_a_step(case, None) == pytest.approx(alone + by_the_model)
    for other in (
        dataclasses.replace(case, pass_name="training"),
        dataclasses.replace(case, dtype="fp64"),
        case.one_direction(),
    ):
        assert microseconds_a_step(other, 500e12) is None


def gather(cluster: int, clusters: int, slice_bytes: int, clocks: float) -> dict[str, Any]:
    return {
        "what": "all-gather",
        "cluster": cluster,
        "clusters": clusters,
        "slice_bytes": slice_bytes,
        "clocks": clocks,
    }


def test_measured_constants_replace_published_ones() -> None:
    # 300 clocks of latency, then 20 bytes a clock, with all clusters; alone it is better.
    results = [
        gather(size, clusters, slice_bytes, 300 + slice_bytes * (size - 1) / rate)
        for size in (4, 8, 16)
        for clusters, rate in ((1, 60), (7, 20))
        for slice_bytes in (128, 1024, 4096)
    ]
    results += [
        {"what": "L2 data-poll hop", "clocks": 777.0},
        {"what": "clusters that fit", "cluster": 8, "shared_bytes": 1024, "count": 99},
        {"what": "clusters that fit", "cluster": 8, "shared_bytes": 204800, "count": 16},
    ]
    constants = measured({"device": "a chip", "results": results})
    assert constants.cluster_bytes_per_clock == pytest.approx(20)
    assert constants.cluster_exchange_clocks == pytest.approx(300)
    assert constants.l2_exchange_clocks == 777
    assert constants.clusters_that_fit == {**PUBLISHED.clusters_that_fit, 8: 16}
    assert constants.mma_flops_per_clock == PUBLISHED.mma_flops_per_clock
    assert constants.source.startswith("measured on a chip: cluster_bytes_per_clock")
    slower = recurrence("lstm", 256, 8, "16", constants).microseconds
    assert slower > recurrence("lstm", 256, 8, "16").microseconds


def test_what_was_not_measured_or_makes_no_sense_stays() -> None:
    backwards = [gather(8, 1, 128, 900.0), gather(8, 1, 4096, 500.0)]
    for results in ([], backwards, [gather(8, 1, 128, 900.0)]):
        constants = measured({"results": results})
        assert dataclasses.replace(constants, source=PUBLISHED.source) == PUBLISHED
        assert "nothing" in constants.source


def test_the_names_are_those_of_the_microbenchmarks() -> None:
    source = (Path(micro.__file__).parent / "micro.cu").read_text()
    for name in (limit_model.ALL_GATHER, limit_model.CLUSTERS):
        assert f'"what": "{name}"' in source
    assert f'"{limit_model.L2_HOP}"' in source
    for field in ("slice_bytes", "clusters", "clocks", "shared_bytes", "count", "cluster"):
        assert f'"{field}": %' in source


def test_constants_survive_a_results_file(tmp_path: Path) -> None:
    header = {name: {} for name in ("settings", "machine", "versions", "code", "absent")}
    saved = {**header, "limit_model": dataclasses.asdict(PUBLISHED)}
    results = Results.create(tmp_path / "a.json", "cuda", saved)
    loaded = json.loads(results.path.read_text())["limit_model"]
    assert limit_model.constants_from(loaded) == PUBLISHED
