#!/usr/bin/env bash
# One would guess that a sequence of length 0 leaves its initial state as it was: no step is taken.
# onnxruntime and OpenVINO both return zeros as the final state of an ONNX GRU for it, though
# initial_h is given.
# onnxruntime 1.32.0, openvino 2026.4.1, onnx 1.23.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
PYTHONPATH="$folder/packages" python3 - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights = {"W": draw(1, 12, 3), "R": draw(1, 12, 4), "B": draw(1, 24)}
node = helper.make_node(
    "GRU", ["X", "W", "R", "B", "lengths", "h"], ["Y", "Y_h"], hidden_size=4, linear_before_reset=1
)
graph = helper.make_graph(
    [node],
    "one",
    [
        helper.make_tensor_value_info("X", TensorProto.FLOAT, [5, 2, 3]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, [2]),
        helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2, 4]),
    ],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h")],
    [numpy_helper.from_array(value, name) for name, value in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
x, lengths, h = draw(5, 2, 3), np.array([5, 0], np.int32), draw(1, 2, 4)
data = model.SerializeToString()
session = onnxruntime.InferenceSession(data)
by_onnxruntime = session.run(["Y_h"], {"X": x, "lengths": lengths, "h": h})[0]
compiled = openvino.compile_model(
    openvino.Core().read_model(data, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
)
by_openvino = compiled([x, lengths, h])[compiled.output("Y_h")]
print("initial state of the sequence of length 0:", h[0, 1])
print(f"final, onnxruntime {onnxruntime.__version__}:", by_onnxruntime[0, 1])
print(f"final, openvino {openvino.__version__}:", by_openvino[0, 1])
assert np.abs(h[0, 1]).min() > 0
assert not by_onnxruntime[0, 1].any() and not by_openvino[0, 1].any()
PYTHON
