"""The enclave's first program of ours: loopback up, proxies on vsock, then the server.

Always true: the server listens on loopback only, and only the proxies reach it; when the server
ends, so does this program, and with it the enclave.
"""

from __future__ import annotations

import array
import fcntl
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

PORTS = (50051, 50052, 50053)
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_HERE = Path(__file__).resolve().parent


def raise_loopback(name: bytes = b"lo") -> None:
    """Set the interface up: an enclave starts with it down.

    Raises:
        OSError: There is none, or this is not root.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = array.array("B", struct.pack("16sH14x", name, 0))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", request, 16)
        struct.pack_into("H", request, 16, flags | _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def commands(python: str = sys.executable) -> tuple[list[list[str]], list[str]]:
    """Return the proxies' command lines and the server's."""
    proxies = [
        [python, "-I", str(_HERE / "vsock_proxy.py"), f"vsock:any:{port}", f"tcp:127.0.0.1:{port}"]
        for port in PORTS
    ]
    server = [python, "-I", "-m", "blindai", "serve", "--platform", "nitro"]
    # Nitro's evidence needs nothing that would have to be fetched, and there is no network.
    return proxies, [*server, "--no-fetch-endorsements"]


def main() -> int:
    """Return the server's exit code."""
    raise_loopback()
    proxies, server = commands()
    carrying = [subprocess.Popen(command) for command in proxies]
    serving = subprocess.Popen(server)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: serving.terminate())
    code = serving.wait()
    for each in carrying:
        each.terminate()
    return code


if __name__ == "__main__":
    sys.exit(main())
