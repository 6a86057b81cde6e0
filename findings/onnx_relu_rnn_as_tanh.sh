#!/usr/bin/env bash
# One would guess that a runtime that does not know a node's activation says so. tract and MNN both
# take an ONNX RNN with activations=["Relu"] and run it with tanh.
# tract 0.23.9, MNN 3.6.1, onnx 1.23.2, onnxruntime 1.32.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    tract==0.23.9 MNN==3.6.1 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
PYTHONPATH="$folder/packages" python3 - <<'PYTHON'
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights = {"W": draw(1, 4, 3), "R": 0.3 * draw(1, 4, 4), "B": draw(1, 8)}
x = draw(5, 1, 3)


def write(activation):
    node = helper.make_node(
        "RNN", ["X", "W", "R", "B"], ["Y", "Y_h"], hidden_size=4, activations=[activation]
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [5, 1, 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [5, 1, 1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, f"{activation}.onnx")


def by_tract(activation):
    runnable = tract.onnx().load(f"{activation}.onnx").into_model().into_runnable()
    return runnable.run([x])[0].to_numpy()


def by_mnn(activation):
    convert = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
    names = ["--modelFile", f"{activation}.onnx", "--MNNModel", f"{activation}.mnn"]
    command = [sys.executable, "-c", convert, "-f", "ONNX", *names, "--bizCode", "test"]
    subprocess.run(command, check=True, capture_output=True)
    import MNN

    expr = MNN.expr
    network = MNN.nn.load_module_from_file(f"{activation}.mnn", ["X"], ["Y"])
    result = network.forward([expr.const(x, list(x.shape), expr.NCHW, expr.float)])
    result = result[0] if isinstance(result, list | tuple) else result
    return np.array(result.read()).reshape(5, 1, 1, 4)


exact = {}
for activation in ("Tanh", "Relu"):
    write(activation)
    session = onnxruntime.InferenceSession(f"{activation}.onnx")
    (exact[activation],) = session.run(["Y"], {"X": x})
print("an RNN with activations=['Relu']; largest difference")
for name, run in (("tract 0.23.9", by_tract), ("MNN 3.6.1", by_mnn)):
    y = run("Relu")
    difference = {a: float(np.abs(y - exact[a]).max()) for a in exact}
    print(f"  {name}: {difference['Relu']:.3f} from relu, {difference['Tanh']:.1e} from tanh")
    assert difference["Relu"] > 0.1 and difference["Tanh"] < 1e-5
PYTHON
