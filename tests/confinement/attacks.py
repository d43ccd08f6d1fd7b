"""Run in a process of its own: confine it, attack from inside, and say what became of each attack.

Takes a folder to work in, a port that somebody listens on, and free ports; prints JSON.
"""

import ctypes
import fcntl
import json
import os
import socket
import sys
import threading
from pathlib import Path

from blindai.attestation.model import Platform
from blindai.server.config import ServerConfig
from blindai.server.hardening import confined

PR_SET_DUMPABLE = 4
TIOCSTI = 0x5412
libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    """Raise the error of a C function."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_thread(attack):
    """Run an attack in a new thread: what holds must hold there too."""
    errors = []

    def run():
        try:
            attack()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def attacks(folder, port, other):
    """Return what an attacker who runs code in the server would try."""
    return {
        "start a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "read a secret": (folder / "secret").read_bytes,
        "read a secret in a thread": lambda: in_thread((folder / "secret").read_bytes),
        "read passwords": Path("/etc/shadow").read_bytes,
        "list the machine": lambda: list(Path("/").iterdir()),
        "write a file": lambda: (folder / "planted").write_text("x"),
        "change a model": lambda: (folder / "models" / "m.onnx").write_text("x"),
        "make a link": lambda: (folder / "store" / "link").symlink_to("/etc/shadow"),
        "call out": lambda: socket.create_connection(("127.0.0.1", port), 5),
        "listen": lambda: socket.create_server(("127.0.0.1", other)),
        "sniff": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "kernel crypto": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
        "be dumpable again": lambda: checked(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)),
        "trace": lambda: checked(libc.ptrace(16, os.getppid(), 0, 0)),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "read another process": lambda: Path(f"/proc/{os.getppid()}/mem").open("rb"),
        "load eBPF": lambda: checked(libc.syscall(321, 0, 0, 0)),
        "user namespace": lambda: os.unshare(0x10000000) if hasattr(os, "unshare") else os.fork(),
        "mount": lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
        "type into the terminal": lambda: fcntl.ioctl(0, TIOCSTI, b"x"),
        "new keys for the kernel": lambda: checked(libc.syscall(250, 0, 0, 0)),
    }


def main():
    """Confine, attack, and tell."""
    folder, port, *ports = Path(sys.argv[1]), *map(int, sys.argv[2:])
    config = ServerConfig(
        platform=Platform.SIMULATION,
        port=ports[0],
        public_port=ports[1],
        grpc_port=None,
        models=folder / "models",
        store=folder / "store",
    )
    with confined(config) as confinement:
        found = {}
        for name, attack in attacks(folder, port, ports[2]).items():
            try:
                attack()
            except OSError as error:
                found[name] = error.strerror
            else:
                found[name] = "it worked"
        # What a server needs still works.
        (folder / "store" / "kept").write_bytes((folder / "models" / "m.onnx").read_bytes())
        with socket.create_server(("127.0.0.1", ports[0])) as listening:
            found["serving"] = listening.getsockname()[1]
        status = Path("/proc/self/status").read_text()
        sys.stdout.write(
            json.dumps(
                {
                    "attacks": found,
                    "in force": confinement.config.confinement,
                    "caveats": confinement.caveats,
                    "status": dict(line.split(":\t", 1) for line in status.splitlines()),
                    "coredump_filter": Path("/proc/self/coredump_filter").read_text().strip(),
                }
            )
            + "\n"
        )
        sys.stdout.flush()
        sys.stdin.readline()
        os.abort()


main()
