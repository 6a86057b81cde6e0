"""examples/streaming_detector.py: features hop by hop, the states carried, and what fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import birnn_cuda

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import figures_page
import streaming_detector

SMALL = ["--seconds", "1", "--hidden-size", "16"]


@pytest.fixture(autouse=True)
def little_training(monkeypatch):
    monkeypatch.setattr(streaming_detector, "STEPS_OF_TRAINING", 2)


def test_hop_by_hop(capsys):
    assert streaming_detector.main(SMALL) == 0
    report = capsys.readouterr().out
    for text in ("100 hops of 10 ms", "2 layers of 16", "p50", "p99", "torch.nn", "same bits"):
        assert text in report
    assert report.startswith(figures_page.processor())


def test_it_learns_to_tell_voice_from_noise(monkeypatch):
    monkeypatch.setattr(streaming_detector, "STEPS_OF_TRAINING", 25)
    torch.manual_seed(1)
    detector = streaming_detector.Detector(24, 1)
    streaming_detector.train(detector, streaming_detector.Progress("", 25))
    signal, speaks = streaming_detector.made_up_signal(5)
    assert 0.2 < speaks.float().mean() < 0.8
    features = streaming_detector.Features()(signal)
    right = (detector(features.unsqueeze(1))[0].squeeze(1) > 0).eq(speaks).float().mean()
    assert right > 0.9


def test_features_do_not_depend_on_how_the_signal_is_cut():
    signal, speaks = streaming_detector.made_up_signal(0.5)
    make = streaming_detector.Features()
    by_hops = torch.cat([make(hop) for hop in signal.split(streaming_detector.HOP)])
    whole = streaming_detector.Features()(signal)
    assert whole.shape == (len(speaks), streaming_detector.NUM_MELS)
    torch.testing.assert_close(by_hops, whole)


@pytest.mark.parametrize("part", ["output", "state"])
def test_other_bits_fail(monkeypatch, capsys, part):
    class Inexact(birnn_cuda.GRU):
        def forward(self, input, hx=None):
            output, state = super().forward(input, hx)
            if len(input) > 1:
                one = output if part == "output" else state
                one.view(-1)[-1] += 1e-6
            return output, state

    def replaced(model):
        birnn_cuda.to_torch(model)
        layer = model.rnn
        model.rnn = Inexact(layer.input_size, layer.hidden_size, layer.num_layers)
        model.rnn.load_state_dict(layer.state_dict())
        return model

    monkeypatch.setattr(streaming_detector, "train", lambda detector, progress: None)
    monkeypatch.setattr(streaming_detector.birnn_cuda, "replace_rnns", replaced)
    assert streaming_detector.main(SMALL) == 1
    assert f"DIFFER in {part}" in capsys.readouterr().out


def test_the_report_is_written_into_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = streaming_detector.BEGIN, streaming_detector.END
    page.write_text(f"before\n{begin}\nformer figures\n{end}\nafter\n")
    assert streaming_detector.main([*SMALL, "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n```text\n") and text.endswith(f"```\n{end}\nafter\n")
    assert "former" not in text and capsys.readouterr().out.strip() in text
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no"):
        streaming_detector.main([*SMALL, "--write", str(page)])
    assert page.read_text() == "no markers"
