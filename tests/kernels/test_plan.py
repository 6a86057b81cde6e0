"""Which kernel a shape runs on a GPU: shapes against expected plans, errors, sizes past 2^31."""

from __future__ import annotations

import itertools

import pytest
from plans import DEVICES, plan

from birnn_cuda import ops
from birnn_cuda.__main__ import main

USABLE = [name for name, device in DEVICES.items() if device["compute_capability"] >= 80]


def aligned(*arrays):
    """Bytes of arrays in one workspace."""
    return sum(-(-size // 256) * 256 for size in arrays)


# request, (ctas, threads, launches forward, backward), workspaces of one direction, reserve of one
STEPWISE = {
    "lstm": (
        {},
        (4 * 32, 128, 256, 257),
        (aligned(4 * 32 * 512 * 4), aligned(32 * 512 * 4, 32 * 4 * 512 * 4)),
        128 * 32 * 5 * 512 * 4,
    ),
    "lstm_inference": (
        {"training": False, "num_directions": 1},
        (4 * 32, 128, 256, None),
        (aligned(4 * 32 * 512 * 4), None),
        0,
    ),
    "lstm_fp16": (
        {"dtype": "float16", "precision": "tf32"},
        (4 * 32, 128, 256, 257),
        (aligned(4 * 32 * 512 * 4), aligned(32 * 512 * 4, 32 * 4 * 512 * 2)),
        128 * 32 * 5 * 512 * 2,
    ),
    "lstm_proj": (
        {"proj_size": 60, "hidden_size": 130, "batch_size": 3, "seq_len": 7},
        (2 * 3, 128, 28, 29),
        (
            aligned(3 * 520 * 4, 3 * 130 * 4, 3 * 60 * 4),
            aligned(3 * 60 * 4, 3 * 520 * 4, 3 * 130 * 4, 3 * 60 * 4),
        ),
        7 * 3 * 5 * 130 * 4,
    ),
    "gru_fp64": (
        {"cell": "gru", "dtype": "float64", "hidden_size": 33, "batch_size": 1, "seq_len": 1},
        (1, 64, 2, 3),
        (aligned(3 * 33 * 8), aligned(33 * 8, 4 * 33 * 8)),
        4 * 33 * 8,
    ),
    "tanh_bf16": (
        {"cell": "tanh", "dtype": "bfloat16", "hidden_size": 1, "batch_size": 70000},
        (65535, 32, 256, 257),
        (aligned(70000 * 4), aligned(70000 * 4, 70000 * 2)),
        0,
    ),
    "relu": (
        {"cell": "relu", "hidden_size": 128, "seq_len": 10},
        (32, 128, 20, 21),
        (aligned(32 * 128 * 4), aligned(32 * 128 * 4, 32 * 128 * 4)),
        0,
    ),
}


@pytest.mark.parametrize("name", STEPWISE)
def test_stepwise_of_a_shape(name):
    request, (ctas, threads, *launches), workspaces, reserve = STEPWISE[name]
    directions = request.get("num_directions", 2)
    result = plan(**request, kernel="stepwise")
    assert result["reserve_bytes"] == directions * reserve
    for side, count, workspace in zip(("forward", "backward"), launches, workspaces, strict=True):
        if count is None:
            assert result[side] is None
            continue
        chosen = result[side]
        assert chosen["kernel"] == "stepwise" and "asked for" in chosen["reason"]
        assert (chosen["ctas"], chosen["threads"], chosen["launches"]) == (ctas, threads, count)
        assert chosen["workspace_bytes"] == directions * workspace


# What an H100 is given, both passes of a training step: shapes of each region of the table of
# limits. Measured figures may move these.
CHOSEN = {
    ("lstm", "float16", 64, 32): ("block", "cluster"),
    ("lstm", "float16", 128, 8): ("cluster", "cluster"),
    ("lstm", "float16", 256, 1): ("cluster", "cluster"),
    ("lstm", "bfloat16", 256, 64): ("cluster", "cluster"),
    ("lstm", "float16", 512, 8): ("cluster", "cluster"),
    ("lstm", "float16", 1024, 8): ("grid", "grid"),
    ("gru", "float16", 1024, 1): ("grid", "grid"),
    ("tanh", "float16", 64, 1): ("block", "block"),
    ("tanh", "float16", 1024, 8): ("cluster", "cluster"),
    ("lstm", "float16", 2048, 8): ("stepwise", "stepwise"),
    ("lstm", "float64", 64, 8): ("stepwise", "stepwise"),
}


@pytest.mark.parametrize("shape", CHOSEN, ids=str)
def test_chosen_on_an_h100(shape):
    cell, dtype, hidden_size, batch_size = shape
    result = plan(
        cell=cell, dtype=dtype, hidden_size=hidden_size, batch_size=batch_size, precision="tf32"
    )
    assert (result["forward"]["kernel"], result["backward"]["kernel"]) == CHOSEN[shape]


@pytest.mark.parametrize("device", USABLE)
@pytest.mark.parametrize("directions", [1, 2])
def test_what_is_chosen_fits_the_device(device, directions):
    """For any shape: blocks of a grid are resident at once, clusters as large as the chip allows,
    shared memory and threads within limits, every sequence and unit in some block."""
    limits = DEVICES[device]
    for cell, dtype in itertools.product(("tanh", "gru", "lstm"), ("float32", "bfloat16")):
        for hidden_size, batch_size in ((1, 1), (20, 9), (100, 300), (511, 33), (1024, 16)):
            result = plan(
                device,
                cell=cell,
                dtype=dtype,
                hidden_size=hidden_size,
                batch_size=batch_size,
                num_directions=directions,
            )
            for side in ("forward", "backward"):
                chosen = result[side]
                what = (device, cell, dtype, hidden_size, batch_size, side, chosen)
                assert chosen["microseconds_per_step"] > 0, what
                if chosen["kernel"] == "stepwise":
                    continue
                assert chosen["blocks"] <= hidden_size, what
                assert chosen["threads"] % 32 == 0 and chosen["threads"] <= 1024, what
                groups = chosen["ctas"] // chosen["blocks"]
                if chosen["kernel"] == "grid":
                    assert chosen["ctas"] * directions <= limits["num_multiprocessors"], what
                else:
                    assert groups * chosen["batch_tiles"] * 8 >= batch_size, what
                    assert chosen["blocks"] <= limits["max_cluster_size"], what
                    assert (chosen["kernel"] == "block") == (chosen["blocks"] == 1), what


def test_devices_without_clusters_have_none():
    for device in ("a100", "l4", "rtx4090"):
        assert plan(device, hidden_size=256)["forward"]["kernel"] != "cluster"
        with pytest.raises(ValueError, match=f'"cluster" does not take .* on {device}'):
            plan(device, kernel="cluster")


@pytest.mark.parametrize("given", [{"resets": True}, {"recurrent_dropout": True}], ids=str)
def test_resets_and_recurrent_dropout_run_in_every_kernel(given):
    for kernel in ("block", "cluster", "grid", "stepwise"):
        taken = plan(kernel=kernel, hidden_size=64, batch_size=8, **given)
        assert taken["forward"]["kernel"] == taken["backward"]["kernel"] == kernel
    with ops.forced_kernel(backward_parts=4):  # with resets there is one part
        parts = plan(kernel="cluster", hidden_size=64, **given)["backward"]["parts"]
        assert parts == (1 if "resets" in given else 4)


def test_zoneout_runs_stepwise():
    assert "zoneout runs stepwise" in plan(zoneout=True)["forward"]["reason"]
    with pytest.raises(ValueError, match="those that do: stepwise"):
        plan(kernel="grid", zoneout=True)


def test_a_kernel_that_does_not_take_the_shape_is_refused():
    for request in ({"dtype": "float64"}, {"proj_size": 100}, {"hidden_size": 4000}):
        with pytest.raises(ValueError, match="those that do: stepwise"):
            plan(kernel="grid", **request)


def test_a_backward_pass_has_one_part_unless_more_are_asked_for():
    large = {"dtype": "float16", "hidden_size": 512, "input_size": 2048, "batch_size": 32}
    assert plan(**large, seq_len=1000)["backward"]["parts"] == 1
    with ops.forced_kernel(backward_parts=4):
        assert plan(**large, seq_len=1000)["backward"]["parts"] == 4
        assert plan(**large, seq_len=1000, lengths=True)["backward"]["parts"] == 1
        assert plan(**large, seq_len=3)["backward"]["parts"] == 3
        assert plan(**large, seq_len=1000, kernel="stepwise")["backward"]["parts"] == 1


def test_several_clusters_sum_up_the_gradients_of_biases_in_a_launch_of_its_own():
    for batch_size, launches in ((8, 2), (300, 3)):
        backward = plan(kernel="block", hidden_size=64, batch_size=batch_size)["backward"]
        assert (backward["ctas"] > 1) == (launches == 3)
        assert backward["launches"] == launches


def test_an_eager_call_pays_for_its_launches_and_a_graph_does_not():
    """A host thread enqueues what the device could run side by side: 13.5 us a step for two
    directions, a product at 4.5 and a kernel at 2.25 each."""
    shape = {"dtype": "float16", "hidden_size": 512, "batch_size": 128}
    eager, graph = (plan(**shape, captured=captured)["backward"] for captured in (False, True))
    assert (eager["kernel"], graph["kernel"]) == ("cluster", "stepwise")
    assert "us a step in an eager call" in eager["reason"] and "stepwise 13.5" in eager["reason"]
    assert "us a step in a CUDA graph" in graph["reason"]
    for directions, proj_size, launches in ((1, 0, 2), (2, 0, 4), (2, 60, 8)):
        small = plan(
            kernel="stepwise", hidden_size=64, proj_size=proj_size, num_directions=directions
        )
        assert small["forward"]["microseconds_per_step"] == pytest.approx(launches / 2 * 6.75)
    # What the device takes longer for than the host to enqueue is the same in both.
    large = {"hidden_size": 8000, "kernel": "stepwise"}
    assert (
        plan(**large)["forward"]["microseconds_per_step"]
        == plan(**large, captured=True)["forward"]["microseconds_per_step"]
        > 13.5
    )


def test_forced_kernels():
    with ops.forced_kernel("cluster", backward_parts=3):
        assert ops.extension.forced() == ("cluster", 3, None, None)
        assert plan(seq_len=5)["backward"]["parts"] == 3
        with ops.forced_kernel(""):
            assert ops.extension.forced() == ("", 0, None, None)
        assert ops.extension.forced() == ("cluster", 3, None, None)
    assert ops.extension.forced() == ("", 0, None, None)
    with pytest.raises(ValueError, match='"warp"; valid: block, cluster, grid, stepwise'):
        ops.forced_kernel("warp").__enter__()
    with pytest.raises(ValueError, match="got -2"):
        ops.forced_kernel("", -2).__enter__()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "products in fp32"),
        ({"precision": "tf32"}, "products in tf32"),
        ({"dtype": "float64", "precision": "tf32"}, "in fp64"),
        ({"dtype": "float32", "hidden_size": 64}, "three products of tf32"),
        ({"dtype": "float16"}, "fp16 summed in fp32"),
        ({"dtype": "bfloat16"}, "bf16 summed in fp32"),
        ({"kernel": "stepwise"}, "asked for"),
        ({"dtype": "float64"}, "fp64 has no products"),
        ({"proj_size": 60}, "proj_size runs stepwise"),
        ({"hidden_size": 8000}, "8000 hidden units does not fit"),
        ({"hidden_size": 64, "dtype": "float16"}, "one block"),
    ],
)
def test_the_reason_names_the_precision(request_, words):
    assert words in plan(**request_)["forward"]["reason"]


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
        ({"kernel": "warp"}, ['"warp"', "valid: block, cluster, grid, stepwise"]),
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
            kernel="stepwise",
        )
        assert result["reserve_bytes"] == 2 * 2**exponent * 2**10 * 5 * 2**11 * 2
        assert result["forward"]["launches"] == 2 * 2**exponent
    # One step alone: B * G * H.
    result = plan(cell="gru", seq_len=1, batch_size=2**17, hidden_size=2**14, memory_bytes=2**60)
    assert result["backward"]["workspace_bytes"] == 2 * 2**31 * 4 * (1 + 4)
    assert result["backward"]["ctas"] == 65535 * 2**7


def test_command_line(capsys):
    arguments = "plan --cell lstm --hidden 512 --batch 32 --proj 100 --device h100"
    assert main([*arguments.split(), "--dtype", "bfloat16", "--steps", "10"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["shape"].startswith("lstm, T=10, B=32") and "P=100" in rows["shape"]
    assert rows["device"].startswith("h100, sm_90, 132 SMs, 227 KiB")
    assert rows["residency"] == "published table"
    assert rows["forward"] == rows["backward"] == "stepwise"
    assert rows["backward launches"].startswith("41 in each direction")
    assert rows["backward grid"].startswith("128 blocks of 128 threads")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "v100"], "compute capability 7.0, at least 8.0"),
        (
            ["--device", "h100", "--kernel", "warp"],
            'no kernel "warp"; valid: block, cluster, grid, stepwise',
        ),
        (["--device", "abacus"], "invalid choice"),
    ],
)
def test_command_line_refusals(capsys, arguments, message):
    with pytest.raises(SystemExit) as info:
        main(["plan", *arguments])
    assert info.value.code == 2
    assert message in capsys.readouterr().err
