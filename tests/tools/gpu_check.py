"""Everything that only a machine with a GPU can show, in one command: ``make gpu-check``.

What teaches most comes first. The device, the extension's build and, while that takes the cores,
programs that need no extension; then the benchmarks, alone on the device; then tests and sanitizer,
side by side. Each is a process of its own with a time cap; one that fails or hangs does not stop
the rest. What they find lies in one flat folder, written as it comes:

    log.txt            all output, the part's name before each line
    device.json        device, versions
    conformance.jsonl  cases of the programs, tests.jsonl the tests: a line each as they end
    micro.json         the chip's latencies
    cuda.json          the benchmarks' preset quick, for `python -m benchmarks report`
    extension.tar.gz   what was built: --extension takes it the next time, for the same sources
    summary.json       what became of each part; rewritten whenever that changes

Exit status: 0 if all parts that ran are well, 1 if some failed, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_device import device
from gpu_runner import ROOT, Part, run_parts

DEFAULT_OUT = ROOT / "build" / "gpu-check"
NO_GPU = "gpu-check needs a GPU, and here there is none"


def part(
    name: str, seconds: float, after: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> Part:
    command = (sys.executable, str(Path(__file__).resolve()), "--child", name, "OUT")
    return Part(name, seconds, command, after, needs)


# What is timed shares the device with nothing: micro follows conformance, cuda both. The build
# needs the cores alone.
PARTS = [
    part("device", 40),
    part("build", 120),
    part("conformance", 60, after=("device",), needs=("device",)),
    part("micro", 40, after=("device", "conformance"), needs=("device",)),
    part("cuda", 130, after=("build", "micro"), needs=("build",)),
    part("tests", 110, after=("cuda", "build"), needs=("build",)),
    part("sanitizer", 60, after=("cuda",)),
]
# Only where they are asked for.
OTHER_PARTS = [part("sanitized-layers", 120, after=("tests", "build"), needs=("build",))]
CAPS = {one.name: one.seconds for one in [*PARTS, *OTHER_PARTS]}
OUTPUTS = (
    "log.txt",
    "summary.json",
    "device.json",
    "conformance.jsonl",
    "tests.jsonl",
    "micro.json",
    "cuda.json",
    "extension.tar.gz",
)


def find_commit() -> str | None:
    """The commit of the tree, with a mark if the tree differs from it; None without history."""
    try:
        command = ["git", "-C", str(ROOT)]
        head = subprocess.check_output(
            [*command, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        changes = subprocess.check_output(
            [*command, "status", "--porcelain", "--untracked-files=no"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + (" with changes" if changes.strip() else "")


def chosen_parts(text: str) -> list[Part]:
    """Parts by name, separated by commas or spaces, in the order in which they always run."""
    names = text.replace(",", " ").split()
    every = [*PARTS, *OTHER_PARTS]
    valid = [one.name for one in every]
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no part named {', '.join(unknown)}; the parts are {', '.join(valid)}"
        )
    return [one for one in every if one.name in names] if names else PARTS


def child(name: str, out: Path | None) -> int:
    import gpu_parts

    sys.path.insert(0, str(ROOT))
    if out is None:
        return gpu_parts.layer_calls()
    if name == "tests":
        return gpu_parts.part_tests(out, CAPS[name])
    return gpu_parts.CHILDREN[name](out)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--child"]:
        return child(arguments[1], Path(arguments[2]) if len(arguments) > 2 else None)
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results")
    names = " ".join(CAPS)
    parser.add_argument("--parts", type=chosen_parts, default=PARTS, help=f"some of {names}")
    parser.add_argument("--commit", default=None, help="the commit, where there is no git history")
    parser.add_argument("--extension", default="", help="extension.tar.gz of an earlier run")
    options = parser.parse_args(arguments)
    if not device().is_there():
        print(NO_GPU + ".", file=sys.stderr)
        return 2
    if options.extension:
        from gpu_parts import GIVEN_EXTENSION

        os.environ[GIVEN_EXTENSION] = str(Path(options.extension).resolve())
    out = options.out.resolve()
    return run_parts(options.parts, out, options.commit or find_commit(), OUTPUTS)


if __name__ == "__main__":
    sys.exit(main())
