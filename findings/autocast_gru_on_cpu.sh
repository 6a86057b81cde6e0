#!/usr/bin/env bash
# One would guess: under autocast on the CPU torch.nn's recurrent layers do alike. RNN and LSTM return
# bfloat16 for an input of float32; GRU returns float32 for it, though its products are rounded to
# bfloat16 just as well. Only an input of bfloat16 makes its results bfloat16.
# torch 2.13.0, on an x86 processor with AVX-512.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch

torch.manual_seed(0)
x = torch.randn(5, 3, 8)
found = {}
print(f"torch {torch.__version__}, autocast to bfloat16 on the CPU:")
for cell in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM):
    layer = cell(8, 16, bidirectional=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (output, state), (of_bfloat16, _) = layer(x), layer(x.bfloat16())
    h = state[0] if isinstance(state, tuple) else state
    error = (output.float() - layer(x)[0]).abs().max().item()
    found[cell.__name__] = output.dtype, h.dtype, of_bfloat16.dtype
    print(f"  {cell.__name__}: output {output.dtype}, state {h.dtype}, {error:.0e} from float32's;"
          f" of an input of bfloat16 {of_bfloat16.dtype}")
    assert error > 1e-4  # of bfloat16's rounding; float32's is 1e-7
both = torch.bfloat16
assert found["RNN"] == found["LSTM"] == (both, both, both)
assert found["GRU"] == (torch.float32, torch.float32, both)
PYTHON
