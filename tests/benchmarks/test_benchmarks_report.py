"""The report: what it draws of which results, and that its page holds all of it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from benchmark_support import command, fake_results, lengths_entry

pytest.importorskip("matplotlib", reason="the report draws by matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from benchmarks.measure.cases import Case, grid
from benchmarks.measure.flops import compulsory_bytes, flops
from benchmarks.measure.results import Results
from benchmarks.model.limit_model import PUBLISHED, microseconds_a_step
from benchmarks.report import figures, metrics, page, pictures, readme, report

SHAPES = tuple((256, batch, hidden) for hidden in (128, 256, 512) for batch in (1, 32))
WAYS = ("birnn_cuda", "birnn_cuda graph", "torch.nn", "torch.nn graph")


def layer_entry(case: Case, seconds: dict[str, float], rng: random.Random) -> dict[str, Any]:
    samples = {
        name: [value * rng.uniform(0.98, 1.02) for _ in range(5)] for name, value in seconds.items()
    }
    return {
        "key": f"layers/{case.key}",
        "section": "layers",
        "unit": "seconds",
        "case": case.as_dict(),
        "flops": flops(case),
        "bytes": compulsory_bytes(case),
        "subjects": ["birnn_cuda", "birnn_cuda graph"],
        "control": "torch.nn",
        "failed": {},
        "samples": samples,
        "host_samples": samples,
        "kernel": "stepwise",
        "clocks": {"sm_mhz": [1700, 1750, 1980]},
    }


def made_up_cuda(path: Path, shapes: Any = SHAPES, dtypes: Any = ("fp16", "tf32")) -> Path:
    """Results of a GPU that does not exist: ours at twice the limit, torch's well above it."""
    rng = random.Random(3)
    entries = []
    layers = [
        *grid(("gru", "lstm"), shapes, dtypes),
        *grid(("lstm",), ((64, 32, 256), (1024, 32, 256)), ("fp16",)),
        Case("lstm", 1024, 16, 768, 768, "inference", "fp16", bidirectional=False),
    ]
    for case in layers:
        inference = dataclasses.replace(case, pass_name="inference", bidirectional=True)
        limit = microseconds_a_step(inference, None)
        assert limit is not None
        scale = limit * case.seq_len * 1e-6 * (3 if case.training else 1)
        theirs = {"lstm": 8, "gru": 5}[case.cell] if case.hidden_size < 512 else 1.6
        factors = (2.2, 2, 2.2 * theirs, 2 * theirs)
        seconds = {name: factor * scale for name, factor in zip(WAYS, factors, strict=True)}
        entries.append(layer_entry(case, seconds, rng))
    for case in grid(("lstm",), ((64, 2, 8), (256, 2, 8), (256, 2, 16)), ("fp16",)):
        step = case.seq_len * 1e-6
        entries.append(
            lengths_entry(
                case,
                plain=2 * step,
                lengths_full=2 * step,
                lengths_random=1.2 * step,
                packed_random=step,
                torch_plain=5 * step,
                torch_packed_random=7 * step,
            )
        )
    (memory,) = grid(("lstm",), SHAPES[:1], ("fp16",), ("training",))
    entries.append(
        {
            "key": f"memory/{memory.key}",
            "section": "memory",
            "unit": "bytes",
            "case": memory.as_dict(),
            "subjects": ["birnn_cuda"],
            "control": None,
            "failed": {"torch.nn packed": "out of <memory> & luck"},
            "kept": {"birnn_cuda": 2**25, "torch.nn": 2**26},
            "samples": {"birnn_cuda": [2**26], "torch.nn": [2**27]},
        }
    )
    for case in grid(("gru", "lstm"), SHAPES[:1], ("fp16", "fp32"), ("training",)):
        error = {"fp16": 3e-4, "fp32": 2e-7}[case.dtype]
        entries.append(
            {
                "key": f"accuracy/{case.key}",
                "section": "accuracy",
                "unit": "relative error",
                "case": case.as_dict(),
                "subjects": ["birnn_cuda"],
                "control": None,
                "failed": {},
                "errors": {
                    "birnn_cuda": {"output": [error, 1.5 * error], "h_n": [error / 2, error / 2]},
                    "torch.nn": {"output": [2 * error, error], "h_n": [error, error]},
                },
                "samples": {},
            }
        )
    fake_results(
        path,
        entries,
        command="cuda",
        created="1970-01-01",
        machine={
            "cpu": "a made-up processor",
            "cores": 4,
            "threads": 4,
            "capability": "AVX2",
            "load_average": 0.0,
        },
        versions={"torch": "2"},
        code={"commit": None, "modified": None, "digest": "0"},
        device={
            "name": "a made-up GPU",
            "multiprocessors": 132,
            "memory_bytes": 2**36,
            "driver": None,
            "cuda": "13.0",
            "cudnn": 91000,
            "max_sm_mhz": None,
        },
        limit_model=dataclasses.asdict(PUBLISHED),
    )
    return path


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many pixels in each direction: drawing is most of these tests' time."""
    monkeypatch.setattr(figures, "SHARPNESS", 1)


