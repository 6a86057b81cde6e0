"""Plans of the tests: one request, changed here and there, for the devices that are known."""

from __future__ import annotations

from birnn_cuda import ops

DEVICES = {device["name"]: device for device in ops.known_devices()}


def plan(device="h100", **changes):
    request = {
        "cell": "lstm",
        "dtype": "float32",
        "seq_len": 128,
        "batch_size": 32,
        "input_size": 100,
        "hidden_size": 512,
    }
    limits = dict(DEVICES[device])
    for name in set(limits) & set(changes):
        limits[name] = changes.pop(name)
    return ops.plan(limits, **(request | changes))
