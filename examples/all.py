"""`make examples`: set up each example, prepare it, run it against a server, say what it proved.

Every example has a virtual environment of its own, `examples/NAME/.venv`, with the packages of its
`requirements.txt` and `files.txt`, hashes checked, and the client from this source tree. The server
is the project's own. Names on the command line select examples; `--gallery` keeps what they drew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent
SOURCE = EXAMPLES.parent / "src"


def main() -> int:
    """Run the examples that are named, or all of them; return the exit code of their tests."""
    known = sorted(path.parent.name for path in EXAMPLES.glob("*/prepare.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(known)}")
    parser.add_argument("--gallery", action="store_true", help="keep pictures and sounds")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = arguments.names or known
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in names:
        began = time.monotonic()
        prepare(EXAMPLES / name, install(EXAMPLES / name), environment)
        print(f"{name}: prepared in {time.monotonic() - began:.0f} s", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=600"]
    command += [str(EXAMPLES / name) for name in names]
    code = subprocess.run(command, check=False, env=environment).returncode
    if code == 0:
        report(names, gallery=arguments.gallery)
    return code


def install(folder: Path) -> Path:
    """Return the interpreter of the example's environment, made anew if its lock is newer."""
    venv = folder / ".venv"
    python = venv / "bin" / "python"
    done = venv / ".done"
    if is_newer(done, locks(folder)):
        return python
    uv = shutil.which("uv") or shutil.which("uv", path=sysconfig.get_path("scripts"))
    if uv:
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv]
        fill = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        make = [sys.executable, "-m", "venv", "--clear", venv]
        fill = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(make, check=True)
    for lock in locks(folder):
        # A lock holds all that is needed; packages that are here for their files need nothing.
        subprocess.run([*fill, "--no-deps", "--require-hashes", "-r", lock], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "blindai-source.pth").write_text(f"{SOURCE}\n")
    done.touch()
    return python


def locks(folder: Path) -> list[Path]:
    """Return the lock files of an example: what it needs, and packages used for their files."""
    return sorted([folder / "requirements.txt", *folder.glob("files.txt")])


def is_newer(done: Path, made_of: list[Path]) -> bool:
    """Whether `done` was made after all that it was made of."""
    return done.exists() and all(done.stat().st_mtime > path.stat().st_mtime for path in made_of)


def prepare(folder: Path, python: Path, environment: dict[str, str]) -> None:
    """Run the example's `prepare.py`, unless it did its work and nothing changed since."""
    script, done = folder / "prepare.py", folder / "build" / ".prepared"
    if is_newer(done, [script, *locks(folder)]):
        return
    shutil.rmtree(folder / "build", ignore_errors=True)
    subprocess.run([python, script], check=True, env=environment)
    done.touch()


def report(names: list[str], *, gallery: bool) -> None:
    """Print what each example's run wrote down, which its test has checked."""
    print("\nproved, in simulation, each after verifying the server and pinning the weights:")
    for name in names:
        build = EXAMPLES / name / "build"
        result = json.loads((build / "result.json").read_text())
        print(f"- {name}: {result['proved']}")
        if gallery:
            for shown in build.glob("shown.*"):
                shutil.copy(shown, EXAMPLES / name / shown.name)


if __name__ == "__main__":
    sys.exit(main())
