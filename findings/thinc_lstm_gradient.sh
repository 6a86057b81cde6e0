#!/usr/bin/env bash
# One would guess: thinc's LSTM, in numpy and the default on a CPU, returns the gradient of what it
# computes. That of the first step's input is exactly zero, of one step's all of it is; the initial
# states, which the layer holds as a parameter, get none. By difference quotients none of these is
# zero. The later steps' inputs are right, so that training goes on without a sign of it.
# thinc 8.3.10.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check thinc==8.3.10
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import thinc
from thinc.api import LSTM, with_padded

print(f"thinc {thinc.__version__}: the gradient of each step's input, its largest number, and that of")
print("difference quotients")
for steps in (1, 3):
    rng = np.random.default_rng(steps)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, weight = draw(steps, 2), draw(steps, 3)
    model = with_padded(LSTM(3, 2))
    model.initialize(X=[x])
    (layer,) = (one for one in model.walk() if one.has_param("LSTM"))
    layer.set_param("LSTM", draw(layer.get_param("LSTM").size))

    def loss(x):
        return float((model.predict([x])[0].astype(np.float64) * weight).sum())

    outputs, backward = model.begin_update([x])
    assert np.array_equal(outputs[0], model.predict([x])[0])
    (found,) = backward([weight])
    exact = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += 0.01
        down[index] -= 0.01
        exact[index] = (loss(up) - loss(down)) / 0.02
    for step in range(steps):
        sizes = np.abs(found[step]).max(), np.abs(exact[step]).max()
        print(f"  {steps} steps, step {step}: {sizes[0]:.4f} and {sizes[1]:.4f}")
    assert (found[0] == 0).all() and np.abs(exact[0]).max() > 0.01
    assert np.allclose(found[1:], exact[1:], atol=2e-3)
    assert layer.has_param("HC0") and not layer.has_grad("HC0")
PYTHON
