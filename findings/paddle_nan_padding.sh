#!/usr/bin/env bash
# One would guess: with sequence_length= what stands past a sequence's end is not read, whatever it is.
# Paddle computes those steps and multiplies their results by 0. Where padding is not a number, or was
# never written, the reverse direction carries it into the steps of the sequence itself: all its outputs
# and both directions' final states become NaN. Finite padding does no harm.
# paddlepaddle 3.3.1, on the CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check paddlepaddle==3.3.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import paddle

x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
print(f"paddle {paddle.__version__}, a sequence of 2 in 6 steps; numbers that are finite:")
for cell in ("SimpleRNN", "GRU", "LSTM"):
    layer = getattr(paddle.nn, cell)(4, 5, direction="bidirect")
    shares = {}
    for padding in (1e4, np.nan):
        x[:, 2:] = padding
        output, state = layer(paddle.to_tensor(x), sequence_length=paddle.to_tensor([2]))
        h = state[0] if isinstance(state, tuple) else state
        forward, reverse = np.split(np.isfinite(output.numpy()[0, :2]), 2, axis=1)
        shares[padding] = [float(part.mean()) for part in (forward, reverse, np.isfinite(h.numpy()))]
        print(f"  {cell}, padding {padding}: forward {shares[padding][0]:.0%}, reverse"
              f" {shares[padding][1]:.0%}, final states {shares[padding][2]:.0%}")
    assert shares[1e4] == [1, 1, 1]
    assert shares[np.nan] == [1, 0, 0]
PYTHON
