"""Which kernel a shape runs on a GPU: shapes against expected plans, errors, sizes past 2^31."""

from __future__ import annotations

import pytest

from birnn_cuda import ops
from birnn_cuda.__main__ import main

DEVICES = {device["name"]: device for device in ops.known_devices()}
USABLE = [name for name, device in DEVICES.items() if device["compute_capability"] >= 80]


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


def aligned(*arrays):
    """Bytes of arrays in one workspace."""
    return sum(-(-size // 256) * 256 for size in arrays)


# request, (ctas, threads, launches forward, backward), workspace of one direction, reserve of one
EXPECTED = {
    "lstm": (
        {},
        (4 * 32, 128, 256, 257),
        aligned(32 * 512 * 4, 32 * 4 * 512 * 4),
        128 * 32 * 5 * 512 * 4,
    ),
    "lstm_inference": (
        {"training": False, "num_directions": 1},
        (4 * 32, 128, 256, 0),
        aligned(4 * 32 * 512 * 4),
        0,
    ),
    "lstm_fp16": (
        {"dtype": "float16", "precision": "tf32"},
        (4 * 32, 128, 256, 257),
        aligned(4 * 32 * 512 * 4),
        128 * 32 * 5 * 512 * 2,
    ),
    "lstm_proj": (
        {"proj_size": 60, "hidden_size": 130, "batch_size": 3, "seq_len": 7},
        (2 * 3, 128, 28, 29),
        aligned(3 * 60 * 4, 3 * 520 * 4, 3 * 130 * 4, 3 * 60 * 4),  # backward needs more
        7 * 3 * 5 * 130 * 4,
    ),
    "gru_fp64": (
        {"cell": "gru", "dtype": "float64", "hidden_size": 33, "batch_size": 1, "seq_len": 1},
        (1, 64, 2, 3),
        aligned(33 * 8, 4 * 33 * 8),
        4 * 33 * 8,
    ),
    "tanh_bf16": (
        {"cell": "tanh", "dtype": "bfloat16", "hidden_size": 1, "batch_size": 70000},
        (65535, 32, 256, 257),
        aligned(70000 * 4, 70000 * 2),
        0,
    ),
    "relu": (
        {"cell": "relu", "hidden_size": 128, "seq_len": 10},
        (32, 128, 20, 21),
        aligned(32 * 128 * 4, 32 * 128 * 4),
        0,
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_plan_of_a_shape(name):
    request, (ctas, threads, forward, backward), workspace, reserve = EXPECTED[name]
    directions = request.get("num_directions", 2)
    result = plan(**request)
    reason = result.pop("reason")
    assert "every shape" in reason
    assert result == {
        "kernel": "stepwise",
        "ctas": ctas,
        "threads": threads,
        "launches_forward": forward,
        "launches_backward": backward,
        "workspace_bytes": directions * workspace,
        "reserve_bytes": directions * reserve,
    }


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "products in fp32"),
        ({"precision": "tf32"}, "products in tf32"),
        ({"dtype": "float64", "precision": "tf32"}, "in fp64"),
        ({"dtype": "float16"}, "fp16 summed in fp32"),
        ({"dtype": "bfloat16"}, "bf16 summed in fp32"),
        ({"kernel": "stepwise"}, "asked for"),
    ],
)
def test_the_reason_names_the_precision(request_, words):
    assert words in plan(**request_)["reason"]


@pytest.mark.parametrize("device", USABLE)
def test_every_usable_device_has_a_plan(device):
    assert plan(device)["kernel"] == "stepwise"


def test_devices_are_those_of_the_data_sheets():
    assert set(DEVICES) >= {"a100", "h100", "h200", "b200", "rtx4090"}
    for device in DEVICES.values():
        capability = device["compute_capability"]
        assert 70 <= capability <= 120
        assert (device["max_cluster_size"] > 1) == (capability >= 90)
        # Shared memory a block, of what an SM has: CUDA C++ Programming Guide, technical
        # specifications by compute capability.
        kilobytes = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
        assert device["shared_bytes_per_block"] == kilobytes[capability] * 1024


@pytest.mark.parametrize(
    ("request_", "sentences"),
    [
        ({"device": "v100"}, ["v100", "7.0", "at least 8.0"]),
        ({"device": "t4"}, ["t4", "7.5", "at least 8.0"]),
        ({"kernel": "warp"}, ['"warp"', "valid: stepwise"]),
        ({"cell": "cnn"}, ["cell", "tanh, relu, gru, lstm", '"cnn"']),
        ({"dtype": "int8"}, ["dtype", "float64, float32, float16, bfloat16", '"int8"']),
        ({"precision": "high"}, ["precision", "ieee, tf32", '"high"']),
        ({"hidden_size": 0}, ["hidden_size", "at least 1", "got 0"]),
        ({"batch_size": -3}, ["batch_size", "got -3"]),
        ({"seq_len": 0}, ["seq_len", "got 0"]),
        ({"input_size": 0}, ["input_size", "got 0"]),
        ({"num_directions": 3}, ["num_directions", "1 or 2", "got 3"]),
        ({"cell": "gru", "proj_size": 3}, ["proj_size", "LSTM", "got 3"]),
        ({"proj_size": 512}, ["proj_size", "less than hidden_size 512", "got 512"]),
        ({"proj_size": -1}, ["proj_size", "got -1"]),
        ({"seq_len": 2**40, "batch_size": 2**20}, [str(2**40), "64 bits"]),
        ({"hidden_size": 2**62}, [str(2**62), "64 bits"]),
        ({"batch_size": 32768, "seq_len": 4096}, ["h100 has 80 GB", "need 2749 GB"]),
    ],
)
def test_refusals_name_the_value_and_what_works(request_, sentences):
    with pytest.raises(ValueError) as info:
        plan(**request_)
    assert [part for part in sentences if part not in str(info.value)] == []


def test_more_than_2_to_the_31_elements():
    """No product of sizes wraps: T * B * G * H elements past 2^31, 2^32 and their bytes."""
    for exponent in (10, 12, 14):
        result = plan(
            dtype="float16",
            seq_len=2**exponent,
            batch_size=2**10,
            hidden_size=2**11,
            memory_bytes=2**60,
        )
        assert result["reserve_bytes"] == 2 * 2**exponent * 2**10 * 5 * 2**11 * 2
        assert result["launches_forward"] == 2 * 2**exponent
    # One step alone: B * G * H.
    result = plan(cell="gru", seq_len=1, batch_size=2**17, hidden_size=2**14, memory_bytes=2**60)
    assert result["workspace_bytes"] == 2 * 2**31 * 4 * (1 + 4)
    assert result["ctas"] == 65535 * 2**7


def test_command_line(capsys):
    arguments = "plan --cell lstm --hidden 512 --batch 32 --proj 100 --device h100"
    assert main([*arguments.split(), "--dtype", "bfloat16", "--steps", "10"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["shape"].startswith("lstm, T=10, B=32") and "P=100" in rows["shape"]
    assert rows["device"].startswith("h100, sm_90, 132 SMs, 227 KiB")
    assert rows["kernel"] == "stepwise"
    assert rows["launches"].startswith("forward 40, backward 41")
    assert rows["grid"].startswith("128 blocks of 128 threads")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "v100"], "compute capability 7.0, at least 8.0"),
        (["--device", "h100", "--kernel", "warp"], 'no kernel "warp"; valid: stepwise'),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_command_line_refusals(capsys, arguments, message):
    with pytest.raises(SystemExit) as info:
        main(["plan", *arguments])
    assert info.value.code == 2
    assert message in capsys.readouterr().err
