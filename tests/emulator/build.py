"""Builds kernel sources against the emulator: stand-alone programs, plain or under a sanitizer, and
shared libraries for ctypes.

    python tests/emulator/build.py tests/kernels/conformance.cu --variant thread
    python tests/emulator/build.py tests/kernels/some_driver.cpp --shared

prints the path of what it built. --front-end ptx has nvcc compile the kernels, and the interpreter
of tests/emulator/ptx run what it made of them. Results are kept under build/emulator and built
again only when the command or the contents of a file that went into them have changed.
"""

import argparse
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emulator"
CACHE = ROOT / "build" / "emulator"

INCLUDES = [ROOT / "csrc", EMULATOR, ROOT / "tests" / "kernels"]
# Kernels read vectors of 16-bit elements as words, and name pragmas of nvcc.
COMMON_FLAGS = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-fno-strict-aliasing"]
COMMON_FLAGS += ["-Wno-unknown-pragmas"]
# The runtime is never instrumented, and its loops must not become calls that sanitizers intercept.
RUNTIME_FLAGS = ["-O2", "-fno-builtin", "-fno-tree-loop-distribute-patterns"]
RUNTIME_SOURCES = ["scheduler", "fibers", "barriers", "memory", "matrix", "c_interface"]

# Of debug information, which takes longer to make than the code: what reports name lines by.
LINES = ["-g1", "-O1"]
VARIANTS = {
    "plain": ["-O1"],  # compiles in two thirds of the time of -O2, and runs as fast
    "address": [*LINES, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": [*LINES, "-fsanitize=thread"],
}
# $EMULATOR_FRONT_END, what compiles kernels: "cpp", the C++ compiler against device_emulator.h, or
# "ptx", nvcc, for the interpreter; $EMULATOR_ARCHITECTURE, for which compute capability.
FRONT_ENDS = ("cpp", "ptx")
front_end = os.environ.get("EMULATOR_FRONT_END", "cpp")
architecture = os.environ.get("EMULATOR_ARCHITECTURE", "90a")
PTX = EMULATOR / "ptx"
# Errors name lines of the PTX, and through -lineinfo those of the source.
NVCC_FLAGS = ["-std=c++17", "-lineinfo", "-DPTX_EMULATED", "--compress-mode=none"]
NVCC_FLAGS += ["-Xcompiler=-fPIC,-O1,-fno-strict-aliasing,-Wno-unknown-pragmas"]

# The exit status of a program that a sanitizer has stopped.
SANITIZER_STATUS = 66
SANITIZER_OPTIONS = {
    "TSAN_OPTIONS": f"halt_on_error=1:exitcode={SANITIZER_STATUS}:atexit_sleep_ms=0",
    "ASAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:detect_leaks=0",
    "UBSAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:print_stacktrace=1",
}


def has_clusters():
    """Whether what is compiled can run in clusters of several blocks."""
    return front_end == "cpp" or int(architecture.rstrip("a")) >= 90


@functools.cache
def compiler():
    """The C++ compiler: $CXX, or g++."""
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        raise RuntimeError("no C++ compiler: install g++ or set CXX")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return path, version.stdout.splitlines()[0]


@functools.cache
def nvcc():
    """nvcc, which reads only what it is given: not what a wrapper or a user sets besides."""
    path = shutil.which("nvcc")
    if path is None:
        raise RuntimeError("nvcc is not installed")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return path, version.stdout.splitlines()[-1]


@functools.cache
def _digest(path, _modified):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _contents(path):
    return _digest(str(path), os.stat(path).st_mtime_ns)


def _is_current(manifest):
    try:
        return all(_contents(path) == digest for path, digest in json.loads(manifest.read_text()))
    except (OSError, ValueError):
        return False


def _build(name, suffix, command, inputs=(), finds_headers=False):
    """Runs `command` + ["-o", output] unless the output of the same inputs is there."""
    tool = nvcc() if command[0] != compiler()[0] else compiler()
    key = hashlib.sha256(repr((command, tool[1])).encode()).hexdigest()[:16]
    output = CACHE / f"{name}-{key}{suffix}"
    manifest = output.with_suffix(output.suffix + ".manifest")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(output.with_suffix(output.suffix + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if output.exists() and _is_current(manifest):
            return output
        manifest.unlink(missing_ok=True)
        headers = output.with_suffix(".d")
        extra = ["-MMD", "-MF", str(headers)] if finds_headers else []
        result = subprocess.run(
            [*command, *extra, "-o", str(output)], capture_output=True, text=True, cwd=ROOT
        )
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        used = [str(path) for path in inputs]
        if finds_headers:
            rule = headers.read_text().replace("\\\n", " ").split(":", 1)[1]
            used += [str((ROOT / path).resolve()) for path in rule.split()]
        manifest.write_text(json.dumps([(path, _contents(path)) for path in sorted(set(used))]))
    return output


def _object(source, flags, first_include=None):
    """Headers that `first_include`, a folder, holds stand for those of the project."""
    source = Path(source).resolve()
    command = [compiler()[0], *COMMON_FLAGS, *flags]
    command += [f"-I{path}" for path in (first_include, *INCLUDES) if path]
    command += ["-x", "c++", "-c", str(source)]
    return _build(source.stem, ".o", command, finds_headers=True)


def _nvcc_object(source, flags, includes):
    source = Path(source).resolve()
    command = [nvcc()[0], *flags, *(f"-I{path}" for path in includes if path), "-c", str(source)]
    return _build(source.stem, ".ptx.o", command, finds_headers=True)


def _kernel_object(source, flags, first_include=None):
    """A source with kernels, by the front end that is chosen."""
    if front_end == "cpp":
        return _object(source, flags, first_include)
    target = f"arch=compute_{architecture},code=compute_{architecture}"
    defines = [flag for flag in flags if flag.startswith("-D")]
    flags = ["-x", "cu", *NVCC_FLAGS, "-gencode", target, *defines]
    return _nvcc_object(source, flags, (first_include, *INCLUDES))


def _link(name, suffix, objects, flags):
    if front_end == "ptx":  # what stands for the CUDA runtime is never another library's
        flags = [*flags, "-Wl,-Bsymbolic"]
    command = [compiler()[0], *flags, *map(str, objects)]
    return _build(name, suffix, command, inputs=objects)


def _runtime():
    sources = [EMULATOR / f"{name}.cpp" for name in RUNTIME_SOURCES]
    if front_end == "cpp":
        return [_object(source, RUNTIME_FLAGS) for source in sources]
    cuda_runtime = PTX / "cuda_runtime.cpp"
    sources += sorted(set(PTX.glob("*.cpp")) - {cuda_runtime, PTX / "fuzz.cpp"})
    host = ["-x", "c++", "-std=c++20", "-Xcompiler=-fPIC,-O2,-fno-strict-aliasing,-fno-builtin"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(_object, sources, [RUNTIME_FLAGS] * len(sources))
        return [*objects, _nvcc_object(cuda_runtime, host, INCLUDES)]


def ptx_text(source):
    """The PTX that nvcc makes of a source, in a file."""
    target = f"arch=compute_{architecture},code=compute_{architecture}"
    command = [nvcc()[0], "-x", "cu", *NVCC_FLAGS, "-gencode", target]
    command += [*(f"-I{path}" for path in INCLUDES), "-ptx", str(Path(source).resolve())]
    return _build(Path(source).stem, ".ptx", command, finds_headers=True)


def ptx_fuzzer():
    """The program that mutates PTX, the sanitizers on the interpreter itself."""
    runtime = [_object(EMULATOR / f"{name}.cpp", RUNTIME_FLAGS) for name in RUNTIME_SOURCES]
    sources = sorted(set(PTX.glob("*.cpp")) - {PTX / "cuda_runtime.cpp"})
    objects = [_object(source, VARIANTS["address"]) for source in sources]
    return _link("ptx_fuzzer", "", [*runtime, *objects], VARIANTS["address"][1:])


def program(source, variant="plain", defines=(), first_include=None):
    """A stand-alone program from one source with a main(). Defines: "NAME" or "NAME=value"."""
    flags = VARIANTS[variant] + [f"-D{define}" for define in defines]
    # The runtime first: of inline library functions that both use, the plain copies are linked.
    objects = [*_runtime(), _kernel_object(source, flags, first_include)]
    sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
    return _link(Path(source).stem, "", objects, sanitize)


def host_program(source):
    """A program without kernels and without the emulator."""
    return _link(Path(source).stem, "", [_object(source, ["-O2"])], [])


def shared_library(*sources, defines=(), first_include=None):
    """A library for ctypes from the sources of a kernel driver. Not for sanitizers."""
    flags = VARIANTS["plain"] + [f"-D{define}" for define in defines]
    objects = [*_runtime(), *(_kernel_object(source, flags, first_include) for source in sources)]
    return _link(Path(sources[0]).stem, ".so", objects, ["-shared"])


# Torch's headers take most of the time of a build, optimised or not. NDEBUG as in torch's own
# build: some of its classes are larger without.
TORCH_FLAGS = [
    "-O1",
    "-DNDEBUG",
    "-fvisibility=hidden",
    "-DBIRNN_WITH_CUDA",
    "-DBIRNN_GPU_BACKEND_ALONE",
]


def layer_module(defines=("BIRNN_SMALL_INSTANCES",)):
    """The GPU layer on the emulator as a Python module."""
    import torch
    from torch.utils import cpp_extension

    csrc = ROOT / "csrc"
    defines = [f"-D{define}" for define in defines]
    name = "_emulated_layer"
    torch_flags = [
        *TORCH_FLAGS,
        *defines,
        f"-DTORCH_EXTENSION_NAME={name}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
        f"-isystem{sysconfig.get_paths()['include']}",
    ]
    host = [*sorted((csrc / "cuda" / "plan").glob("*.cpp")), *sorted((csrc / "cuda").glob("*.cpp"))]
    host += [EMULATOR / "streams" / f"{part}.cpp" for part in ("timeline", "runtime", "accesses")]
    kernels = sorted((csrc / "cuda").rglob("*.cu"))
    # Calls before every access, which streams/accesses.cpp takes: no sanitizer is linked. They take
    # longer to compile than to run, so they are optimised little.
    kernel_flags = ["-Og", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
    jobs = [(EMULATOR / "layer" / "module.cpp", torch_flags)]
    jobs += [(source, [*kernel_flags, *defines]) for source in kernels]
    jobs += [(source, ["-O2", f"-I{EMULATOR / 'streams'}"]) for source in host]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(
            lambda job: (_kernel_object if job[0].suffix == ".cu" else _object)(*job), jobs
        )
        objects = list(compiled)
    library = Path(torch.__file__).parent / "lib"
    flags = ["-shared", f"-L{library}", f"-Wl,-rpath,{library}", "-Wl,--no-as-needed"]
    flags += [f"-l{part}" for part in ("c10", "torch_cpu", "torch", "torch_python")]
    path = _link(name, ".so", [*_runtime(), *objects], flags)
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Emulator:
    """A shared library of kernel drivers, loaded by ctypes as `library`."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.birnn_emulator_configure.argtypes = [
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_uint64,
            ctypes.c_int,
        ]
        self.library.birnn_emulator_last_error.restype = ctypes.c_char_p

    def configure(self, order="shuffle", landing="random", seed=1, approximate=False):
        """The schedule of the launches to come."""
        status = self.library.birnn_emulator_configure(
            order.encode(), landing.encode(), seed, int(approximate)
        )
        if status != 0:
            raise ValueError(f"no such order or landing: {order}, {landing}")

    def last_error(self):
        """The diagnosis of the latest launch that failed."""
        return self.library.birnn_emulator_last_error().decode()


def run(
    executable,
    *arguments,
    order="shuffle",
    landing="random",
    seed=1,
    approximate=False,
    planted_defect=0,
):
    """Runs a program under one schedule; the completed process, its two outputs in stdout."""
    environment = dict(os.environ, **SANITIZER_OPTIONS)
    environment.update(
        EMULATOR_ORDER=order,
        EMULATOR_LANDING=landing,
        EMULATOR_SEED=str(seed),
        EMULATOR_APPROXIMATE="1" if approximate else "0",
        PLANTED_DEFECT=str(planted_defect),
    )
    return subprocess.run(
        [str(executable), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", nargs="+")
    parser.add_argument("--variant", choices=VARIANTS, default="plain")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--front-end", choices=FRONT_ENDS, default=front_end)
    parser.add_argument("--architecture", default=architecture, help="of the PTX: 90a")
    parser.add_argument("-D", dest="defines", action="append", default=[])
    arguments = parser.parse_args()
    globals().update(front_end=arguments.front_end, architecture=arguments.architecture)
    try:
        if arguments.shared:
            print(shared_library(*arguments.source, defines=arguments.defines))
        else:
            print(program(arguments.source[0], arguments.variant, arguments.defines))
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
