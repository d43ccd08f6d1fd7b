"""What requests show, without requests; and a way to a server for those with them."""

import ssl
from dataclasses import dataclass

import grpc


@dataclass(frozen=True)
class Shown:
    """What one request shows of who sent it."""

    bearer_token: bytes | None = None
    peer: str = "192.0.2.1"
    client_certificate: bytes | None = None


class Clock:
    """Seconds that go on when a test says so."""

    def __init__(self, seconds=1_000_000.0):
        self.seconds = seconds

    def __call__(self):
        return self.seconds


def channel_to(server):
    """Return a gRPC channel that trusts the certificate that a server shows."""
    host, port = server.grpc_address.rsplit(":", 1)
    pem = ssl.get_server_certificate((host, int(port))).encode()
    options = [("grpc.ssl_target_name_override", "blindai-srv")]
    return grpc.secure_channel(server.grpc_address, grpc.ssl_channel_credentials(pem), options)