def test_a_page_of_cuda_results_is_whole_and_alone(tmp_path: Path) -> None:
    source = made_up_cuda(tmp_path / "a.json")
    assert command("report", source) == 0
    folder = tmp_path / "a-report"
    text = (folder / report.PAGE).read_text()
    files = {path.stem for path in folder.glob("*.png")}
    for expected in (
        "speedup-torch-nn-inference-fp16-lstm",
        "speedup-torch-nn-graph-training-tf32-gru",
        "hidden-inference-fp16-lstm",
        "batch-training-tf32-gru",
        "length-inference-fp16-lstm",
        "unequal-inference-fp16-lstm-B2-H8",
        "memory-peak",
        "memory-kept",
        "accuracy-gru",
    ):
        assert expected in files
    assert text.count("<img ") == text.count('src="data:image/png;base64,') == len(files)
    assert not re.search(r'(src|href)="(?!data:)', text) and "url(" not in text
    assert len(re.findall(r'alt="[^"]{20,}"', text)) == len(files)
    for expected in (
        "a made-up GPU",
        "x as fast as torch.nn graph in training",
        "lstm, 1 direction",
    ):
        assert expected in text
    assert "out of &lt;memory&gt; &amp; luck" in text
    assert "limit model: published figures" in text
    assert f"minmax(min(100%, {figures.WIDTH_PIXELS}px), 1fr)" in text and "@media print" in text


def test_a_page_of_cpu_results_and_of_several_files(tmp_path: Path) -> None:
    out = tmp_path / "page"
    cuda = made_up_cuda(tmp_path / "a.json", SHAPES[:2], ("fp16",))
    assert command("report", readme.SHOWN, cuda, "--out", out) == 0
    text = (out / report.PAGE).read_text()
    assert [text.count(f"<h1>{title}</h1>") for title in page.TITLES.values()] == [1, 1]
    assert (out / "1-speedup-onnxruntime-inference-fp32-gru.png").exists()
    assert (out / "2-speedup-torch-nn-inference-fp16-gru.png").exists()


def test_damaged_and_foreign_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made_up_cuda(tmp_path / "a.json", SHAPES[:1], ("fp16",))
    cut = tmp_path / "cut.json"
    cut.write_bytes(source.read_bytes()[:-50])
    out = tmp_path / "page"
    assert command("report", source, cut, "--out", out) == 2
    assert "cut.json is truncated or damaged" in capsys.readouterr().err
    assert command("report", source, "--micro", source, "--out", out) == 2
    assert "is not a file of python -m benchmarks micro" in capsys.readouterr().err
    assert not out.exists()


def test_results_without_entries_make_a_page(tmp_path: Path) -> None:
    source = made_up_cuda(tmp_path / "a.json", (), ())
    data = json.loads(source.read_text())
    source.write_text(json.dumps({**data, "entries": []}))
    assert command("report", source, "--out", tmp_path / "page") == 0
    assert "<img" not in (tmp_path / "page" / report.PAGE).read_text()


