"""Mutated PTX: whatever the text, the interpreter answers with a message, not with a crash.

    python tests/emulator/fuzz_ptx.py --minutes 10        (make fuzz-ptx MINUTES=10)

mutates what nvcc makes of the example, the conformance cases and the planted defects, decodes it,
and runs what decodes, with the sanitizers on the interpreter (ptx/fuzz.cpp). Of what crashed it
prints the seed, and the text's place.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

import build

ROOT = build.ROOT
SOURCES = (
    build.PTX / "example.cu",
    *(ROOT / "tests" / "kernels" / f"{name}.cu" for name in ("conformance", "defects")),
)
TEXTS = 2000  # of a seed


def fuzz(texts: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Of one seed. Where it crashes, the text that it was at is in build.CACHE / "fuzz.ptx"."""
    corpus = [build.ptx_text(source) for source in SOURCES]
    environment = dict(os.environ, **build.SANITIZER_OPTIONS)
    environment["PTX_FUZZ_LAST"] = str(build.CACHE / "fuzz.ptx")
    command = [str(build.ptx_fuzzer()), str(texts), str(seed), *map(str, corpus)]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the first (default: random)")
    arguments = parser.parse_args()
    seed = arguments.seed
    if seed is None:
        seed = random.SystemRandom().randrange(2**31)
    end = time.monotonic() + 60 * arguments.minutes
    done = 0
    while time.monotonic() < end:
        result = fuzz(TEXTS, seed)
        if result.returncode != 0:
            place = build.CACHE / "fuzz.ptx"
            print(f"{result.stdout[-4000:]}\n--seed {seed} failed, at the text in {place}")
            return 1
        done += TEXTS
        left = max(end - time.monotonic(), 0) / 60
        print(f"--seed {seed}: {result.stdout.strip()}; {left:.1f} minutes left", flush=True)
        seed += 1
    print(f"{done} texts, no crash")
    return 0


if __name__ == "__main__":
    sys.exit(main())
