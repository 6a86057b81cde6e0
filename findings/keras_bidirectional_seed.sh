#!/usr/bin/env bash
# One would guess: a seed= makes the dropout of a Bidirectional layer repeatable, its directions as
# independent as without. Keras makes both from one configuration. That of LSTM and GRU holds the seed,
# so that both directions draw the same masks in every call; that of SimpleRNN does not, so that the
# seed is lost, and two layers of the same seed differ.
# keras 3.15.1 on jax 0.10.2; on torch alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

HIDDEN = 64
same_at_all_steps = np.ones((1, 3, 1), np.float32)  # which both directions read alike


def run(kind, seed):
    """The directions' outputs in training, [3, H] each, from the same weights: what differs between
    them is dropped."""
    cell = getattr(keras.layers, kind)(HIDDEN, recurrent_dropout=0.5, seed=seed)
    layer = keras.layers.Bidirectional(cell, merge_mode=None)
    layer.build(same_at_all_steps.shape)
    rng = np.random.default_rng(0)
    for weight in layer.forward_layer.cell.trainable_variables:
        weight.assign(rng.standard_normal(weight.shape).astype(np.float32))
    layer.backward_layer.set_weights(layer.forward_layer.get_weights())
    return [np.asarray(half) for half in layer(same_at_all_steps, training=True)]


def differ(a, b):
    return float(np.abs(a - b).max())


print(f"keras {keras.__version__}: the largest difference in training")
for kind in ("SimpleRNN", "LSTM", "GRU"):
    seeded, again, free = run(kind, 1), run(kind, 1), run(kind, None)
    directions, repeated = differ(*seeded), differ(seeded[0], again[0])
    print(f"  {kind}: of the directions, seed=1 {directions:.3f}, seed=None {differ(*free):.3f};"
          f" of two layers of seed=1 {repeated:.3f}")
    assert differ(*free) > 0.01
    if kind == "SimpleRNN":
        assert "seed" not in keras.layers.SimpleRNN(3, seed=1).get_config()
        assert directions > 0.01 and repeated > 0.01
    else:
        assert directions == 0 and repeated == 0
PYTHON
