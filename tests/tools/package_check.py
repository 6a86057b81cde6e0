"""Build the source archive and the wheel, look into both, and test the wheel in an environment
that holds nothing else.

    python tests/tools/package_check.py [--out FOLDER] [--torch REQUIREMENTS]

The wheel is built from the unpacked source archive, so the archive is shown to be complete. Then a
fresh virtual environment gets torch, the wheel and pytest, and runs tests that were unpacked from
the archive. Needs a git checkout (what git tracks is what the archive must hold), the packages of
requirements/build.txt and dev.txt, and pip's access to torch.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    f"layers/test_{name}.py"
    for name in ("layers", "lengths", "input_forms", "module", "autocast", "errors", "convert")
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the packages")
    parser.add_argument(
        "--torch", type=Path, default=ROOT / "requirements" / "torch-cpu.txt", help="which torch"
    )
    options = parser.parse_args()
    in_sdist, in_wheel = expected_in_sdist(), expected_in_wheel()
    sdist, wheel = build(options.out.resolve())
    problems = differences(names_in_sdist(sdist), in_sdist, sdist.name)
    problems += differences(names_in_wheel(wheel), in_wheel, wheel.name)
    if problems:
        sys.exit("\n".join(problems))
    with tempfile.TemporaryDirectory() as folder:
        install_and_test(sdist, wheel, options.torch.resolve(), Path(folder))
    print(f"{sdist}\n{wheel}")
    return 0


def run(*command: str | Path, cwd: Path | None = None) -> None:
    if subprocess.run(command, cwd=cwd).returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def build(out: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel built from it."""
    shutil.rmtree(out, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def differences(found: set[str], expected: set[str], where: str) -> list[str]:
    missing = [f"{where}: {name} is missing" for name in sorted(expected - found)]
    return missing + [f"{where}: {name} should not be there" for name in sorted(found - expected)]


def files_in_git() -> Iterable[str]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.rstrip("\0").split("\0")


def expected_in_sdist() -> set[str]:
    """What git tracks but for hidden files and folders."""
    return {name for name in files_in_git() if not any(p[0] == "." for p in Path(name).parts)}


def names_in_sdist(sdist: Path) -> set[str]:
    """The files of the archive, but for the metadata that setuptools adds."""
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}
    added = ("PKG-INFO", "setup.cfg")
    return {str(n) for n in names if str(n) not in added and n.parts[0] != "birnn_cuda.egg-info"}


def expected_in_wheel() -> set[str]:
    package = {n for n in files_in_git() if n.startswith("birnn_cuda/")}
    return package | {"birnn_cuda/_C.so", "LICENSE"}


def names_in_wheel(wheel: Path) -> set[str]:
    """The files of the wheel, but for its metadata; the extension without its platform's suffix."""
    names = set()
    for name in zipfile.ZipFile(wheel).namelist():
        if name.startswith("birnn_cuda/_C.") and name.endswith(".so"):
            name = "birnn_cuda/_C.so"
        if ".dist-info/" not in name:
            names.add(name)
        elif name.endswith("/LICENSE"):
            names.add("LICENSE")
    return names


def install_and_test(sdist: Path, wheel: Path, torch: Path, folder: Path) -> None:
    """In an environment of its own, and from the archive's tests: nothing of the checkout."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    requirements = ["-r", torch, "-r", unpacked / "requirements" / "test.txt"]
    run(*pip, "--progress-bar", "off", *requirements, wheel, cwd=folder)
    # -P and the folder: `birnn_cuda` must be the installed one, not the archive's sources.
    tests = unpacked / "tests"
    run(python, "-P", "-m", "birnn_cuda", cwd=tests)
    run(python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, cwd=tests)


if __name__ == "__main__":
    raise SystemExit(main())
