"""The process in which a stranger's model is parsed, loaded and run for the first time.

`serve` is a fork server: it holds no keys and no one's data, was started before there were
any, and forks for each model a child that gives up everything but that one file: no network,
no other file to read, none to write, no program, a limit of memory and of time. Whatever
happens to the child, the fork server says so and waits for the next.

Always true: who asks gets exactly one answer for each request, whatever the child does; what
the child says is bounded, and counts as a stranger's words.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy.random  # noqa: F401 - numpy imports it when it is used, which is too late

from blindai.confinement.kernel import die_with_parent, forbid_dumps, forbid_new_privileges
from blindai.confinement.landlock import READ, WRITE, Allowed, landlock_version, restrict_files
from blindai.confinement.seccomp import (
    FILES,
    MEMORY,
    PROCESS,
    WAITING,
    model_rules,
    restrict_system_calls,
)
from blindai.errors import BlindAIError, ConfigurationError
from blindai.inference.engine import LoadOptions
from blindai.inference.engines import load_engine
from blindai.inference.onnx import OnnxEngine
from blindai.inference.options import REFERENCE, parse_options
from blindai.inference.probe import random_inputs
from blindai.inference.quantization import quantize_int8

if TYPE_CHECKING:
    from blindai.inference.options import Form

MAX_MESSAGE: Final = 8192
TRIAL_PREFIX: Final = "blindai-trial-"
_MAX_REASON: Final = 1000
# For all runs of random inputs.
_RUN_SECONDS: Final = 2.0
_MAX_FILES: Final = 256
_MAX_FILE_BYTES: Final = 2**31
_BAD_OOM: Final = "1000"
_RETRY: Final = 0.02


def python_folders() -> list[Path]:
    """Return where this interpreter and its libraries are read from."""
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path("/usr/lib"), Path("/lib")}
    folders |= {Path("/lib64"), Path("/usr/local/lib"), Path("/usr/share/zoneinfo")}
    folders |= {Path(each) for each in sys.path if each}
    return sorted(folder for folder in folders if folder.is_dir())


# Of the processor, for engines that count cores.
MACHINE_FILES: Final = (
    Path("/proc"),
    Path("/sys/devices/system"),
    Path("/sys/fs/cgroup"),
    Path("/etc/ld.so.cache"),
    Path("/etc/localtime"),
)


def serve(descriptor: int, parent: int) -> None:
    """Answer requests until the other end of the socket is gone.

    Args:
        descriptor: Of a socket of whole messages (SOCK_SEQPACKET).
        parent: Process id of who started this.
    """
    die_with_parent(parent)
    forbid_dumps()
    forbid_new_privileges()
    # What ends the server by the terminal's Ctrl-C is the server's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        control.send(json.dumps({"ready": True}).encode())
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
            if not request:
                return
            try:
                answer = _try_model(json.loads(request), descriptors[0])
            finally:
                for each in descriptors:
                    os.close(each)
            control.send(json.dumps(answer).encode())


def _try_model(request: dict[str, Any], model: int) -> dict[str, Any]:
    """Let a child load the model, and return what became of it."""
    base = _resident()
    read_end, write_end = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix=TRIAL_PREFIX, dir=_memory_folder()))
    try:
        child = os.fork()
        if not child:
            os.close(read_end)
            _be_child(request, model, write_end, folder)
        os.close(write_end)
        said, in_time = _listen(read_end, time.monotonic() + request["seconds"])
        # What has said all it had to say is done, and may not stay.
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    finally:
        os.close(read_end)
        shutil.rmtree(folder, ignore_errors=True)
    answer: dict[str, Any] = {"memory": max(0, usage.ru_maxrss * 1024 - base)}
    if said:
        with contextlib.suppress(ValueError):
            return answer | {"outcome": "said", "said": said.decode("utf-8")}
    if not in_time:
        return answer | {"outcome": "slow"}
    return answer | {"outcome": "crashed", "signal": status & 0x7F}


def _listen(read_end: int, until: float) -> tuple[bytes, bool]:
    """Return what the child said, and whether it ended in time."""
    said = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([read_end], [], [], left)[0]:
            break
        more = os.read(read_end, 4096 - len(said))
        said += more
        if not more or said.endswith(b"\n") or len(said) >= 4096:  # noqa: PLR2004 - as above
            return said, True
    return said, False


def _be_child(request: dict[str, Any], model: int, write_end: int, folder: Path) -> None:
    """Load the model, say how it went, and end; never returns."""
    try:
        error = ""
        kind = "ok"
        try:
            forms = parse_options(request["options"]).forms
            _give_up_all_but(model, folder, request["memory"], request["seconds"], forms)
            _load(model, folder, LoadOptions(threads=request["threads"]), forms)
        except BlindAIError as found:
            kind, error = type(found).__name__, str(found)[:_MAX_REASON]
        except (MemoryError, RuntimeError):  # the latter where no thread can be started
            kind = "memory"
        except Exception as found:  # noqa: BLE001 - told to who asked, by its type alone
            kind, error = "broken", type(found).__name__
        said = json.dumps({"kind": kind, "error": error}) + "\n"
        os.write(write_end, said.encode())
    finally:
        os._exit(0)


def _give_up_all_but(
    model: int, folder: Path, memory: int, seconds: float, forms: tuple[Form, ...]
) -> None:
    # The kernel kills this process first, and not the server, where memory ends.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_BAD_OOM)
    _limit(resource.RLIMIT_DATA, _data_bytes() + memory)
    _limit(resource.RLIMIT_CPU, int(seconds) * max(1, len(os.sched_getaffinity(0))) + 1)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    _limit(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    if landlock_version():
        readable = [Allowed(each, READ) for each in (*python_folders(), *MACHINE_FILES)]
        restrict_files([*readable, Allowed(model, READ), Allowed(folder, WRITE)])
    jit = any(form.engine == "openvino" for form in forms)
    calls = (*FILES, *MEMORY, *WAITING, *PROCESS)
    restrict_system_calls(calls, model_rules(jit=jit), jit=jit)


def _limit(kind: int, most: int) -> None:
    """Limit a resource for good, unless the operator has limited it further."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _load(model: int, folder: Path, options: LoadOptions, forms: tuple[Form, ...]) -> None:
    """Do once all that the server will do with the model."""
    path = Path(f"/proc/self/fd/{model}")
    loaded = OnnxEngine().load(path, options)
    random_inputs(loaded, count=1, seconds=_RUN_SECONDS)
    loaded.close()
    for form in forms:
        if form == REFERENCE:
            continue
        # What this form lacks, the server says: here only what kills is of interest.
        with contextlib.suppress(BlindAIError):
            source = path
            if form.precision == "int8":
                source = folder / "int8"
                quantize_int8(path, source)
            engine = load_engine(form.engine, "fp32" if form.engine == "onnx" else form.precision)
            other = engine.load(source, replace(options))
            random_inputs(other, count=1, seconds=_RUN_SECONDS)
            other.close()


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - mkdtemp in it


def _resident() -> int:
    """Return this process's memory in use, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next((line for line in lines if line.startswith("VmData:")), None)
    if found is None:
        msg = "expected VmData in /proc/self/status: the sandbox cannot limit memory without it"
        raise ConfigurationError(msg)
    return int(found.split()[1]) * 1024
