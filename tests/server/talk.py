"""Speak to a server over real sockets, politely and otherwise."""

import http.client
import json
import socket
import ssl
from contextlib import closing
from dataclasses import dataclass

from blindai.channel.tls import unverified_context

TIMEOUT = 20


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The name of the error's class; every error has one, and a message."""
        document = self.json()
        assert document["error"]
        return document["type"]


def connect(server) -> http.client.HTTPSConnection:
    """Return a connection to the attested port."""
    host, port = server.address.rsplit(":", 1)
    return http.client.HTTPSConnection(
        host, int(port), context=unverified_context(), timeout=TIMEOUT
    )


def ask(connection, method: str, path: str, body=None, headers=None) -> Reply:
    """Send one request on a connection."""
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def request(server, method: str, path: str, body=None, headers=None) -> Reply:
    """Send one request to the attested port, on a connection of its own."""
    with closing(connect(server)) as connection:
        return ask(connection, method, path, body, headers)


def public_request(server, method: str, path: str, headers=None) -> Reply:
    """Send one request to the unattested port."""
    host, port = server.public_address.rsplit(":", 1)
    with closing(http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)) as connection:
        return ask(connection, method, path, None, headers)


def authorized(server, **headers: str) -> dict[str, str]:
    """Return headers with the token."""
    return {"Authorization": f"Bearer {server.token}"} | headers


def infer_body(values, *, name: str = "x", datatype: str = "FP32", shape=None, **more) -> bytes:
    """Return a request in JSON with one input."""
    entry = {"name": name, "datatype": datatype, "shape": shape or [len(values)], "data": values}
    return json.dumps({"inputs": [entry], **more}).encode()


def tcp(server) -> socket.socket:
    """Return a bare connection to the attested port, before any TLS."""
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=TIMEOUT)


def tls(server) -> ssl.SSLSocket:
    """Return a connection to the attested port that sends whatever bytes it is told to."""
    return unverified_context().wrap_socket(tcp(server))


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server ends the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    return received


def raw(server, data: bytes) -> bytes:
    """Send bytes to the attested port and return all that comes until it closes."""
    with tls(server) as connection:
        connection.sendall(data)
        return read_all(connection)


def status_of(answer: bytes) -> int:
    """Return the status of the first answer in what came."""
    return int(answer.split(b" ", 2)[1])


def public_tcp(server) -> socket.socket:
    """Return a connection to the unattested port."""
    host, port = server.public_address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=TIMEOUT)
