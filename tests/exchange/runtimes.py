"""Runtimes that run the files of birnn_cuda.onnx: each is a function of the file's path, of the
inputs by name, and of whether the file's free dimensions are fixed to those of the inputs first; it
returns the outputs in the order of the file.

A runtime that cannot leave dimensions free, or cannot fix them, does the one whatever it is told.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx


def by_onnxruntime(path, feeds, fixed):
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, feeds)


def by_openvino(path, feeds, fixed):
    openvino = importlib.import_module("openvino")
    model = openvino.Core().read_model(str(path))
    if fixed:
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
    # Else a processor with bfloat16 units would compute in bfloat16.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([feeds[port.any_name] for port in model.inputs])
    return [results[port] for port in compiled.outputs]


def by_opencv(path, feeds, fixed):
    cv2 = importlib.import_module("cv2")
    network = cv2.dnn.readNetFromONNX(str(path))
    for name, value in feeds.items():
        network.setInput(value, name)
    return network.forward([output.name for output in onnx.load(path).graph.output])


def by_tract(path, feeds, fixed):
    tract = importlib.import_module("tract")
    model = tract.onnx().load(str(path))
    names = [model.input_name(index) for index in range(model.input_count())]
    if fixed:
        kinds = {"float32": "f32", "int64": "i64"}
        for index, name in enumerate(names):
            value = feeds[name]
            model.set_input_fact(
                index, f"{','.join(map(str, value.shape))},{kinds[value.dtype.name]}"
            )
    runnable = model.into_model().into_runnable()
    return [output.to_numpy() for output in runnable.run([feeds[name] for name in names])]


def by_mnn(path, feeds, fixed):
    graph = onnx.load(path).graph
    converted = Path(f"{path}.mnn")
    if not converted.exists():
        # Not by MNN.tools, which would install a package as it is imported.
        convert = "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"
        sources = ["-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(converted)]
        _call([sys.executable, "-c", convert, *sources, "--bizCode", "test"], converted)
    mnn = importlib.import_module("MNN")
    expr = mnn.expr
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    network = mnn.nn.load_module_from_file(str(converted), inputs, outputs)
    kinds = {"float32": expr.float, "int32": expr.int}
    given = [
        expr.const(value, list(value.shape), expr.NCHW, kinds[value.dtype.name])
        for value in (feeds[name] for name in inputs)
    ]
    results = network.forward(given)
    results = results if isinstance(results, list | tuple) else [results]
    return [np.array(result.read()) for result in results]


def by_ncnn(path, feeds, fixed):
    pnnx, ncnn = (importlib.import_module(name) for name in ("pnnx", "ncnn"))
    base = str(path).removesuffix(".onnx") + ".ncnn"
    if not os.path.exists(base + ".param"):
        # Of another number of steps and of sequences; after the input come states.
        (_, _, features), *states = (value.shape for value in feeds.values())
        shapes = [(6, 2, features), *((rows, 2, width) for rows, _, width in states)]
        shape = ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)
        command = [pnnx.EXEC_PATH, str(path), f"inputshape={shape}", "fp16=0"]
        _call(command, Path(base + ".param"))
    network = ncnn.Net()
    network.load_param(base + ".param")
    network.load_model(base + ".bin")
    extractor = network.create_extractor()
    for name, value in zip(network.input_names(), feeds.values(), strict=True):
        extractor.input(name, ncnn.Mat(np.ascontiguousarray(value), batch_index=1).clone())
    results = [extractor.extract(name)[1] for name in network.output_names()]
    return [np.array(result.numpy(batch_index=1)) for result in results]


def _call(command, made):
    result = subprocess.run(command, capture_output=True, text=True, cwd=made.parent)
    assert made.exists(), result.stdout[-2000:] + result.stderr[-2000:]
