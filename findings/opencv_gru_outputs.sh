#!/usr/bin/env bash
# One would guess that a GRU node of an ONNX file gives OpenCV the same output whether or not the node
# also names its final state, which nothing reads. Where only Y is named, OpenCV 5 takes the final
# state for it: the model has an output of [1, B, H] in place of [T, 1, B, H].
# opencv-python-headless 5.0.0.93, onnx 1.23.2, onnxruntime 1.32.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0
PYTHONPATH="$folder/packages" FOLDER="$folder" python3 - <<'PYTHON'
import os

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights = {"W": draw(1, 12, 3), "R": draw(1, 12, 4), "B": draw(1, 24)}
x = draw(5, 2, 3)


def run(outputs):
    """Y by onnxruntime and by OpenCV, of a node that names these outputs."""
    node = helper.make_node(
        "GRU", ["X", "W", "R", "B"], outputs, hidden_size=4, linear_before_reset=1
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "N", 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["T", 1, "N", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = os.path.join(os.environ["FOLDER"], "model.onnx")
    onnx.save(model, path)
    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(x, "X")
    (by_onnxruntime,) = onnxruntime.InferenceSession(path).run(["Y"], {"X": x})
    return by_onnxruntime, network.forward(["Y"])[0]


print(f"OpenCV {cv2.__version__}, a GRU over {x.shape[0]} steps of {x.shape[1]} sequences:")
for outputs in (["Y", "Y_h"], ["Y"]):
    wanted, got = run(outputs)
    print(f"  outputs {outputs}: Y of shape {got.shape}, onnxruntime's {wanted.shape}")
    if len(outputs) == 2:
        assert np.abs(got - wanted).max() < 1e-5
    else:
        assert got.size == wanted[-1].size and np.abs(got.ravel() - wanted[-1].ravel()).max() < 1e-5
PYTHON
