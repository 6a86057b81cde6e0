#!/usr/bin/env bash
# One would guess: FlopCounterMode counts the same floating point operations of a layer on every device.
# What happens: those of torch.nn.LSTM are 0 on the CPU, where oneDNN's operator has no formula, and
# right on meta, where the layer is made of products. torch.nn.GRU is counted on both.
# Seen: "cpu 0 meta 46080 gru 34560 34560". torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode


def count(cell, device):
    layer = cell(8, 16, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(5, 3, 8, device=device))
    return counter.get_total_flops()


lstm = count(torch.nn.LSTM, "cpu"), count(torch.nn.LSTM, "meta")
gru = count(torch.nn.GRU, "cpu"), count(torch.nn.GRU, "meta")
print("cpu", lstm[0], "meta", lstm[1], "gru", *gru)
products = 2 * 5 * 3 * 4 * 16 * (8 + 16)
assert lstm == (0, products), lstm
assert gru == (products * 3 // 4,) * 2, gru
PYTHON
