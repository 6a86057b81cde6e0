"""examples/replace_in_packages.py, on networks of our own: the packages are not needed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import birnn_cuda

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

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


def test_equal(monkeypatch, capsys):
    monkeypatch.setattr(replace_in_packages, "CASES", {"package": tagger})
    assert replace_in_packages.main(["--repeats", "1"]) == 0
    report = capsys.readouterr().out
    for text in ("lower: GRU", "upper: LSTM", "Tagger", " ms", "x)"):
        assert text in report
    result = replace_in_packages.compare(tagger(), 1, torch.device("cpu"))
    assert max(result.output_error, result.gradient_error) < 1e-12


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_different(monkeypatch, capsys, value):
    real = birnn_cuda.replace_rnns

    def wrong(model):
        model = real(model)
        with torch.no_grad():
            model.upper.weight_hh_l0_reverse.mul_(value)
        return model

    monkeypatch.setattr(birnn_cuda, "replace_rnns", wrong)
    monkeypatch.setattr(replace_in_packages, "CASES", {"package": tagger})
    assert replace_in_packages.main(["--repeats", "1"]) == 1
    assert "DIFFERENT: Tagger" in capsys.readouterr().out


def test_nothing_replaced(monkeypatch, capsys):
    monkeypatch.setattr(birnn_cuda, "replace_rnns", lambda model: model)
    monkeypatch.setattr(replace_in_packages, "CASES", {"package": tagger})
    assert replace_in_packages.main(["--repeats", "1"]) == 1
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spam"], "no case 'spam': choose from denoiser, joeynmt, torch-geometric"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        replace_in_packages.main(arguments)
    assert message in capsys.readouterr().err


def test_missing_package(monkeypatch, capsys):
    def missing():
        import a_package_that_is_not_there  # noqa: F401

    monkeypatch.setattr(replace_in_packages, "CASES", {"package": missing})
    with pytest.raises(SystemExit):
        replace_in_packages.main([])
    assert "pip install --no-deps -r requirements/real-models.txt" in capsys.readouterr().err
