"""A serving process gives up what it does not need, before it meets anyone.

Always true: whatever is in force is in force before the first key is made, and before the
first byte from the network is read; what could not be put in force is said, at the start and
in the configuration that clients see attested. Not to be dumped and to gain no privileges
are conditions of serving; the others depend on the kernel.

The order matters: the process that tries models is started while programs can be started;
libraries are loaded while they can be; files are restricted while there is one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # noqa: F401 - looked up by name, later
import importlib
import importlib.util
import re
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy.random  # noqa: F401 - numpy imports it when it is used, which is too late

from blindai.attesters.nitro import NSM_IOCTL_RAW
from blindai.attesters.sev_guest import SNP_GET_DERIVED_KEY
from blindai.confinement.kernel import (
    forbid_dumps,
    forbid_new_privileges,
    limit_memory,
    lock_memory,
    machine_memory,
    threads,
)
from blindai.confinement.landlock import (
    READ,
    REMOVE_FOLDER,
    USE_DEVICE,
    WRITE,
    Allowed,
    restrict_files,
)
from blindai.confinement.seccomp import (
    FILES,
    MEMORY,
    PROCESS,
    SOCKETS,
    WAITING,
    restrict_system_calls,
    server_rules,
)
from blindai.errors import ConfigurationError
from blindai.inference.sandbox import Sandbox, TrialLimits
from blindai.inference.sandboxed import MACHINE_FILES, python_folders
from blindai.server.audit import make_file
from blindai.server.store_folder import store_folder
from blindai.server.tracing import port_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blindai.server.config import ServerConfig

UNCONFINED: Final = "this process is not confined: it was not started in isolation (python -I)"
_HTTPS: Final = 443
_PORT: Final = re.compile(r"port=(\d{1,5})")
# The library that reaches the TPM is looked up by name each time.
_TPM_LIBRARIES: Final = ("device", "swtpm", "mssim")
_NAMES_AND_AUTHORITIES: Final = (
    "resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "services",
    "protocols", "ssl", "ca-certificates", "pki",
)  # fmt: skip
_DEVICES: Final = ("tpmrm0", "tpm0", "sev-guest", "nsm", "null", "zero", "urandom", "random")
_ATTESTATION_FOLDERS: Final = (Path("/sys/kernel/config/tsm"), Path("/dev/attestation"))
_TRUSTED_FILES: Final = (
    Path("/sys/kernel/security"), Path("/sys/class/tpm"), Path("/sys/firmware"),
    Path("/sys/devices"), Path("/run/systemd/resolve"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a serving process has given up.

    Attributes:
        config: As it was, with the folder of the store and with what is in force.
        sandbox: Tries models; `None`: nothing does.
        caveats: What is not in force, each as a sentence that says why.
    """

    config: ServerConfig
    sandbox: Sandbox | None
    caveats: tuple[str, ...]


@contextlib.contextmanager
def confined(
    config: ServerConfig,
    *,
    fetches: bool = False,
    tcti: str | None = None,
    telemetry_port: int | None = None,
) -> Iterator[Confinement]:
    """Confine this process for good, and yield what it is confined to; ends with the process.

    One that does other things too, and so was not started in isolation, is left as it is.

    Args:
        config: How it will serve.
        fetches: Whether it asks the hardware's vendors for endorsements.
        tcti: How the TPM is reached, as tpm2-tss names it.
        telemetry_port: Where reports go to; `None`: there are none.

    Raises:
        ConfigurationError: The store's folder cannot be had, or the kernel refuses what
            serving depends on.
    """
    if not sys.flags.isolated:
        yield Confinement(config, None, (UNCONFINED,))
        return
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(TrialLimits(), threads=config.threads))
        folder = stack.enter_context(store_folder(config))
        forbid_dumps()
        forbid_new_privileges()
        in_force, caveats = ["models-tried-apart", "no-dumps", "no-new-privileges"], []
        config = replace(config, store=folder)
        if config.audit_log is not None:
            # Its folder stays out of reach. Why it cannot be made is said by who opens it.
            with contextlib.suppress(OSError):
                make_file(config.audit_log)
        jit = importlib.util.find_spec("openvino") is not None
        if jit:
            caveats.append("memory can become code: OpenVINO, which is installed, compiles models")
        else:
            in_force.append("no-new-code")
        _load_libraries()
        if config.otlp_endpoint is not None:
            with contextlib.suppress(ModuleNotFoundError):  # said by who needs it
                importlib.import_module("blindai.server.otlp")
        ports = [_HTTPS] if fetches else []
        ports += [] if telemetry_port is None else [telemetry_port]
        ports += [] if config.otlp_endpoint is None else [port_of(config.otlp_endpoint)]
        measures: tuple[tuple[str, Callable[[], object]], ...] = (
            ("locked-memory", lock_memory),
            ("memory", lambda: limit_memory(machine_memory() // 10 * 9)),
            ("files", lambda: _restrict_files(config, ports, tcti)),
            ("system-calls", lambda: _restrict_calls(jit=jit)),
        )
        for name, measure in measures:
            try:
                measure()
            except ConfigurationError as error:
                caveats.append(str(error))
            else:
                in_force.append(name)
        if "system-calls" not in in_force:
            in_force = [name for name in in_force if name != "no-new-code"]
        yield Confinement(
            replace(config, confinement=tuple(sorted(in_force))), sandbox, tuple(caveats)
        )


def _load_libraries() -> None:
    """Load now what would be loaded later, when nothing can be."""
    for name in ("libgcc_s.so.1", *(f"libtss2-tcti-{each}.so.0" for each in _TPM_LIBRARIES)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
    with contextlib.suppress(OSError):
        socket.getaddrinfo("localhost", _HTTPS)


def _restrict_files(config: ServerConfig, calls: list[int], tcti: str | None) -> None:
    if (running := threads()) > 1:
        msg = f"files cannot be restricted: this process has {running} threads, and not one"
        raise ConfigurationError(msg)
    reads = [*python_folders(), *MACHINE_FILES, *_TRUSTED_FILES]
    reads += [Path("/etc") / name for name in _NAMES_AND_AUTHORITIES]
    writes = [*_ATTESTATION_FOLDERS]
    parents = []
    reads += config.files
    if config.sealed is not None:
        # Its parent: the key of a simulation and what is left for a successor lie beside it.
        config.sealed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        writes.append(config.sealed.parent)
    if config.audit_log is not None:
        writes.append(config.audit_log)
    if config.store is not None:
        writes.append(config.store)
        parents.append(config.store.parent)
    ports = [*calls]
    for found in _PORT.findall(tcti or ""):
        ports += [int(found), int(found) + 1]  # swtpm has a second one for its control
    listening = (config.port, config.public_port, config.grpc_port)
    restrict_files(
        [
            *(Allowed(path, READ) for path in reads),
            *(Allowed(path, WRITE) for path in writes),
            *(Allowed(path, REMOVE_FOLDER) for path in parents),
            *(Allowed(Path("/dev") / name, USE_DEVICE) for name in _DEVICES),
        ],
        bind=[port for port in listening if port is not None],
        connect=ports,
    )


def _restrict_calls(*, jit: bool) -> None:
    restrict_system_calls(
        (*FILES, *MEMORY, *WAITING, *PROCESS, *SOCKETS),
        server_rules(jit=jit, ioctls=(NSM_IOCTL_RAW, SNP_GET_DERIVED_KEY)),
        jit=jit,
    )
