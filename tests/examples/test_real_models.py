"""examples/replace_in_packages.py, on networks of its own: the packages are not needed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import birnn_cuda

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import published_networks
import replace_in_packages


class Tagger(nn.Module):
    """Token input, two kinds of layers, dropout, a result with several elements."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.lower = nn.GRU(4, 4, num_layers=2, dropout=0.3, bidirectional=True)
        self.upper = nn.LSTM(8, 4, bidirectional=True)

    def forward(self, tokens, scale):
        x, h_n = self.lower(self.embedding(tokens) * scale)
        return self.upper(x)[0], None, h_n


def tagger():
    return replace_in_packages.Case(
        "package 1.0", "Tagger", Tagger, lambda: (torch.randint(11, (5, 3)), torch.randn(4))
    )


@pytest.fixture
def tagger_alone(monkeypatch):
    monkeypatch.setattr(replace_in_packages, "CASES", {"package": tagger})


def test_equal(tagger_alone, capsys):
    assert replace_in_packages.main(["--rounds", "1"]) == 0
    report = capsys.readouterr().out
    for text in (
        "comparing package (1 of 1)",
        "lower: GRU; upper: LSTM",
        "1 GRU, 1 LSTM",
        "Tagger",
        "random",
        " / ",
        "x",
        "%",
    ):
        assert text in report
    result = replace_in_packages.compare(tagger(), 1, torch.device("cpu"))
    assert max(result.output_error, result.gradient_error) < 1e-12
    assert 0 < result.share < 1 and min(*result.inference, *result.training) > 0


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_different(monkeypatch, tagger_alone, capsys, value):
    real = birnn_cuda.replace_rnns

    def wrong(model):
        model = real(model)
        with torch.no_grad():
            model.upper.weight_hh_l0_reverse.mul_(value)
        return model

    monkeypatch.setattr(birnn_cuda, "replace_rnns", wrong)
    assert replace_in_packages.main(["--rounds", "1"]) == 1
    assert "DIFFERENT: Tagger" in capsys.readouterr().out


def test_nothing_replaced(monkeypatch, tagger_alone, capsys):
    monkeypatch.setattr(birnn_cuda, "replace_rnns", lambda model: model)
    assert replace_in_packages.main(["--rounds", "1"]) == 1
    assert "nothing" in capsys.readouterr().out


def test_what_is_zero_but_for_rounding_is_no_difference():
    """The gradient of a bias before a normalization: 1e-18 beside 3e-18, where others are of 1."""
    zero, large = torch.tensor([1e-18, 0.0]), torch.tensor([1.0, 2.0])
    assert replace_in_packages.largest_error([3 * zero, large], [zero, large]) < 1e-12
    assert replace_in_packages.largest_error([zero, large], [zero, 1.001 * large]) > 5e-4
    small = torch.tensor([1e-3, 0.0])
    assert replace_in_packages.largest_error([1.1 * small, large], [small, large]) > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spam"], "no case 'spam': choose from medaka, pyannote"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        replace_in_packages.main(arguments)
    assert message in capsys.readouterr().err


def test_missing_package(monkeypatch, capsys, tmp_path):
    """The others are compared all the same; the page is left as it was."""

    def missing():
        import a_package_that_is_not_there  # noqa: F401

    cases = {"first": missing, "package": tagger}
    monkeypatch.setattr(replace_in_packages, "CASES", cases)
    page = tmp_path / "page.md"
    page.write_text("as it was")
    assert replace_in_packages.main(["--rounds", "1", "--write", str(page)]) == 1
    report = capsys.readouterr().out
    assert "NOT COMPARED: first: No module named 'a_package_that_is_not_there'" in report
    assert "--install" in report and "package 1.0" in report
    assert page.read_text() == "as it was"


def test_what_cannot_be_installed_is_named(monkeypatch, tagger_alone, capsys, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"# comment\ntorch=={torch.__version__}\nno-such-package==1.0\n")
    monkeypatch.setattr(replace_in_packages, "REQUIREMENTS", requirements)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert replace_in_packages.main(["--rounds", "1", "--install", str(tmp_path / "here")]) == 0
    assert sys.path[0].startswith(str(tmp_path / "here"))
    report = capsys.readouterr().out
    assert "installing no-such-package==1.0 (1 of 1)" in report
    assert "NOT INSTALLED: no-such-package==1.0: " in report


def test_table_of_a_page(tagger_alone, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{replace_in_packages.BEGIN}\nold\n{replace_in_packages.END}\nafter\n")
    assert replace_in_packages.main(["--rounds", "1", "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| package 1.0 | Tagger | random | 1 GRU, 1 LSTM |")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- make real-models: from here -->"):
        replace_in_packages.main(["--rounds", "1", "--write", str(page)])


def test_stand_ins_leave_no_trace(tmp_path, monkeypatch):
    (tmp_path / "a_network.py").write_text(
        "import not_there.files\nfrom not_there import Reader\n"
        "class Network(Reader):\n    store = not_there.files.Store('path')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = published_networks.network_module("a_network", "not_there").Network
    assert network.__mro__[1].__name__ == "Reader" and not hasattr(network.store, "read")
    assert not any(name.startswith("not_there") for name in sys.modules)
    with pytest.raises(ImportError, match="no_package"):
        published_networks.network_module("no_package.network", "not_there")


def test_every_requirement_is_pinned():
    lines = replace_in_packages.REQUIREMENTS.read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(parts) == 2 for parts in pinned) and len(pinned) == len({p[0] for p in pinned})
