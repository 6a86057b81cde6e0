#!/usr/bin/env bash
# One would guess that what an ONNX file says of the number of steps changes no value: MNN's module
# runs any number, whatever the file states. Yet a GRU of a file that leaves the number free, or
# states 1, is converted into other values for every input; of a file that states 5, it gives the
# equations' values, of 9 steps too.
# MNN 3.6.1, onnx 1.23.2, numpy 2.4.6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    MNN==3.6.1 onnx==1.23.2 numpy==2.4.6
PYTHONPATH="$folder/packages" FOLDER="$folder" python3 - <<'PYTHON'
import os
import subprocess
import sys

import MNN
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
W, R, B = draw(1, 12, 3), draw(1, 12, 4), draw(1, 24)


def by_equations(x):
    """Y of ONNX's GRU with linear_before_reset, in float64."""
    x, w, r, b = (value.astype(np.float64) for value in (x, W[0], R[0], B[0]))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    y, h = np.zeros((len(x), 1, x.shape[1], 4)), np.zeros((x.shape[1], 4))
    for t in range(len(x)):
        (zi, ri, ni), (zh, rh, nh) = (
            np.split(v, 3, axis=1) for v in (x[t] @ w.T + b[:12], h @ r.T + b[12:])
        )
        z = sigmoid(zi + zh)
        h = (1 - z) * np.tanh(ni + sigmoid(ri + rh) * nh) + z * h
        y[t, 0] = h
    return y


def convert(steps):
    """A file that states this number of steps, by MNN's converter."""
    arrays = {"W": W, "R": R, "B": B}
    node = helper.make_node(
        "GRU", [*"XWRB"], ["Y", "Y_h"], hidden_size=4, linear_before_reset=1
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [steps, 2, 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [steps, 1, 2, 4])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = os.path.join(os.environ["FOLDER"], f"{steps}.onnx")
    onnx.save(model, path)
    # The function that the command mnnconvert calls.
    call = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
    options = ["-f", "ONNX", "--modelFile", path, "--MNNModel", f"{path}.mnn", "--bizCode", "one"]
    command = [sys.executable, "-c", call, *options]
    subprocess.run(command, check=True, capture_output=True, cwd=os.environ["FOLDER"])
    return f"{path}.mnn"


def run(path, x):
    expr = MNN.expr
    network = MNN.nn.load_module_from_file(path, ["X"], ["Y"])
    result = network.forward([expr.const(x, list(x.shape), expr.NCHW, expr.float)])
    result = result[0] if isinstance(result, (list, tuple)) else result
    return np.array(result.read())


print(f"MNN {MNN.version()}, Y of a GRU: the largest difference from the equations")
for stated in (5, "T", 1):
    path = convert(stated)
    for steps in (5, 9):
        x = draw(steps, 2, 3)
        error = np.abs(run(path, x) - by_equations(x)).max()
        print(f"  the file states {stated!r} steps, {steps} are run: {error:.1e}")
        assert error < 1e-5 if stated == 5 else error > 0.1
PYTHON