def test_measured_constants_move_the_limit(tmp_path: Path) -> None:
    source = made_up_cuda(tmp_path / "a.json", SHAPES[:1], ("fp16",))
    micro = tmp_path / "micro.json"
    hop = {"what": "L2 data-poll hop", "clocks": 9000.0}
    gathers = [
        {"what": "all-gather", "cluster": 8, "clusters": 1, "slice_bytes": size, "clocks": clocks}
        for size, clocks in ((128, 9000.0), (4096, 99000.0))
    ]
    micro.write_text(json.dumps({"device": "a chip", "results": [hop, *gathers], "errors": []}))
    assert command("report", source, "--micro", micro, "--out", tmp_path / "page") == 0
    text = (tmp_path / "page" / report.PAGE).read_text()
    assert "limit model: measured on a chip" in text


# What the pictures show.


def cells_of(figure: Any) -> dict[str, tuple[float, ...]]:
    """The colour under each text of a heat map."""
    (axes,) = figure.axes
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    colours = {}
    for text in axes.texts:
        x, y = text.get_position()
        (patch,) = [
            p
            for p in patches
            if abs(p.get_x() + p.get_width() / 2 - x) < 0.1
            and abs(p.get_y() + p.get_height() / 2 - y) < 0.1
        ]
        colours[text.get_text()] = to_rgb(patch.get_facecolor())
    return colours


def test_the_colours_of_a_heat_map_are_centred_at_one() -> None:
    ratios = {(64, 1): 1.0, (64, 8): 4.0, (128, 1): 0.25, (128, 8): 1.02}
    figure = figures.heat_map({**ratios, (256, 1): 12.0}, {(128, 8): "T=9"}, 12.0, "title")
    colours = cells_of(figure)
    assert set(colours) == {"1.00", "4.00", "0.25", "1.02\nT=9", "12"}
    red, green, blue = colours["1.00"]
    assert min(red, green, blue) > 0.95  # white
    assert colours["4.00"][2] > colours["4.00"][0] + 0.2  # blue
    assert colours["0.25"][0] > colours["0.25"][2] + 0.2  # red
    assert colours["12"][2] > colours["12"][0] and sum(colours["12"]) < sum(colours["4.00"])
    (axes,) = figure.axes
    assert len(axes.patches) == 6  # one was not measured
    assert [label.get_text() for label in axes.get_yticklabels()] == ["64", "128", "256"]


def test_maps_hold_the_usual_length_and_note_another(tmp_path: Path) -> None:
    results = Results.load(made_up_cuda(tmp_path / "a.json", SHAPES, ("fp16",)))
    groups = {group.heading: group for group in pictures.speed_ups(results)}
    assert set(groups) == {
        f"{pass_name}, against {peer}"
        for pass_name in ("Inference", "Training")
        for peer in ("torch.nn", "torch.nn graph")
    }
    by_name = {
        picture.name: picture.figure for group in groups.values() for picture in group.pictures
    }
    lstm = by_name["speedup-torch-nn-graph-inference-fp16-lstm"].axes[0]
    # One for each shape, at T=256; those of other lengths have the same size, and give way.
    assert len(lstm.texts) == len(SHAPES)
    assert not any("T=" in text.get_text() for text in lstm.texts)
    values = {float(text.get_text()) for text in lstm.texts}
    assert all(abs(value - 8) < 0.5 or abs(value - 1.6) < 0.1 for value in values)


def test_the_limit_is_drawn_where_the_model_reaches(tmp_path: Path) -> None:
    results = Results.load(made_up_cuda(tmp_path / "a.json", SHAPES, ("fp16",)))
    group = pictures.against_hidden_size(results, None)
    charts = {picture.name: picture.figure.axes[0] for picture in group.pictures}
    styles = {
        name: sorted({line.get_linestyle() for line in axes.lines}) for name, axes in charts.items()
    }
    assert styles["hidden-inference-fp16-lstm"] == ["-", "--", ":"]
    assert styles["hidden-training-fp16-lstm"] == ["-", "--"]
    (dotted,) = [
        line
        for line in charts["hidden-inference-fp16-lstm"].lines
        if line.get_linestyle() == ":" and line.get_color() == figures.COLOURS[0]
    ]
    for hidden_size, value in zip(*dotted.get_data(), strict=True):
        case = Case("lstm", 256, 1, int(hidden_size), int(hidden_size), "inference", "fp16")
        assert value == pytest.approx(microseconds_a_step(case, None))


