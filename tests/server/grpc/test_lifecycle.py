"""The gRPC port begins, renews its keys and ends with the server."""

import ssl
import threading
import time
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blindai.errors import ConfigurationError
from blindai.server.grpc import frames
from blindai.testing.server import start_server
from tests.inference.models import identity, slow
from tests.server.grpc.talk import (
    LIVE,
    STREAM,
    floats,
    headers,
    message,
    peer,
    request_for,
    root_of,
)
from tests.server.test_service import WIDTH


def slow_message(rows: int) -> bytes:
    """Return a request that takes some 10 ms for each row."""
    return message(request_for(floats(rows * WIDTH).reshape(rows, WIDTH), model="slow"))


def stop_while(server, action):
    """Stop a server, and do something meanwhile; return how long it took."""
    began = time.monotonic()
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    action()
    stopping.join()
    return time.monotonic() - began


def test_no_grpc():
    """A server without the port has none."""
    with (
        start_server(config={"grpc_port": None}) as server,
        pytest.raises(ConfigurationError, match="grpc_port"),
    ):
        _ = server.grpc_address


def test_running_call_is_answered():
    """After a signal, what runs is answered, and nothing new is taken."""
    with start_server(models={"slow": slow()}) as server, peer(server) as client:
        client.open().call(1, slow_message(100))
        time.sleep(0.3)

        def meanwhile():
            assert client.until(frames.GOAWAY).payload[:4] == (1).to_bytes(4)
            assert client.answer(1)[1]["grpc-status"] == "0"
            assert client.until(-1) is None

        assert stop_while(server, meanwhile) < 20


def test_long_call_is_stopped():
    """A call that outlasts the grace is stopped, and its client told to come again."""
    with (
        start_server(models={"slow": slow()}, shutdown_grace=0.3) as server,
        peer(server) as client,
    ):
        client.open().call(1, slow_message(500))
        time.sleep(0.3)

        def meanwhile():
            fields = client.answer(1)[1]
            assert (fields["grpc-status"], fields["grpc-message"]) == (
                "14",
                "the server is stopping",
            )

        assert stop_while(server, meanwhile) < 15


def test_idle_stream_does_not_keep_the_server():
    """A stream in which nothing runs is ended at once, as something to call again."""
    with start_server(models={"m": identity()}) as server, peer(server) as client:
        client.open().call(1, ends=False, fields=headers(STREAM))
        client.data(1, message(request_for(floats(3), model="m")), ends=False)
        assert client.until(frames.DATA)

        def meanwhile():
            fields = client.answer(1)[1]
            assert fields["grpc-status"] == "14"

        assert stop_while(server, meanwhile) < 10


def test_new_keys():
    """New connections get the new key; those with an old one are ended before it expires."""
    lifetime = {"key_lifetime": timedelta(seconds=4)}
    with start_server(models={"m": identity()}, config=lifetime) as server:
        first = root_of(server)
        with peer(server) as client:
            client.open()
            began = time.monotonic()
            found = client.until(frames.GOAWAY)
            assert found.code == 0
            assert 1.5 < time.monotonic() - began < 6
            assert client.until(-1) is None
        time.sleep(0.5)  # for the new keys, which are made now
        second = root_of(server)
        assert second != first
        credentials = grpc.ssl_channel_credentials(second)
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_same_key_as_https(server):
    """The certificate of the gRPC port is that of the attested port, whose key is attested."""
    with peer(server) as client:
        shown = client.connection.getpeercert(binary_form=True)
        client.open().call(1, message(b""), fields=headers(LIVE))
        assert client.answer(1)[1]["grpc-status"] == "0"
    assert ssl.DER_cert_to_PEM_cert(shown).encode() == root_of(server)
