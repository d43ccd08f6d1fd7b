"""Kept connections."""

from __future__ import annotations

import pytest

from blindai.channel.tls import pinned_context
from blindai.client.address import Address
from blindai.client.messages import Request
from blindai.client.progress import watch
from blindai.client.transport import Transport
from blindai.errors import LimitExceeded

LIST = Request("GET", "/blindai/v1/models")


@pytest.fixture
def transport(server):
    """Return a transport to `server`."""
    made = Transport(Address("127.0.0.1", server.port), None)
    yield made
    made.close()


def send(transport, context, *, limit=1 << 20):
    return transport.send(LIST, context, timeout=5, limit=limit)


def test_a_connection_is_kept(transport, server):
    """Requests one after another share a connection."""
    context = pinned_context(server.identity.certificate)
    for _ in range(5):
        assert send(transport, context).status == 200
    assert server.connections == 1


def test_a_connection_belongs_to_its_context(transport, server):
    """Another context, and so another attestation, gets a connection of its own."""
    for _ in range(2):
        send(transport, pinned_context(server.identity.certificate))
    assert server.connections == 2


def test_a_connection_belongs_to_its_process(transport, server):
    """After a fork the child opens its own: sharing TLS state would repeat nonces."""
    context = pinned_context(server.identity.certificate)
    send(transport, context)
    parents = transport._idle
    transport._process = -1  # as a child finds it
    send(transport, context)
    assert server.connections == 2
    for _, connection in parents:
        connection.close()


def test_a_connection_is_not_kept_after_an_error(transport, server):
    """What was left unread of one answer never becomes the start of the next."""
    context = pinned_context(server.identity.certificate)
    with pytest.raises(LimitExceeded):
        send(transport, context, limit=10)
    assert send(transport, context).status == 200
    assert server.connections == 2


def test_a_connection_is_not_kept_against_the_servers_wish(transport, server):
    """The field "Connection: close" is obeyed."""
    context = pinned_context(server.identity.certificate)
    server.answer = lambda *_: (200, {"Connection": "close"}, b"")
    send(transport, context)
    send(transport, context)
    assert server.connections == 2


def test_chunked_answers_are_joined(transport, server):
    """An answer in chunks, with extensions and trailers, is one body."""

    def chunks(sock):
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"3;a=b\r\nabc\r\n")
        sock.sendall(b"2\r\nde\r\n0\r\nTrailer: x\r\n\r\n")

    server.answer = lambda *_: chunks
    assert bytes(send(transport, pinned_context(server.identity.certificate)).body) == b"abcde"


def test_a_bar_is_shown_where_it_is_asked_for(capsys):
    """`progress=True` draws on the standard error; by default a pipe gets nothing."""
    with watch(progress=True, name="minilm", size=100) as advance:
        advance(100)
    assert "uploading minilm" in capsys.readouterr().err
    with watch(progress=None, name="minilm", size=1 << 30) as advance:
        advance(100)
    assert capsys.readouterr().err == ""
