"""Fixtures of the gRPC tests: real clients of the real server."""

import grpc
import pytest
import tritonclient.grpc as triton

from tests.server.grpc.talk import root_of


@pytest.fixture(scope="module")
def certificate(server):
    """The attested certificate as PEM."""
    return root_of(server)


@pytest.fixture
def channel(server, certificate):
    """A channel of gRPC's own, whose only root is the attested certificate."""
    with grpc.secure_channel(
        server.grpc_address, grpc.ssl_channel_credentials(certificate)
    ) as opened:
        yield opened


@pytest.fixture
def client(server, certificate, tmp_path):
    """Triton's client, whose only root is the attested certificate."""
    path = tmp_path / "server.pem"
    path.write_bytes(certificate)
    with triton.InferenceServerClient(
        server.grpc_address, ssl=True, root_certificates=str(path)
    ) as opened:
        yield opened
