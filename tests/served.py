"""A real `blindai serve` in a process of its own, confined as it is for everybody.

It has the attributes that `tests.server.talk` asks for, so it is spoken to like a server in a
thread. Nothing outside it knows its memory: what is lost when it is killed is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blindai.confinement.environment import clean_environment

START_SECONDS = 60.0
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended.

    Attributes:
        status: Of its process; negative: the signal that killed it.
        seconds: From the signal to the end.
        log: What it wrote on standard error, line by line.
    """

    status: int
    seconds: float
    log: list[str]

    def events(self) -> list[dict]:
        """Return the events of the log; what is no event is `{"event": "?", "line": …}`."""
        found = []
        for line in self.log:
            try:
                found.append(dict(json.loads(line)))
            except ValueError:
                found.append({"event": "?", "line": line})
        return found


@dataclass
class Served:
    """A server that was started; of the addresses nothing is known before `wait_until_ready`.

    Attributes:
        process: The server's.
        ready: What it said when it was.
    """

    process: subprocess.Popen
    log: IO[bytes]
    ready: dict = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Host and port, attested."""
        return self.ready["attested"]

    @property
    def public_address(self) -> str:
        """Host and port, unattested."""
        return self.ready["public"]

    @property
    def grpc_address(self) -> str:
        """Host and port of gRPC, attested."""
        return self.ready["grpc"]

    @property
    def token(self) -> str:
        """For uploads and deletions."""
        return self.ready["token"]

    @property
    def rss(self) -> int:
        """Resident bytes of the server's process, without those that try models."""
        return self.status("VmRSS") * 1024

    def status(self, name: str) -> int:
        """Return a number of /proc/PID/status."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split(f"\n{name}:", 1)[1].split(maxsplit=1)[0])

    @property
    def files(self) -> int:
        """Open file descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def wait_until_ready(self) -> Served:
        """Return when it serves.

        Raises:
            RuntimeError: It ended instead; what it said is in the message.
        """
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join(self.wait().log))
        self.ready = json.loads(line)
        return self

    def kill(self) -> Ended:
        """End it as a power cut does: without a word, and its children with it."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.wait(began)

    def stop(self) -> Ended:
        """End it as an operator does, and wait for what it still has to do."""
        began = time.monotonic()
        self.process.terminate()
        return self.wait(began)

    def wait(self, began: float | None = None) -> Ended:
        """Return how it ended, when it has."""
        began = time.monotonic() if began is None else began
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        self.log.close()
        return Ended(status, time.monotonic() - began, lines)


def launch(*arguments: object, prefix: tuple[str, ...] = (), log: Path | None = None) -> Served:
    """Start `blindai serve` in simulation, on free ports; see `Served.wait_until_ready`.

    Args:
        arguments: Of the command, beside those.
        prefix: What Python is started by, in a clean environment; it must isolate itself (-I), or
            the server starts again without it.
        log: Where standard error goes; in memory otherwise.
    """
    command = [*(prefix or (sys.executable,)), "-m", "blindai", "serve", "--json"]
    command += ["--platform", "simulation", "--no-fetch-endorsements"]
    command += ["--port", "0", "--public-port", "0", "--grpc-port", "0"]
    descriptor = os.memfd_create("log") if log is None else os.open(log, os.O_RDWR | os.O_CREAT)
    file = os.fdopen(descriptor, "rb")
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=file,
        env=clean_environment(os.environ) if prefix else None,
        start_new_session=True,  # so that its children can be killed with it
    )
    return Served(process, file)


@contextlib.contextmanager
def serving(*arguments: object, **more):
    """Yield a server that serves; killed at the end if it still runs."""
    served = launch(*arguments, **more)
    try:
        yield served.wait_until_ready()
    finally:
        if not served.log.closed:  # nobody has seen it end
            served.kill()
