"""What can be said of the CUDA sources without a GPU: they compile, and into what."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
KERNELS = ROOT / "tests" / "kernels"

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_80"])
@pytest.mark.parametrize("source", ["conformance.cu", "litmus.cu", "defects.cu"])
def test_kernel_tests_compile(source: str, architecture: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "--Werror=all-warnings"]
    command += [f"-I{path}" for path in (CSRC, ROOT / "tests" / "emulator", KERNELS)]
    command += [str(KERNELS / source), "-o", str(tmp_path / "out.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out.cubin").stat().st_size > 0


PTXAS_KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads",
    re.DOTALL,
)


def spills(report: str) -> dict[str, int]:
    """Of each kernel in a report of ptxas -v: bytes of registers spilled, and of stack."""
    return {
        match["kernel"]: int(match["stack"]) + int(match["stores"]) + int(match["loads"])
        for match in PTXAS_KERNEL.finditer(report)
    }


def compile_cubin(source: str, architecture: str, out: Path, *flags: str) -> str:
    """What ptxas -v says of a source in csrc/cuda."""
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "--Werror=all-warnings"]
    command += [f"-I{CSRC}", "-Xptxas", "-v", *flags, "-o", str(out), str(CUDA / source)]
    result = subprocess.run(command, capture_output=True, text=True)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    return report


OTHER_ARCHITECTURES = ("sm_80", "sm_100", "sm_120")


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("architecture", ["sm_90a", *OTHER_ARCHITECTURES])
def test_stepwise_compiles_without_spills(architecture: str, tmp_path: Path) -> None:
    report = compile_cubin("stepwise/stepwise.cu", architecture, tmp_path / "out.cubin")
    kernels = spills(report)
    # 5 cells and 4 element types both ways; for each type 2 of the projection, the end of backward,
    # the masked initial state, and 4 of the reset gate before the product.
    assert len(kernels) == 2 * 5 * 4 + 4 * 4 + 4 * 4, report
    assert {name: count for name, count in kernels.items() if count} == {}


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("architecture", ["sm_90a", *OTHER_ARCHITECTURES])
def test_normalised_cells_compile_without_spills(architecture: str, tmp_path: Path) -> None:
    report = compile_cubin("stepwise/normalised.cu", architecture, tmp_path / "out.cubin")
    kernels = spills(report)
    # 2 cells and 2 element types both ways; for each type the end of backward.
    assert len(kernels) == 2 * 2 * 2 + 2, report
    assert {name: count for name, count in kernels.items() if count} == {}


INSTANCE = re.compile(
    r"entry function '\w*\d(?P<kernel>[a-z]+_(?:forward|backward))_kernel\w*?CellE(?P<cell>\d)E\w*?"
    r"(?P<numbers>(?:L[ib]\d+E)+)E\w*'.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
CELLS = ("tanh", "relu", "gru", "lstm")
PRECISIONS = ("fp16", "bf16", "tf32", "ieee")
PERSISTENT_KERNELS = ("cluster_backward", "cluster_forward", "grid_forward", "grid_backward")


def compile_instances(name: str, architecture: str, out: Path, *flags: str) -> str:
    """What ptxas -v says of all instances in csrc/cuda/instances/`name`.cu."""
    return compile_cubin(f"instances/{name}.cu", architecture, out, *flags)


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", PERSISTENT_KERNELS)
def test_weights_stay_in_registers(kernel: str, precision: str, tmp_path: Path) -> None:
    """No instance spills, and none takes more registers than kernels/registers.txt says."""
    report = compile_instances(f"{kernel}_{precision}", "sm_90a", tmp_path / "out.cubin")
    assert {name: count for name, count in spills(report).items() if count} == {}
    used = {}
    for match in INSTANCE.finditer(report):
        numbers = re.findall(r"L[ib](\d+)E", match["numbers"])
        name = " ".join([match["kernel"], precision, CELLS[int(match["cell"])], *numbers])
        used[name] = int(match["registers"])
    table = {}
    for line in (KERNELS / "registers.txt").read_text().splitlines():
        name, count = line.rsplit(" ", 1)
        if name.startswith(f"{kernel} {precision} "):
            table[name] = int(count)
    assert used.keys() == table.keys()
    assert {name: count for name, count in used.items() if count > table[name]} == {}


def disassembler() -> str:
    """cuobjdump: the toolkit's, or the one that comes with a CUDA build of torch."""
    triton = importlib.util.find_spec("triton")
    places = [os.environ.get("PATH", "")]
    if triton and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    found = shutil.which("cuobjdump", path=os.pathsep.join(places))
    assert found, "cuobjdump is neither on the PATH nor in triton's package"
    return found


