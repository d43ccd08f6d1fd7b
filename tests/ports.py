"""Ports for programs that take a number and cannot say which one they chose."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Return TCP ports on loopback that nothing listens on, each another."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
