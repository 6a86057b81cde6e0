#!/usr/bin/env bash
# One would guess that onnx's ReferenceEvaluator, which is there to say what an operator means, is
# what to check a runtime's LSTM against. It drops the node's sequence_lens and its clip without a
# word: short sequences are run to the end of the padding.
# onnx 1.23.2, beside onnxruntime 1.32.0, which reads both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    onnx==1.23.2 onnxruntime==1.32.0
PYTHONPATH="$folder/packages" python3 - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights = {"W": draw(1, 16, 3), "R": draw(1, 16, 4), "B": draw(1, 32)}
feeds = {"X": draw(6, 1, 3), "lengths": np.array([2], np.int32)}


def run(**attributes):
    """The output by onnx and by onnxruntime."""
    node = helper.make_node(
        "LSTM", ["X", "W", "R", "B", "lengths"], ["Y"], hidden_size=4, **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, [6, 1, 3]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, [1]),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [6, 1, 1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return ReferenceEvaluator(model).run(None, feeds)[0], session.run(None, feeds)[0]


reference, runtime = run()
clipped, runtime_clipped = run(clip=0.05)
end = [float(np.abs(y[2:]).max()) for y in (reference, runtime)]
effect = [
    float(np.abs(a[:2] - b[:2]).max())
    for a, b in ((reference, clipped), (runtime, runtime_clipped))
]
print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")
print(f"largest output past a length of 2: reference {end[0]:.3f}, onnxruntime {end[1]:.3f}")
print(f"change that clip=0.05 makes:       reference {effect[0]:.3f}, onnxruntime {effect[1]:.3f}")
assert end[0] > 0.01 and end[1] == 0 and effect[0] == 0 and effect[1] > 0.01
PYTHON