SASS_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<instruction>[^;]*);", re.MULTILINE
)


def step_loop(sass: str) -> list[str]:
    """The instructions of the outermost loop around all products of a kernel."""
    code = [(int(line["address"], 16), line["instruction"]) for line in SASS_LINE.finditer(sass)]
    products = [address for address, instruction in code if "HMMA" in instruction]
    loops = []
    for address, instruction in code:
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if target and int(target[1], 16) <= products[0] and address >= products[-1]:
            loops.append((int(target[1], 16), address))
    first, last = min(loops)[0], max(last for _, last in loops)
    return [instruction for address, instruction in code if first <= address <= last]


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("kernel", PERSISTENT_KERNELS)
def test_steps_have_no_fence_and_no_local_memory(kernel: str, tmp_path: Path) -> None:
    compile_instances(f"{kernel}_fp16", "sm_90a", tmp_path / "out.cubin")
    command = [disassembler(), "-sass", str(tmp_path / "out.cubin")]
    sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels = [part for part in sass.split("Function : ")[1:] if f"{kernel}_kernel" in part]
    assert len(kernels) >= len(CELLS)
    for part in kernels:
        loop = step_loop(part)
        name = part.split(maxsplit=1)[0]
        assert sum("HMMA" in instruction for instruction in loop) >= 4, name
        forbidden = re.compile(r"\b(LDL|STL|MEMBAR|ERRBAR|CCTL)\b")
        assert [one for one in loop if forbidden.search(one)] == [], name


@needs_nvcc
@pytest.mark.long
@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
@pytest.mark.parametrize("kernel", PERSISTENT_KERNELS)
def test_persistent_kernels_compile(kernel: str, architecture: str, tmp_path: Path) -> None:
    report = compile_instances(
        f"{kernel}_fp16", architecture, tmp_path / "out.cubin", "-DBIRNN_ONE_INSTANCE"
    )
    assert len(INSTANCE.findall(report)) == len(CELLS), report


@needs_nvcc
def test_intrinsics_are_the_instructions_they_name(tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "-arch=compute_90a", "-ptx"]
    command += [f"-I{path}" for path in (CSRC, ROOT / "tests" / "emulator", KERNELS)]
    command += [str(KERNELS / "conformance.cu"), "-o", str(tmp_path / "out.ptx")]
    subprocess.run(command, check=True, capture_output=True)
    ptx = (tmp_path / "out.ptx").read_text()
    instructions = [
        "barrier.cluster.arrive.release.aligned",
        "barrier.cluster.arrive.relaxed.aligned",
        "barrier.cluster.wait.acquire.aligned",
        "mapa.shared::cluster.u32",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32",
        "mbarrier.try_wait.parity.relaxed.cluster",
        "fence.acquire.sync_restrict::shared::cluster.cluster",
        "mbarrier.try_wait.parity.acquire.cta",
        "mbarrier.arrive.release.cluster.shared::cluster.b64",
        "mbarrier.arrive.expect_tx.release.cta",
        "fence.mbarrier_init.release.cluster",
        "cp.async.cg.shared.global",
        "cp.async.wait_group",
        "bar.arrive",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "ld.acquire.gpu.global.u32",
        "st.release.gpu.global.u32",
        "red.release.gpu.global.add.u32",
        "fence.acq_rel.gpu",
        "tanh.approx.f32",
        "sqrt.rn.f32",
        "sqrt.rn.f64",
    ]
    assert [name for name in instructions if name not in ptx] == []
