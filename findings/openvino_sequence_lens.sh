#!/usr/bin/env bash
# One would guess that OpenVINO reads the sequence_lens of an ONNX GRU whether or not the model's
# dimensions are fixed. It reads them where all are fixed; as soon as the number of steps is free it
# ignores them, without a word, and gives outputs past each sequence's end. With a clip on the node,
# even one so large that it clips nothing, they are read again.
# openvino 2026.4.1, onnx 1.23.2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    openvino==2026.4.1 onnx==1.23.2
PYTHONPATH="$folder/packages" python3 - <<'PYTHON'
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights = {"W": draw(2, 12, 3), "R": draw(2, 12, 4), "B": draw(2, 24)}


def past_the_end(steps, **attributes):
    """The largest output after the second of six steps of a sequence of length 2."""
    node = helper.make_node(
        "GRU", ["X", "W", "R", "B", "lengths"], ["Y"], hidden_size=4,
        direction="bidirectional", linear_before_reset=1, **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, [steps, 1, 3]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, [1]),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    compiled = openvino.compile_model(
        openvino.Core().read_model(model.SerializeToString(), b""),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    (y,) = compiled([draw(6, 1, 3), np.array([2], np.int32)]).values()
    return float(np.abs(y[2:]).max())


fixed, free, clipped = past_the_end(6), past_the_end("T"), past_the_end("T", clip=1e30)
print(f"openvino {openvino.__version__}, a length of 2 in 6 steps; largest output past the end:")
print(f"  steps fixed            {fixed:.3f}")
print(f"  steps free             {free:.3f}")
print(f"  steps free, clip=1e30  {clipped:.3f}")
assert fixed == 0 and clipped == 0 and free > 0.01
PYTHON