def test_unequal_lengths_are_drawn_over_t(tmp_path: Path) -> None:
    """Where there are several T; the ways that a results file lacks are left out."""
    results = Results.load(made_up_cuda(tmp_path / "a.json", SHAPES[:1], ("fp16",)))
    group = pictures.unequal_lengths(results)
    assert [picture.name for picture in group.pictures] == [
        "unequal-inference-fp16-lstm-B2-H8",
        "unequal-training-fp16-lstm-B2-H8",
    ]
    (axes,) = group.pictures[0].figure.axes
    drawn = {
        (line.get_color(), line.get_linestyle()): [list(values) for values in line.get_data()]
        for line in axes.lines
    }
    padded, by_lengths, packed = figures.COLOURS[:3]
    assert drawn == {
        (colour, style): [[64, 256], pytest.approx([1.5 * level] * 2)]  # rounds of 1 and 2 times
        for colour, style, level in (
            (padded, "-", 2),
            (padded, "--", 5),
            (by_lengths, "-", 1.2),
            (packed, "-", 1),
            (packed, "--", 7),
        )
    }
    for entry in results.section("lengths"):
        del entry["samples"]["torch plain"], entry["samples"]["torch packed random"]
    (axes,) = pictures.unequal_lengths(results).pictures[0].figure.axes
    assert [line.get_linestyle() for line in axes.lines] == ["-"] * 3


def test_errors_are_those_of_the_worst_tensor(tmp_path: Path) -> None:
    results = Results.load(made_up_cuda(tmp_path / "a.json", SHAPES[:1], ("fp16",)))
    entry = results.section("accuracy")[0]
    assert metrics.worst_errors(entry) == {
        "birnn_cuda": ("output", pytest.approx(4.5e-4)),
        "torch.nn": ("output", pytest.approx(6e-4)),
    }


def test_the_readmes_show_a_gpu_once_it_has_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme, "SHOWN_CUDA", tmp_path / "cuda.json")
    assert readme.NO_CUDA_RESULTS in readme.shown()[readme.SUITE_README]
    made_up_cuda(tmp_path / "cuda.json", SHAPES[:2], ("fp16",))
    texts = readme.shown()
    for path in (readme.README, readme.README_ZH, readme.SPEED, readme.SUITE_README):
        text = texts[path]
        assert Results.load(readme.SHOWN).data["machine"]["cpu"] in text
        assert "a made-up GPU" in text
        assert ("132 SMs" in text) == (path in (readme.SPEED, readme.SUITE_README))
        assert readme.NO_CUDA_RESULTS not in text
    rows = [row for row in texts[readme.SPEED].splitlines() if row.startswith("| lstm | 256 |")]
    assert len(rows) == 4 + 4  # layers, and unequal lengths
    assert rows[0].startswith("| lstm | 256 | 1 | 128 | fp16 | inference | ")
    assert rows[4].startswith("| lstm | 256 | 2 | 8 | fp16 | inference | 3.00 | 75% | 1.00 | 0.60 ")


def test_every_label_fits_into_its_picture(tmp_path: Path) -> None:
    """At the size at which the page shows it, which is that of a telephone."""
    results = Results.load(made_up_cuda(tmp_path / "a.json", SHAPES, ("fp16",)))
    groups = pictures.groups_of(results)
    assert len(groups) == 9
    for group in groups:
        for picture in group.pictures:
            figure = picture.figure
            figure.draw_without_rendering()
            assert figure.bbox.width == figures.WIDTH_PIXELS
            for axes in figure.axes:
                box = axes.get_tightbbox()
                assert box.x0 >= 0 and box.x1 <= figure.bbox.width, picture.name
            for legend in figure.legends:
                box = legend.get_window_extent()
                assert box.x0 >= 0 and box.x1 <= figure.bbox.width, picture.name
