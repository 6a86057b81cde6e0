"""Builds birnn_cuda._C: for the CPU alone, or for CUDA and the CPU from the same sources.

BIRNN_BUILD_CUDA=0 builds for the CPU alone, =1 insists on CUDA; unset, CUDA is built where torch is
a CUDA build and nvcc is found. TORCH_CUDA_ARCH_LIST chooses the architectures. No GPU need be
present. Torch must be installed beforehand: pip install --no-build-isolation .
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
DEFAULT_ARCHITECTURES = ("8.0", "9.0a", "10.0", "12.0")


def fail(sentence: str) -> None:
    sys.exit(f"birnn_cuda: cannot build: {sentence}")


if sys.version_info < (3, 10):  # noqa: UP036 (a sentence instead of a syntax error)
    fail(f"Python 3.10 or newer is needed, this is {platform.python_version()}.")
try:
    import torch
except ImportError:
    fail(
        "torch is not installed in this environment; install torch 2.9 or newer, then run "
        "`pip install --no-build-isolation .` again."
    )
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
    fail(f"torch 2.9 or newer is needed, this environment has {torch.__version__}.")
try:
    import pybind11  # noqa: F401
except ImportError:
    fail("pybind11 is not installed; `pip install pybind11 ninja` first.")
if sys.platform == "win32":
    fail("Windows is not supported: the CPU kernels need the vector extensions of GCC or Clang.")

from torch.utils import cpp_extension  # noqa: E402

compiler = os.environ.get("CXX", "c++")
if shutil.which(compiler.split()[0]) is None:
    fail(f"no C++20 compiler: `{compiler}` is not on the PATH (GCC 11 or Clang 14 and newer work).")


def debug_flags(cflags: str) -> list[str]:
    """Against the -g of Python's own flags, which doubles the time to build and makes the library
    eight times as large; nothing where the caller's CFLAGS have a -g of their own."""
    return [] if any(flag.startswith("-g") for flag in cflags.split()) else ["-g0"]


def find_nvcc() -> str | None:
    if cpp_extension.CUDA_HOME:
        nvcc = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
        if nvcc.exists():
            return str(nvcc)
    return shutil.which("nvcc")


def default_architectures(report: str) -> str:
    """Of the default architectures those that nvcc can compile for, by its --list-gpu-arch.

    Before CUDA 12.8 it knows nothing past 9.0. For GPUs that are newer than all of them there is
    the PTX of the last; not of one that ends in a, whose PTX is for that architecture alone.
    """
    known = {int(number) for number in re.findall(r"compute_(\d+)", report)}
    chosen = [
        name
        for name in DEFAULT_ARCHITECTURES
        if not known or int(name.rstrip("a").replace(".", "")) in known
    ]
    if not chosen:
        fail(f"this nvcc compiles for none of {', '.join(DEFAULT_ARCHITECTURES)}.")
    portable = [name for name in chosen if not name.endswith("a")][-1:]
    return ";".join(name + "+PTX" if name in portable else name for name in chosen)


def nvcc_architectures() -> str:
    command = [find_nvcc() or "nvcc", "--list-gpu-arch"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def toolkit_include() -> list[str]:
    """The headers of nvcc's own toolkit, wherever the nvcc on the PATH leads."""
    command = [find_nvcc() or "nvcc", "--dryrun", "-c", "any.cu"]
    report = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", report, re.MULTILINE)
    include = Path(top[1], "include").resolve() if top else None
    return [str(include)] if include and include.is_dir() else []


def wants_cuda() -> bool:
    choice = os.environ.get("BIRNN_BUILD_CUDA", "")
    if choice not in ("", "0", "1"):
        fail(f"BIRNN_BUILD_CUDA must be 0, 1 or unset, not {choice!r}.")
    if choice == "0":
        return False
    if torch.version.cuda is None:
        if choice == "1":
            fail(f"BIRNN_BUILD_CUDA=1, but torch {torch.__version__} is a build without CUDA.")
        return False
    if find_nvcc() is None:
        if choice == "1":
            fail(
                "BIRNN_BUILD_CUDA=1, but no nvcc was found "
                f"(torch is built for CUDA {torch.version.cuda})."
            )
        return False
    return True


def sources_in(*patterns: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)}


# The plan is host code that needs no CUDA.
plan_sources = sources_in("csrc/cuda/plan/*.cpp")
cuda_sources = sources_in("csrc/layer/cuda/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/**/*.cu")
sources = sources_in("csrc/layer/*.cpp", "csrc/layer/cpu/*.cpp", "csrc/cpu/*.cpp") | plan_sources
compile_flags = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall"]
compile_flags += debug_flags(os.environ.get("CFLAGS", ""))
link_flags: list[str] = []
if sys.platform == "darwin":
    # Apple's clang has no OpenMP of its own: the recurrence runs on one core there.
    pass
else:
    # Compile with OpenMP, but do not link it: its symbols come from the copy that torch brings,
    # so that there is one pool of threads.
    compile_flags.append("-fopenmp")
include_dirs = [str(ROOT / "csrc")]

with_cuda = wants_cuda()
if with_cuda:
    architectures = os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", default_architectures(nvcc_architectures())
    )
    sources |= cuda_sources
    macros = [
        ("BIRNN_WITH_CUDA", None),
        ("BIRNN_CUDA_VERSION", f'"{torch.version.cuda}"'),
        ("BIRNN_CUDA_ARCHITECTURES", '"' + architectures.replace(";", " ") + '"'),
    ]
    # A toolkit may lack some of CUDA's headers and libraries. Torch's own packages carry most of
    # them, and come first, as they fit torch.
    packages = (
        Path(torch.__file__).parent.parent / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}"
    )
    library_dirs = []
    if packages.is_dir():
        include_dirs.append(str(packages / "include"))
        library_dirs.append(str(packages / "lib"))
    include_dirs += toolkit_include()
    extension = cpp_extension.CUDAExtension(
        "birnn_cuda._C",
        sorted(sources),
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=["cublas"],
        define_macros=macros,
        extra_compile_args={"cxx": compile_flags, "nvcc": ["-O3", "-std=c++17", "-lineinfo"]},
        extra_link_args=link_flags,
    )
    if packages.is_dir():
        major = torch.version.cuda.split(".")[0]
        extension.libraries = [
            f":lib{name}.so.{major}" if name in ("cublas", "cudart") else name
            for name in extension.libraries
        ]
else:
    extension = cpp_extension.CppExtension(
        "birnn_cuda._C",
        sorted(sources),
        include_dirs=include_dirs,
        extra_compile_args={"cxx": compile_flags},
        extra_link_args=link_flags,
    )

setup(
    # Objects of the two builds apart, so that one does not overwrite the other's.
    options={"build": {"build_base": "build/cuda" if with_cuda else "build/cpu"}},
    ext_modules=[extension],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
