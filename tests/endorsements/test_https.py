"""HTTPS as it is spoken: a local server with a certificate of its own."""

import contextlib
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from blindai.channel.tls import create_certificate, server_context
from blindai.endorsements import HttpsGet, Kind, Request
from blindai.errors import ConfigurationError, ConnectionFailed, EndorsementError

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.now(UTC)
CERTIFICATE = create_certificate(
    KEY, names=["localhost"], not_before=NOW - timedelta(hours=1), not_after=NOW + timedelta(days=1)
)


class Server:
    """Answers each connection with the same bytes, and takes down what it was sent."""

    def __init__(self, answer, *, drip=0.0):
        self.answer = answer
        self.received = []
        self._drip = drip
        self._socket = socket.create_server(("localhost", 0))
        self._context = server_context(KEY, CERTIFICATE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self):
        """Return where it listens."""
        return f"https://localhost:{self._socket.getsockname()[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _serve(self):
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(5)
                    self._answer(connection)

    def _answer(self, connection):
        with self._context.wrap_socket(connection, server_side=True) as tls:
            self.received.append(tls.recv(65536))
            if not self._drip:
                tls.sendall(self.answer)
                return
            for byte in self.answer:
                if self._stop.is_set():
                    return
                tls.sendall(bytes([byte]))
                time.sleep(self._drip)


def get(server, path="/x", *, body=None, **changes):
    """Ask the server, trusting its certificate."""
    context = ssl.create_default_context(cadata=CERTIFICATE)
    asks = HttpsGet(context=context, **{"timeout": 5.0} | changes)
    return asks(Request(server.address + path, Kind.CRL, body))


def response(body=b"", *headers, status="200 OK"):
    """Return an HTTP response that names its length."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_body_and_headers_come_back():
    """Body and headers are those of the answer; the request says nothing about us."""
    with Server(response(b"\x30\x00", "SGX-Chain: abc")) as server:
        answer = get(server, "/tcb?fmspc=00")
        sent = server.received[0].decode()
    assert answer.body == b"\x30\x00"
    assert answer.headers["sgx-chain"] == "abc"
    assert sent.startswith("GET /tcb?fmspc=00 HTTP/1.1\r\nHost: localhost:")
    assert "Accept-Encoding: identity\r\n" in sent
    assert not {"cookie", "authorization", "referer"} & {
        line.split(":")[0].lower() for line in sent.splitlines()
    }


def test_a_body_is_posted():
    """An OCSP request is posted with its media type."""
    with Server(response(b"ok")) as server:
        get(server, body=b"\x30\x01")
        sent = server.received[0]
    assert sent.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"Content-Type: application/ocsp-request\r\nContent-Length: 2\r\n" in sent
    assert sent.endswith(b"\r\n\r\n\x30\x01")


def test_something_else_is_posted():
    """What is no question to a vendor goes out under its own media type, by the same rules."""
    context = ssl.create_default_context(cadata=CERTIFICATE)
    asks = HttpsGet(context=context, timeout=5.0, max_bytes=8)
    with Server(response(b"ok")) as server:
        answer = asks.post(f"{server.address}/r", b"{}", content_type="application/json")
        sent = server.received[0]
    assert answer.body == b"ok"
    assert b"Content-Type: application/json\r\nContent-Length: 2\r\n" in sent
    with Server(response(b"too much of it")) as server, pytest.raises(EndorsementError):
        asks.post(f"{server.address}/r", b"{}", content_type="application/json")
    with Server(response(status="302 Found")) as server, pytest.raises(EndorsementError):
        asks.post(f"{server.address}/r", b"{}", content_type="application/json")


def test_chunks_are_joined():
    """A body in chunks is as good."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    with Server(chunked) as server:
        assert get(server).body == b"abc"


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (response(b"", "Location: https://x/", status="301 Moved"), EndorsementError, "redirects"),
        (response(b"", "Location: http://x/", status="307 Moved"), EndorsementError, "redirects"),
        (response(status="404 Not Found"), EndorsementError, "came 404"),
        (response(status="204 No Content"), EndorsementError, "came 204"),
        (response(status="429 Slow down"), ConnectionFailed, "429"),
        (response(status="503 Gone"), ConnectionFailed, "503"),
        (response(b"x", "Content-Encoding: gzip"), EndorsementError, "encoded"),
        (response(bytes(1001)), EndorsementError, "at most 1000 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"
            + bytes(1000)
            + b"\r\n3e8\r\n"
            + bytes(1000)
            + b"\r\n0\r\n\r\n",
            EndorsementError,
            "at most 1000 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", ConnectionFailed, "no answer|early"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", ConnectionFailed, "no answer"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", ConnectionFailed, "no answer"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", ConnectionFailed, "no answer"),
        (b"", ConnectionFailed, "no answer"),
    ],
)
def test_other_answers_are_refused(answer, error, why):
    """Redirects, errors, encodings, sizes and nonsense are refused, each as what it is."""
    with Server(answer) as server, pytest.raises(error, match=why):
        get(server, max_bytes=1000)


def test_a_dripping_answer_ends_in_time():
    """A server that sends a byte now and then does not hold us longer than the timeout."""
    begin = time.monotonic()
    with Server(response(bytes(1000)), drip=0.05) as server:
        with pytest.raises(ConnectionFailed, match=r"within 0\.5 seconds"):
            get(server, timeout=0.5)
        assert time.monotonic() - begin < 5


def test_an_untrusted_certificate_is_refused():
    """The machine's authorities do not know the server: nothing is asked of it."""
    with Server(response(b"x")) as server:
        with pytest.raises(ConnectionFailed, match="not trusted"):
            HttpsGet(timeout=5.0)(Request(server.address, Kind.CRL))
        assert server.received == []


def test_nobody_there():
    """A closed port is a failed connection."""
    with socket.create_server(("localhost", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionFailed, match="ConnectionRefusedError"):
        HttpsGet(timeout=5.0)(Request(f"https://localhost:{port}/", Kind.CRL))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/x",
        "ftp://localhost/x",
        "file:///etc/passwd",
        "https:///x",
        "https://localhost:99999/",
        "https://user@localhost/",
        "https://localhost/ x",
        "https://localhost/x\r\nHost: other",
        "https://lócalhost/",
        "",
    ],
)
def test_other_addresses_are_refused(url):
    """Nothing but https to a plain host is ever connected to."""
    with pytest.raises(EndorsementError, match="address of an endorsement"):
        HttpsGet()(Request(url, Kind.CRL))


def test_a_timeout_is_needed():
    """Nothing waits for ever."""
    with pytest.raises(ConfigurationError):
        HttpsGet(timeout=0)
