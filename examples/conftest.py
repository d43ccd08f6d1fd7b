"""What the examples' tests start: a server as its `serve` file says, and the example's client.

The tests run in the project's own environment, the clients in the example's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = re.compile(r"ready attested=(\S+)")
RUN_SECONDS = 300
REFUSED = "AppraisalError: the policy does not accept this model"
NOT_TRUSTED = 1  # an uncaught AttestationError ends a Python program so


@dataclass(frozen=True)
class Example:
    """One example that was prepared, and a server for it."""

    folder: Path
    address: str

    def run(self, policy: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the example's client, with its own policy or another one."""
        command = [self.folder / ".venv/bin/python", self.folder / "run.py"]
        command += ["--server", self.address]
        command += [] if policy is None else ["--policy", policy]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=RUN_SECONDS
        )

    def refuses_other_weights(self) -> bool:
        """Whether the client sends nothing when its policy pins other weights."""
        build = self.folder / "build"
        own = self.folder / "policy.toml"
        text = (own if own.exists() else build / "policy.toml").read_text()
        other = build / "other-weights.toml"
        other.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + 64 * "0", text))
        ran = self.run(other)
        return ran.returncode == NOT_TRUSTED and REFUSED in ran.stderr


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Iterator[Example]:
    """Serve the example whose test asks."""
    folder = request.path.parent
    if not (folder / ".venv/.done").exists() or not (folder / "build").exists():
        pytest.skip(f"not prepared: make examples NAMES={folder.name}")
    with serving(folder) as address:
        yield Example(folder, address)


@pytest.fixture(scope="module")
def result(example: Example) -> dict[str, Any]:
    """Run the client and return what it wrote down."""
    for old in (example.folder / "build").glob("shown.*"):
        old.unlink()
    ran = example.run()
    if ran.returncode:
        pytest.fail(f"run.py ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    found: dict[str, Any] = json.loads((example.folder / "build/result.json").read_text())
    return found


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run the example's `serve` on free ports and yield the attested one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [folder / "serve", "--port", "0", "--public-port", "0", "--no-grpc"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path},
    ) as process:
        try:
            for line in process.stdout or ():
                if ready := READY.search(line):
                    yield ready[1]
                    break
            else:
                pytest.fail(f"the server stopped before it was ready (exit {process.wait()})")
        finally:
            process.terminate()
