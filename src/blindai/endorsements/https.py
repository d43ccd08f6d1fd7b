"""Ask a vendor over HTTPS: the only module of `blindai.endorsements` with a network.

Always true: TLS with a certificate that the machine trusts for that host; no redirect is
followed; no proxy, cookie or credential is sent; an answer is bounded in size while it is
read, and the whole exchange in time. Answers need no trust beyond that: they are signed, and
verified later.

Specification: RFC 9110, RFC 9112; of OCSP, RFC 6960 Appendix A.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from blindai.endorsements.request import MAX_ANSWER_BYTES, Answer, Request, origin_of
from blindai.errors import ConfigurationError, ConnectionFailed, EndorsementError

if TYPE_CHECKING:
    from collections.abc import Callable

_PORT: Final = 443
_OCSP: Final = "application/ocsp-request"
_CHUNK: Final = 64 << 10
_OK: Final = 200
_REDIRECTS: Final = range(300, 400)
# The vendor asks for patience, or has trouble of its own.
_TRY_LATER: Final = frozenset({408, 425, 429, *range(500, 600)})


class HttpsGet:
    """Asks vendors over HTTPS; call it with a `Request`.

    Args:
        timeout: Seconds for one exchange, connecting included.
        context: Decides whom to trust; default: the authorities that the machine trusts,
            read when the first request is made.
        max_bytes: Largest body that is accepted.
        monotonic: Returns seconds that never go back.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        context: ssl.SSLContext | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not timeout > 0:
            msg = f"timeout: expected more than 0 seconds, found {timeout}"
            raise ConfigurationError(msg)
        self._timeout = timeout
        self._context = context
        self._max_bytes = max_bytes
        self._monotonic = monotonic

    def __call__(self, request: Request) -> Answer:
        """Return the answer.

        Raises:
            EndorsementError: If the address is not https, or the answer is not one that an
                endorsement could come in.
            ConnectionFailed: If there is no answer, or one that says to try later.
        """
        return self._exchange(request.url, request.body, _OCSP)

    def get(self, url: str) -> Answer:
        """Fetch something that is no vendor's, under the same rules.

        Args:
            url: Where; https only.

        Raises:
            EndorsementError: If the address is not https, or the answer is not one of HTTP 200
                in the size that is accepted.
            ConnectionFailed: If there is no answer, or one that says to try later.
        """
        return self._exchange(url)

    def post(self, url: str, body: bytes, *, content_type: str) -> Answer:
        """Send something that is no question to a vendor, under the same rules.

        Args:
            url: Where; https only.
            body: What.
            content_type: Of the body.

        Raises:
            EndorsementError: As `get`.
            ConnectionFailed: As `get`.
        """
        return self._exchange(url, body, content_type)

    def _exchange(self, url: str, body: bytes | None = None, content_type: str = "") -> Answer:
        host, port, target = _split(url)
        origin = origin_of(url)
        head = _write_head(host, port, target, body, content_type)
        deadline = _Deadline(self._timeout, self._monotonic)
        try:
            with self._connect(host, port, deadline) as sock:
                sock.settimeout(deadline.left())
                sock.sendall(head + (body or b""))
                return self._read(sock, deadline, origin, "GET" if body is None else "POST")
        except ssl.SSLCertVerificationError as error:
            msg = f"{origin}: its certificate is not trusted: {error.verify_message}"
            raise ConnectionFailed(msg) from error
        except TimeoutError as error:
            msg = f"{origin}: no answer within {self._timeout:g} seconds"
            raise ConnectionFailed(msg) from error
        except (OSError, http.client.HTTPException) as error:
            msg = f"{origin}: no answer ({type(error).__name__})"
            raise ConnectionFailed(msg) from error

    def _connect(self, host: str, port: int, deadline: _Deadline) -> ssl.SSLSocket:
        sock = socket.create_connection((host, port), deadline.left())
        try:
            if self._context is None:
                self._context = ssl.create_default_context()
            sock.settimeout(deadline.left())
            return self._context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise

    def _read(self, sock: ssl.SSLSocket, deadline: _Deadline, origin: str, method: str) -> Answer:
        response = http.client.HTTPResponse(
            _Readable(sock, deadline),  # type: ignore[arg-type]
            method=method,
        )
        with response:
            response.begin()
            _check_head(response, origin)
            body = bytearray()
            while chunk := response.read(_CHUNK):
                body += chunk
                if len(body) > self._max_bytes:
                    msg = f"{origin}: at most {self._max_bytes} bytes are accepted"
                    raise EndorsementError(msg)
            if response.length:
                msg = f"{origin}: the answer ended {response.length} bytes early"
                raise ConnectionFailed(msg)
            headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(bytes(body), headers)


class _Deadline:
    """Seconds that are left for the whole exchange."""

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def left(self) -> float:
        left = self._end - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Readable:
    """A socket that `HTTPResponse` reads, each time for no longer than is left.

    A timeout of the socket alone would begin anew with each byte that drips in.
    """

    def __init__(self, sock: ssl.SSLSocket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self._sock, self._deadline))


class _Stream(io.RawIOBase):
    def __init__(self, sock: ssl.SSLSocket, deadline: _Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def _split(url: str) -> tuple[str, int, str]:
    """Return host, port and what stands in the request line."""
    if not (url.isascii() and url.isprintable() and " " not in url):
        msg = "address of an endorsement: expected printable ASCII without spaces"
        raise EndorsementError(msg)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        msg = "address of an endorsement: no valid host and port"
        raise EndorsementError(msg) from error
    if parts.scheme != "https" or not host or parts.username is not None:
        msg = f"address of an endorsement: expected https and a host, found {parts.scheme[:16]!r}"
        raise EndorsementError(msg)
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _write_head(host: str, port: int, target: str, body: bytes | None, content_type: str) -> bytes:
    name = f"[{host}]" if ":" in host else host
    lines = [
        f"{'GET' if body is None else 'POST'} {target} HTTP/1.1",
        f"Host: {name}" if port == _PORT else f"Host: {name}:{port}",
        "User-Agent: blindai",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if body is not None:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _check_head(response: http.client.HTTPResponse, origin: str) -> None:
    status = response.status
    if status in _TRY_LATER:
        msg = f"{origin}: answered with HTTP {status}"
        raise ConnectionFailed(msg)
    if status in _REDIRECTS:
        msg = f"{origin}: answered with HTTP {status}; redirects are never followed"
        raise EndorsementError(msg)
    if status != _OK:
        msg = f"{origin}: expected HTTP {_OK}, came {status}"
        raise EndorsementError(msg)
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        msg = f"{origin}: expected a plain body, came an encoded one"
        raise EndorsementError(msg)
