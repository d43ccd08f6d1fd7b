"""Build the wheel twice and prove that both are the same to the bit: `make wheel`.

It is built from what is committed, not from what lies around: two copies of HEAD, in folders of
different names, under a different umask, time zone, locale and hash seed, with the build tools of
the hashed requirements/build.txt. Beside it come SHA256SUMS and an in-toto statement that says from
which commit and with which tools it was made.

    wheel.py --python PROGRAM [--output FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What must not show in a wheel, different for each of the two builds.
CONDITIONS = (
    {"umask": 0o022, "TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
    {"umask": 0o077, "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"},
)


def main() -> None:
    """Build, compare, and write to the output folder."""
    parser = argparse.ArgumentParser(description="Build a reproducible wheel.")
    parser.add_argument("--python", type=Path, required=True, help="has what build.txt locks")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    commit, epoch = git("log", "-1", "--format=%H %ct").split()
    if changed := git("status", "--porcelain"):
        print(f"built from {commit[:12]}, without {len(changed.splitlines())} uncommitted changes")
    with tempfile.TemporaryDirectory() as folder:
        wheels = [
            build(options.python, Path(folder) / ("build" * number), epoch, conditions)
            for number, conditions in enumerate(CONDITIONS, 1)
        ]
        digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
        if digests[0] != digests[1] or wheels[0].name != wheels[1].name:
            sys.exit(f"NOT REPRODUCIBLE: {wheels[0].name} {digests[0]}, then {digests[1]}")
        options.output.mkdir(parents=True, exist_ok=True)
        wheel = options.output / wheels[0].name
        shutil.copyfile(wheels[0], wheel)
    (options.output / "SHA256SUMS").write_text(f"{digests[0]}  {wheel.name}\n")
    statement = describe(wheel.name, digests[0], commit, epoch, options.python)
    target = wheel.with_name(wheel.name + ".intoto.json")
    target.write_text(json.dumps(statement, indent=1, sort_keys=True) + "\n")
    print(f"{digests[0]}  {wheel}\nbuilt twice, identical; from commit {commit}")


def build(python: Path, folder: Path, epoch: str, conditions: dict) -> Path:
    """Build the wheel of HEAD in a folder of its own, and return its path."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", "--format=tar", "HEAD", "src", "pyproject.toml",
         "README.md", "LICENSE"],
        check=True, capture_output=True,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    umask = conditions["umask"]
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    variables = {name: value for name, value in conditions.items() if name != "umask"}
    subprocess.run(
        [python.absolute(), "-P", "-m", "hatchling", "build", "--target", "wheel"],
        check=True, cwd=folder, umask=umask, stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": epoch, **variables},
    )  # fmt: skip
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def describe(name: str, digest: str, commit: str, epoch: str, python: Path) -> dict:
    """Return an in-toto statement: what this was made from. It is for whoever releases to sign."""
    lock = ROOT / "requirements" / "build.txt"
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "deploy/release/wheel.py",
                "externalParameters": {"SOURCE_DATE_EPOCH": epoch},
                "internalParameters": {"python": version.stdout.strip()},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    {
                        "name": "requirements/build.txt",
                        "digest": {"sha256": hashlib.sha256(lock.read_bytes()).hexdigest()},
                    },
                ],
            },
            "runDetails": {"builder": {"id": "make wheel"}},
        },
    }


def git(*arguments: str) -> str:
    """Return what git says."""
    done = subprocess.run(
        ["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
