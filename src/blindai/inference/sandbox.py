"""Load a stranger's model in another process first, so that it is that one which suffers.

Always true: a model that crashes, does not end or asks for more memory than it may have is
refused, and this process has not touched it. See `blindai.inference.sandboxed` for what the
other process may do: almost nothing.

It must be started before the process gives up starting programs, and before it has secrets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from blindai import errors
from blindai.errors import (
    ConfigurationError,
    InferenceError,
    InvalidModel,
    LimitExceeded,
    Overloaded,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from blindai.inference.options import ModelOptions

_MAX_MESSAGE: Final = 16384
_START_SECONDS: Final = 60.0
# The other side gives up by itself: this is for one that hangs.
_EXTRA_SECONDS: Final = 10.0
_PROGRAM: Final = (
    "import sys; from blindai.inference.sandboxed import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLimits:
    """What a model may use while it is tried.

    Attributes:
        seconds: To parse it, to load it and to run it once, in each of its forms.
        memory: Bytes, beside eight times the size of its file.
    """

    seconds: float = 120.0
    memory: int = _GIB

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.memory > 0):
            msg = f"expected limits above 0, came {self.seconds} s and {self.memory} bytes"
            raise ConfigurationError(msg)

    def memory_for(self, size: int) -> int:
        """Return how many bytes a model with a file of `size` bytes may use."""
        return self.memory + 8 * size


class Sandbox:
    """Tries models, one at a time; safe to use from several threads.

    Args:
        limits: Of a model that is tried.
        threads: Threads of a run; 0: one for each core.

    Raises:
        ConfigurationError: The process cannot be started.
    """

    def __init__(self, limits: TrialLimits | None = None, *, threads: int = 0) -> None:
        self._limits = limits or TrialLimits()
        self._threads = threads
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno()), str(os.getpid())]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={"OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError as error:
                self._socket.close()
                msg = f"the process that tries models cannot be started: {error.strerror}"
                raise ConfigurationError(msg) from error
        try:
            self._socket.settimeout(_START_SECONDS)
            started = self._socket.recv(_MAX_MESSAGE)
        except OSError:
            started = b""
        if not started:
            self.close()
            msg = "the process that tries models did not start"
            raise ConfigurationError(msg)

    def close(self) -> None:
        """End the process, and whatever model it is at."""
        self._socket.close()
        try:
            self._process.wait(_EXTRA_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check(self, path: Path, options: ModelOptions) -> int:
        """Load a model over there, run it once, and return how many bytes of memory that took.

        Args:
            path: The file.
            options: How it is to run.

        Raises:
            InvalidModel: No engine can load it; it crashed; or it did not end in time.
            LimitExceeded: It needs more memory than a model of its size may have.
            Overloaded: The other process is gone.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            memory = self._limits.memory_for(os.fstat(descriptor).st_size)
            request = {
                "options": options.dump(),
                "threads": self._threads,
                "memory": memory,
                "seconds": self._limits.seconds,
            }
            answer = self._ask(json.dumps(request).encode(), descriptor)
        finally:
            os.close(descriptor)
        self._judge(answer, memory)
        return int(answer["memory"])

    def _ask(self, request: bytes, descriptor: int) -> dict[str, Any]:
        with self._lock:
            try:
                self._socket.settimeout(self._limits.seconds + _EXTRA_SECONDS)
                socket.send_fds(self._socket, [request], [descriptor])
                answer = self._socket.recv(_MAX_MESSAGE)
            except OSError:
                answer = b""
            if not answer:
                # An answer that comes late would be taken for that of the next model.
                self._socket.close()
                msg = "no model can be loaded: the process that tries them has ended; restart"
                raise Overloaded(msg, retry_after=30.0)
        parsed = json.loads(answer)
        return parsed if isinstance(parsed, dict) else {}

    def _judge(self, answer: dict[str, Any], memory: int) -> None:
        """Refuse a model for what became of it; do nothing if all went well."""
        outcome = answer.get("outcome")
        if outcome == "slow":
            msg = (
                f"expected a model that loads within {self._limits.seconds:g} seconds, "
                "came one that does not"
            )
            raise InvalidModel(msg)
        if outcome != "said":
            msg = "the model crashed the process in which it was tried: it is not loaded here"
            raise InvalidModel(msg)
        kind, reason = _parse_words(answer.get("said"))
        if kind == "ok":
            return
        if kind in {"memory", "Overloaded"}:
            msg = (
                f"expected a model that loads within {memory} bytes of memory, which is what one "
                "of its size may use, came one that needs more"
            )
            raise LimitExceeded(msg)
        error = getattr(errors, kind, None) if kind in errors.__all__ else None
        if isinstance(error, type) and issubclass(error, InferenceError):
            raise error(reason)
        msg = f"the model could not be tried: {reason}"
        raise InvalidModel(msg)


def _parse_words(said: object) -> tuple[str, str]:
    """Return the kind of outcome and the reason that a child gave; a stranger's words."""
    try:
        words = json.loads(said) if isinstance(said, str) else None
    except ValueError:
        words = None
    if not isinstance(words, dict):
        return "crashed", "it crashed"
    kind, reason = words.get("kind"), words.get("error")
    if not isinstance(kind, str) or not isinstance(reason, str):
        return "crashed", "it crashed"
    return kind, "".join(c if c.isprintable() else " " for c in reason[:1000])
