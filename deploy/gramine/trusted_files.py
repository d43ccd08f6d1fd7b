"""List every file that the enclave may read, with its SHA-256: from the lock file to the manifest.

The list is made of what the hashed lock file pins, never of what happens to lie in a folder:

- each package of the lock has to be installed in the locked version, each of its files has to
  have the hash that its RECORD names, and only files of a RECORD are listed;
- the interpreter and its standard library;
- the shared libraries that these files are linked with, as the dynamic linker finds them.

    trusted_files.py --python VENV/bin/python --lock requirements/server.txt > trusted.json

Prints JSON: {"python": …, "folders": […], "trusted_files": [{"path": …, "sha256": …}, …]}.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from typing import NamedTuple

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)
_LINKED = re.compile(r"(?:=> )?(/\S+) \(0x")
# Of the standard library: what no server needs, and what would let it start a compiler.
_LEFT_OUT = re.compile(r"/(test|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-[^/]*)/")
_QUESTION = (
    "import json, sys, sysconfig; paths = sysconfig.get_paths();"
    "print(json.dumps({'base': sys._base_executable, 'prefix': sys.prefix,"
    "'stdlib': paths['stdlib'], 'packages': paths['purelib'], 'version': sys.version_info[:3]}))"
)


class NotAsLockedError(Exception):
    """What is installed is not what the lock file says."""


class Files(NamedTuple):
    """What the enclave may read."""

    python: str
    folders: list[str]
    hashes: dict[str, str]

    def to_json(self) -> str:
        """Return what the manifest's template takes."""
        listed = [{"path": path, "sha256": digest} for path, digest in sorted(self.hashes.items())]
        shown = {"python": self.python, "folders": self.folders, "trusted_files": listed}
        return json.dumps(shown, indent=1)


def collect(python: Path, lock: Path, extra: tuple[str, ...] = ("blindai",)) -> Files:
    """Return every file that a server in this environment may read.

    Args:
        python: The environment's interpreter.
        lock: The hashed requirements file that it was installed from.
        extra: Packages beside those of the lock file.

    Raises:
        NotAsLockedError: A package is missing, has another version, or a changed file.
    """
    answer = subprocess.run([python, "-I", "-c", _QUESTION], capture_output=True, check=True)
    facts = json.loads(answer.stdout)
    packages, stdlib = Path(facts["packages"]), Path(facts["stdlib"])
    hashes: dict[str, str] = {}
    for name, versions in (pinned(lock.read_text()) | {each: set() for each in extra}).items():
        hashes |= package_files(packages, name, versions)
    for path in (Path(facts["base"]).resolve(), Path(facts["prefix"]) / "pyvenv.cfg"):
        hashes[str(path)] = sha256(path)
    for path in sorted(stdlib.rglob("*")):
        inside = "site-packages" in path.parts or "dist-packages" in path.parts
        if path.is_file() and path.suffix != ".pyc" and not inside and not _left_out(path):
            hashes[str(path.resolve())] = sha256(path)
    for path in linked(hashes):
        hashes.setdefault(path, sha256(Path(path)))
    folders = [facts["prefix"], str(stdlib), str(Path(facts["base"]).resolve().parent)]
    return Files(str(python), sorted(set(folders)), hashes)


def pinned(lock: str) -> dict[str, set[str]]:
    """Return package → versions of a requirements file: several where markers choose one."""
    found: dict[str, set[str]] = {}
    for name, version in _PINNED.findall(lock):
        found.setdefault(_normal(name), set()).add(version)
    if not found:
        msg = "expected a requirements file that pins packages with ==, came one without"
        raise NotAsLockedError(msg)
    return found


def package_files(packages: Path, name: str, versions: set[str]) -> dict[str, str]:
    """Return the files of an installed package, each with the hash that its RECORD names.

    Raises:
        NotAsLockedError: It is not there in one of these versions, or a file was changed.
    """
    found = _distribution(packages, name)
    if versions and found.version not in versions:
        msg = f"{name}: expected version {' or '.join(sorted(versions))}, came {found.version}"
        raise NotAsLockedError(msg)
    hashes = {}
    for entry, digest, _size in csv.reader((found.read_text("RECORD") or "").splitlines()):
        path = (packages / entry).resolve()
        if path.suffix == ".pyc" or not path.is_relative_to(packages):
            continue  # bytecode is not read, and commands are not run, inside the enclave
        if not path.is_file():
            msg = f"{name}: its RECORD names {entry}, which is not there"
            raise NotAsLockedError(msg)
        actual = sha256(path)
        if digest and digest != _record_digest(actual):
            msg = f"{name}: {entry} is not the file that was installed"
            raise NotAsLockedError(msg)
        hashes[str(path)] = actual
    return hashes


def linked(paths: dict[str, str]) -> list[str]:
    """Return the shared libraries outside of `paths` that files in it are linked with."""
    objects = [path for path in paths if _is_elf(path)]
    found: set[str] = set()
    for path in objects:
        done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        found |= {str(Path(each).resolve()) for each in _LINKED.findall(done.stdout)}
    return sorted(found - set(paths))


def sha256(path: Path) -> str:
    """Return SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _distribution(packages: Path, name: str) -> Distribution:
    for folder in packages.glob("*.dist-info"):
        found = PathDistribution(folder)
        if _normal(found.metadata["Name"]) == name:
            return found
    msg = f"{name}: in the lock file, but not installed in {packages}"
    raise NotAsLockedError(msg)


def _left_out(path: Path) -> bool:
    return "__pycache__" in path.parts or _LEFT_OUT.search(f"{path}") is not None


def _record_digest(hexadecimal: str) -> str:
    raw = base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).decode()
    return f"sha256={raw.rstrip('=')}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_elf(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) == b"\x7fELF"


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(description="List what the enclave may read.")
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    options = parser.parse_args()
    try:
        print(collect(options.python, options.lock).to_json())
    except NotAsLockedError as error:
        sys.exit(f"not as locked: {error}")


if __name__ == "__main__":
    main()
