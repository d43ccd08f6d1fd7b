"""Build the images with podman (or docker): `make images`.

Packages are fetched here, by the lock files and with their hashes, and copied into the build,
which then needs no network for them. Where the base image can be pulled, it is; where it cannot,
one like it is made with debootstrap, from the archive that this machine's own apt uses.

    build.py [--engine podman] [TARGET …]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "wheels"
BASE = "python:3.11-slim"
# Image → the packages in it, and the lock file that they come from.
TARGETS = {
    "blindai-server-sim": ("server", "vm.txt"),
    "blindai-server": ("server", "vm.txt"),
    "blindai-client-demo": ("demo", "client-demo.txt"),
}
_PACKAGES = "python3,python3-venv,ca-certificates"


def main() -> None:
    """Build what the command line names, or everything."""
    parser = argparse.ArgumentParser(description="Build the container images.")
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--engine", default=shutil.which("podman") or "docker")
    options = parser.parse_args()
    fetch_packages(dict(TARGETS[target] for target in options.targets))
    ensure_base(options.engine)
    for target in options.targets:
        build(options.engine, target)
        size = output(options.engine, "image", "inspect", "--format", "{{.Size}}", target)
        print(f"{target}: {int(size) / 1e6:.0f} MB", flush=True)


def build(engine: str, target: str) -> None:
    """Build one image. The same files give the same image but for what apt brings."""
    command = [engine, "build", "--quiet", "--target", target, "--tag", target]
    if "podman" in engine:
        # Docker's format, because OCI's has no health check; no dates of today in it.
        command += ["--format", "docker", "--timestamp", "0"]
    run(*command, "--file", Path(__file__).with_name("Containerfile"), ROOT)


def fetch_packages(locks: dict[str, str]) -> None:
    """Fill build/wheels by lock files, folder → file, and add the package itself."""
    environment = ROOT / "build" / "venv"
    pip = environment / "bin" / "pip"
    if not pip.exists():
        run(sys.executable, "-m", "venv", environment)
    run(pip, "install", "--quiet", "--require-hashes", "-r", ROOT / "requirements" / "build.txt")
    own = WHEELS / "own"
    shutil.rmtree(own, ignore_errors=True)
    run(pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", own, ROOT)
    for name, lock in locks.items():
        folder, path = WHEELS / name, ROOT / "requirements" / lock
        stamp = folder / ".lock"
        if not stamp.exists() or stamp.read_text() != path.read_text():
            shutil.rmtree(folder, ignore_errors=True)
            run(pip, "wheel", "-qqq", "--require-hashes", "--wheel-dir", folder, "-r", path)
            stamp.write_text(path.read_text())
        for old in folder.glob("blindai-*.whl"):
            old.unlink()
        for wheel in own.glob("*.whl"):
            shutil.copy(wheel, folder)


def ensure_base(engine: str) -> None:
    """Have the base image: there already, pulled, or made here."""
    if succeeds(engine, "image", "exists" if "podman" in engine else "inspect", BASE):
        return
    if succeeds(engine, "pull", "--quiet", BASE):
        return
    print(f"{BASE} cannot be pulled: making one like it with debootstrap", flush=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        root = Path(folder) / "root"
        run(
            "debootstrap",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            "bookworm",
            root,
            archive(),
        )
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
            shutil.rmtree(root / waste, ignore_errors=True)
            (root / waste).mkdir(parents=True)
        (root / "var/cache/apt/archives/partial").mkdir(parents=True)
        (root / "var/lib/apt/lists/partial").mkdir(parents=True)
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run([engine, "import", "-", BASE], stdin=tar.stdout, check=True)
        if tar.wait():
            sys.exit("tar failed")


def archive() -> str:
    """Return the address that this machine's apt takes Debian from."""
    sources = Path("/etc/apt")
    texts = [path.read_text() for path in (*sources.rglob("*.sources"), *sources.rglob("*.list"))]
    for text in texts:
        found = re.search(
            r"^(?:URIs:|deb(?: \[[^]]*\])?) *(\S+/debian)/?(?:\s|$)", text, re.MULTILINE
        )
        if found:
            return found[1]
    sys.exit("expected an archive of Debian in /etc/apt, found none")


def succeeds(*command: object) -> bool:
    """Return whether a command does."""
    return (
        subprocess.run(
            [str(part) for part in command], capture_output=True, env=environment(), check=False
        ).returncode
        == 0
    )


def run(*command: object) -> None:
    """Run a command; stop with its exit code if it fails."""
    done = subprocess.run([str(part) for part in command], env=environment(), check=False)
    if done.returncode:
        sys.exit(f"{command[0]} {command[1]} failed with {done.returncode}")


def output(*command: object) -> str:
    """Return what a command prints."""
    return subprocess.run(
        [str(part) for part in command],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def environment() -> dict[str, str]:
    """Return the environment; podman gets settings that also work without cgroups v2."""
    settings = Path(__file__).with_name("containers.conf")
    own = {} if "CONTAINERS_CONF" in os.environ else {"CONTAINERS_CONF": str(settings)}
    return os.environ | own


if __name__ == "__main__":
    main()
