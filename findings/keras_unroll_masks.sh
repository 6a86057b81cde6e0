#!/usr/bin/env bash
# One would guess: unroll=True makes a Keras layer faster or slower, and changes no value. With a mask
# and zero_output_for_mask=True it does, on the backends of JAX and of numpy: unrolled, outputs at
# masked steps repeat the step before, as if that option were not set; on the backend of torch they
# are zeros, as in the loop. The same weights so give another output by another backend.
# With go_backwards=True an unrolled layer raises an AttributeError on torch, and runs on the others.
# keras 3.15.1; torch 2.13.0, jax 0.10.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    keras==3.15.1 torch==2.13.0 jax==0.10.2
cat > "$folder/run.py" <<'PYTHON'
import sys

import keras
import numpy as np

x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
mask = np.array([[True, True, False, False, False, False]])


def run(unroll, go_backwards=False):
    layer = keras.layers.GRU(
        5, return_sequences=True, zero_output_for_mask=True, unroll=unroll,
        go_backwards=go_backwards,
    )
    tensor = keras.ops.convert_to_tensor
    return keras.ops.convert_to_numpy(layer(tensor(x), mask=tensor(mask)))


past = [float(np.abs(run(unroll)[0, 2:]).max()) for unroll in (False, True)]
try:
    backwards = str(run(True, go_backwards=True).shape)
except AttributeError as error:
    backwards = "AttributeError"
backend = keras.backend.backend()
print(f"keras {keras.__version__} on {backend}: largest output at masked steps {past[0]:.3f},"
      f" unrolled {past[1]:.3f}; unrolled backwards {backwards}")
assert past[0] == 0
if backend == "torch":
    assert past[1] == 0 and backwards == "AttributeError"
else:
    assert past[1] > 0.01 and backwards == "(1, 6, 5)"
PYTHON
for backend in torch jax numpy; do
    KERAS_BACKEND=$backend JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
done
