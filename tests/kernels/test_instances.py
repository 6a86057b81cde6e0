"""The instances of the persistent kernels: none compiled in vain, and each of them run.

The tests of the kernels run small instances, which take the same path. Here every one that a build
for a GPU holds is run once: the PTX that nvcc made of it, by the interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from kernel_run import KERNELS, Kernel, check_backward, check_forward, integers
from problem import CELL_VALUES, CELLS, DTYPES, PRECISIONS, Problem

import build

PERSISTENT_KERNELS = ("cluster_forward", "cluster_backward", "grid_forward", "grid_backward")
# Behind the blocks of a cluster, or of a direction, and the batch tiles, what a tiling has.
FURTHER = {
    "cluster_forward": ((1,), (2,), (4,)),  # split of K
    "cluster_backward": ((),),
    "grid_forward": ((1,),),  # groups at once
    "grid_backward": ((1,), (2,), (4,), (0,)),  # column teams
}


def test_an_instance_is_compiled_where_some_shape_is_given_to_it() -> None:
    program = build.host_program(KERNELS / "instances.cpp")
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    seen = [line.split() for line in lines.splitlines()]
    assert {kernel for kernel, *_ in seen} == set(PERSISTENT_KERNELS)
    assert [line for line in seen if line[-1] != line[-2]] == [], "compiled unlike reached"


@contextlib.contextmanager
def ptx_front_end() -> Iterator[None]:
    before, build.front_end = build.front_end, "ptx"
    try:
        yield
    finally:
        build.front_end = before


@functools.cache
def all_instances(kernel: str) -> build.Emulator:
    """The driver of a kernel with every instance that a GPU build has."""
    with ptx_front_end():
        source = KERNELS / f"{kernel}_driver.cpp"
        found = build.Emulator(build.shared_library(source, defines=["BIRNN_ALL_INSTANCES"]))
    found.configure()
    found.library.ptx_counts.restype = ctypes.c_char_p
    return found


Shape = tuple[int, int, tuple[int, ...]]  # H, B, tiling


@functools.cache
def shapes() -> dict[str, list[Shape]]:
    """What to try, by kernel, the fastest to interpret first."""
    hidden_sizes = [*range(1, 66), *range(68, 600, 4), *range(600, 1200, 16)]
    blocks = {"cluster": (1, 2, 4, 8, 13, 16), "grid": (1, 2, 4, 8, 16, 33, 65, 129)}
    found = {}
    for kernel in PERSISTENT_KERNELS:
        tilings = itertools.product(blocks[kernel.split("_")[0]], (1, 2, 4, 8), FURTHER[kernel])
        sizes = itertools.product(hidden_sizes, [(b, t, *rest) for b, t, rest in tilings])
        found[kernel] = sorted(
            [(hidden, 3, tiling) for hidden, tiling in sizes if hidden >= tiling[0]],
            key=lambda shape: (shape[0] ** 2 * shape[2][1], shape[2]),
        )
    return found


INSTANCE = re.compile(r"\d(?P<kernel>[a-z]+_[a-z]+ward)_kernel\w*?CellE(?P<cell>\d)E")
NUMBER = re.compile(r"L[ib](\d+)E")


def table_of(kernel: str, precision: str, cell: str) -> set[str]:
    """The instances in registers.txt, which test_nvcc.py compares with what is compiled."""
    prefix = f"{kernel} {precision} {cell} "
    lines = (KERNELS / "registers.txt").read_text().splitlines()
    return {line.rsplit(" ", 1)[0].removeprefix(prefix) for line in lines if prefix in line}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", PERSISTENT_KERNELS)
def test_every_instance_runs(kernel: str, cell: str, precision: str) -> None:
    wanted = table_of(kernel, precision, cell)
    assert wanted
    emulator = all_instances(kernel)
    instance_of = getattr(emulator.library, f"{kernel}_instance")
    dtype, executed, tried = PRECISIONS[precision], set(), set[int]()
    for hidden, batch, tiling in shapes()[kernel]:
        sizes = (CELL_VALUES[cell], DTYPES.index(dtype), 2, batch, hidden, 0)
        instance = instance_of(integers(*sizes), integers(*tiling))
        if instance < 0 or instance in tried:
            continue
        tried.add(instance)
        problem = Problem(cell, dtype, (2, batch, hidden), [2, 1, 0])
        under_test = Kernel(kernel, tiling, precision == "tf32", together=False, on=emulator)
        emulator.library.ptx_count_launches(1)
        (check_forward if kernel.endswith("forward") else check_backward)(problem, under_test)
        for launch in json.loads(emulator.library.ptx_counts()):
            match = INSTANCE.search(launch["kernel"])
            if match and match["kernel"] == kernel:
                assert CELLS[int(match["cell"])] == cell
                numbers = NUMBER.findall(launch["kernel"], match.end())
                executed.add(" ".join(numbers))
        if len(tried) == len(wanted):
            break
    emulator.library.ptx_count_launches(0)
    assert executed == wanted
