"""The asyncio client: the verbs of `blindai.client.client.Client`, awaited.

Always true: as there. Verifying runs in a thread, so it never stalls the loop; requests
travel through aiohttp, with its redirects, cookies, environment and decompression off.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Final, Self, TypeVar

import aiohttp
from yarl import URL

from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.client.calls import Call, Calls
from blindai.client.client import (
    KEY_CHANGED_AGAIN,
    LOAD_TIMEOUT,
    MAX_RESPONSE_BYTES,
    SIMULATION_WARNING,
)
from blindai.client.failures import explain
from blindai.client.http1 import MAX_HEAD_BYTES, Head
from blindai.client.messages import Response, receive_buffer, slices, too_large
from blindai.client.progress import Progress, watch
from blindai.client.receipts import ReceiptRequest
from blindai.client.session import Channel, Session, resolve_policy
from blindai.client.upload import Model, open_source
from blindai.errors import (
    BindingError,
    BlindAIError,
    ConfigurationError,
    ConnectionFailed,
    LimitExceeded,
    SimulationWarning,
)

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from blindai.attestation.model import AttestationResult
    from blindai.attestation.policy import Policy
    from blindai.attestation.stored import StoredEvidence
    from blindai.client.messages import Request
    from blindai.client.results import ModelInfo, Result
    from blindai.endorsements import Endorser

T = TypeVar("T")

# aiohttp takes a body this small as it is; larger ones are handed over piece by piece.
_JOIN_BYTES: Final = 64 << 10
_PIECE_BYTES: Final = 256 << 10
_AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class _Trace:
    """Whether a request went out over a kept connection."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


class AsyncClient:
    """Talks to one verified server, from asyncio.

    Verifies it when it is entered, or before the first request::

        async with blindai.AsyncClient("host:50051", policy="policy.toml") as client:
            result = await client.run_model("minilm", {"input_ids": ids})

    Args:
        address: "host:port" of the attested port, or "host" for port 50051.
        policy: What to accept: a `Policy` or the path of a policy file.
        simulation: Accept a simulated server, which protects nothing. For tests; warns.
        token: For what the server asks one for, such as uploading models.
        proxy: "http://host:port" of a proxy that tunnels by CONNECT.
        trust_env: Whether HTTPS_PROXY and NO_PROXY count where `proxy` is not given.
        timeout: Seconds for a whole request, connecting included.
        max_response_bytes: Greatest answer that is accepted.
        clock: Returns the time, with a time zone; the machine's clock by default.
        anchors: The vendors' roots that count; tests bring their own.
        endorser: Completes evidence with what the vendors say; default: one that asks them
            over HTTPS for what the server did not staple. `Endorser()` asks nobody.

    Raises:
        ConfigurationError: If the arguments or the policy cannot be used.
    """

    def __init__(  # noqa: PLR0913 - all but one are keywords
        self,
        address: str,
        *,
        policy: Policy | str | os.PathLike[str] | None = None,
        simulation: bool = False,
        token: str | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        timeout: float = 60.0,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        clock: Callable[[], datetime] | None = None,
        anchors: Anchors = VENDOR_ROOTS,
        endorser: Endorser | None = None,
    ) -> None:
        resolved = resolve_policy(policy, simulation=simulation)
        self._session = Session(
            address,
            resolved,
            proxy=proxy,
            trust_env=trust_env,
            timeout=timeout,
            clock=clock,
            anchors=anchors,
            endorser=endorser,
        )
        self._max_response_bytes = max_response_bytes
        self._channel: Channel | None = None
        self._http: aiohttp.ClientSession | None = None
        self._calls = Calls({} if resolved is None else resolved.models, token)

    async def connect(self) -> AttestationResult:
        """Verify the server now, unless that was done, and return the result.

        Raises:
            AttestationError: If the server is not to be trusted; it was sent nothing.
            ConnectionFailed: If the server cannot be reached.
        """
        return (await self._verified()).attestation

    @property
    def attestation(self) -> AttestationResult:
        """What was verified, and until when it holds."""
        return self._established().attestation

    @property
    def evidence(self) -> StoredEvidence:
        """What the server showed for `attestation`; `.dump()` is a file to verify again."""
        return self._established().shown

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """A context that shakes hands with the attested key only, for any HTTP library."""
        return self._established().ssl_context

    @property
    def url(self) -> str:
        """Where the server is, for any HTTP library."""
        return f"https://{self._session.address.authority}"

    async def models(self) -> list[ModelInfo]:
        """Return the models that the server has."""
        return await self._drive(self._calls.models())

    async def model(self, name: str) -> ModelInfo:
        """Return what one model expects and gives; see `Client.model`."""
        return await self._drive(self._calls.model(name))

    async def run_model(
        self,
        name: str,
        inputs: object,
        *,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's deadline, not the loop's
        receipt: bool = False,
    ) -> Result:
        """Run a model once; see `Client.run_model` for arguments and errors."""
        wish = await self._wish(receipt=receipt)
        call = self._calls.run_model(name, inputs, outputs=outputs, timeout=timeout, receipt=wish)
        return await self._drive(call)

    async def upload_model(
        self,
        model: Model,
        name: str | None = None,
        *,
        token: str | None = None,
        replace: bool = False,
        progress: Progress = None,
        timeout: float = LOAD_TIMEOUT,  # noqa: ASYNC109 - the server's time to load
        receipt: bool = False,
    ) -> ModelInfo:
        """Send a model to the server; see `Client.upload_model` for arguments and errors."""
        wish = await self._wish(receipt=receipt)
        with open_source(model) as source:
            request = self._calls.upload_request(
                source, name, token, replace=replace, timeout=timeout, receipt=wish
            )
            with watch(progress, name or source.name or "model", source.size) as advance:
                response = await self._through(
                    lambda channel: self._upload(
                        channel, request, source.chunks(advance), source.size
                    )
                )
            return self._calls.uploaded(response, source, wish)

    async def delete_model(self, name: str, *, token: str | None = None) -> None:
        """Take a model away from the server; see `Client.delete_model`."""
        await self._drive(self._calls.delete_model(name, token))

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self._channel is None:
            return f"<AsyncClient {self.url} not verified yet>"
        kind = "SIMULATED" if self.attestation.simulated else str(self.attestation.platform)
        return f"<AsyncClient {self.url} {kind}>"

    def _established(self) -> Channel:
        if self._channel is None:
            msg = 'the server is not verified yet: use "async with", or await connect() first'
            raise ConfigurationError(msg)
        return self._channel

    async def _verified(self) -> Channel:
        channel = self._session.current()
        if channel is None:
            channel = await asyncio.to_thread(self._session.channel)
        if self._channel is None and channel.attestation.simulated:
            warnings.warn(SIMULATION_WARNING, SimulationWarning, stacklevel=4)
        self._channel = channel
        return channel

    async def _wish(self, *, receipt: bool) -> ReceiptRequest | None:
        return ReceiptRequest((await self._verified()).shown) if receipt else None

    async def _drive(self, call: Call[T]) -> T:
        try:
            request = next(call)
            while True:
                request = call.send(await self._send(request))
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _send(self, request: Request) -> Response:
        seconds = self._session.timeout if request.timeout is None else request.timeout
        timeout = aiohttp.ClientTimeout(total=seconds)
        length = sum(map(len, request.body))
        headers = {**request.headers, "Content-Length": str(length)} if length else request.headers

        async def exchange(channel: Channel) -> Response:
            trace = _Trace()
            while True:
                body = b"".join(request.body) if length <= _JOIN_BYTES else _pieces(request)
                try:
                    return await self._exchange(
                        channel, request, headers, body or None, timeout, trace
                    )
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError) or not trace.reused:
                        raise
                    if not request.repeatable:
                        raise
                    # Closed while it lay idle: the request reached nobody.
                    trace.reused = False

        return await self._through(exchange)

    async def _upload(
        self, channel: Channel, request: Request, chunks: Iterator[memoryview], size: int | None
    ) -> Response:
        idle = self._session.timeout
        wait = idle if request.timeout is None else request.timeout
        headers = dict(request.headers)
        if size is not None:
            headers["Content-Length"] = str(size)
        now = asyncio.get_running_loop().time
        failures: list[BlindAIError] = []
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=idle)
        async with asyncio.timeout(idle) as limit:

            async def body() -> AsyncIterator[bytes]:
                try:
                    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                        limit.reschedule(now() + idle)
                        # A copy: the event loop may hold it longer than the piece lives.
                        yield bytes(chunk)
                except BlindAIError as error:
                    failures.append(error)
                    raise
                limit.reschedule(now() + wait)

            try:
                return await self._exchange(channel, request, headers, body(), timeout, _Trace())
            except aiohttp.ClientError:
                # aiohttp reports the file's failure as the connection's.
                if failures:
                    raise failures[0] from None
                raise

    async def _exchange(
        self,
        channel: Channel,
        request: Request,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes | memoryview] | None,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
        trace: _Trace,
    ) -> Response:
        proxy = self._session.proxy
        async with self._opened().request(
            request.method,
            URL(self.url + request.target, encoded=True),
            headers=headers,
            data=body,
            ssl=channel.ssl_context,
            allow_redirects=False,
            timeout=timeout,
            trace_request_ctx=trace,
            proxy=None if proxy is None else f"http://{proxy.address.authority}",
            proxy_headers=_proxy_headers(proxy.authorization) if proxy is not None else None,
        ) as answer:
            return await self._read(answer)

    async def _read(self, answer: aiohttp.ClientResponse) -> Response:
        head = Head(
            answer.status,
            {name.lower(): value for name, value in answer.headers.items()},
            keep_alive=False,
        )
        limit = self._max_response_bytes
        length = answer.content_length or 0
        if length > limit:
            raise LimitExceeded(too_large(limit))
        received = receive_buffer(head, length)
        position = 0
        async for piece in answer.content.iter_any():
            end = position + len(piece)
            if end > limit:
                raise LimitExceeded(too_large(limit))
            if end > len(received):
                # No length was announced: room for twice as much, so copies stay rare.
                larger = receive_buffer(head, min(limit, 2 * end))
                larger[:position] = received[:position]
                received = larger
            received[position:end] = piece
            position = end
        return Response(head.status, head.headers, received[:position])

    async def _through(self, send: Callable[[Channel], Awaitable[Response]]) -> Response:
        """Send over the channel; after a change of keys verify once more, and send once more."""
        channel = await self._verified()
        try:
            return await self._explained(send(channel))
        except aiohttp.ClientConnectorCertificateError:
            channel = await asyncio.to_thread(self._session.renew, channel)
            self._channel = channel
        try:
            return await self._explained(send(channel))
        except aiohttp.ClientConnectorCertificateError as error:
            raise BindingError(KEY_CHANGED_AGAIN) from error

    async def _explained(self, answer: Awaitable[Response]) -> Response:
        address, proxy, seconds = self._session.address, self._session.proxy, self._session.timeout
        try:
            return await answer
        except aiohttp.ClientConnectorCertificateError:
            raise
        except aiohttp.ClientHttpProxyError as error:
            msg = f"the proxy refused CONNECT {address} with HTTP status {error.status}"
            raise ConnectionFailed(msg) from error
        except aiohttp.ClientConnectorError as error:
            raise explain(error.os_error, address, proxy, seconds) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise explain(ConnectionResetError(), address, proxy, seconds) from error
        except aiohttp.ClientResponseError as error:
            msg = f"expected an HTTP/1.1 answer from {address}, came something else"
            raise ConnectionFailed(msg) from error
        except OSError as error:
            raise explain(error, address, proxy, seconds) from error
        except aiohttp.ClientError as error:
            raise explain(ConnectionAbortedError(), address, proxy, seconds) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._http is None:
            traces = aiohttp.TraceConfig()
            traces.on_connection_reuseconn.append(_note_reuse)
            self._http = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                # A receipt comes in a header, which takes more than aiohttp allows by default.
                max_field_size=MAX_HEAD_BYTES,
                skip_auto_headers=_AUTOMATIC_HEADERS,
                trace_configs=[traces],
            )
        return self._http


async def _note_reuse(_session: object, context: object, _parameters: object) -> None:
    trace = getattr(context, "trace_request_ctx", None)
    if isinstance(trace, _Trace):
        trace.reused = True


async def _pieces(request: Request) -> AsyncIterator[memoryview]:
    for piece in slices(request.body, _PIECE_BYTES):
        yield piece


def _proxy_headers(authorization: str | None) -> dict[str, str]:
    return {} if authorization is None else {"Proxy-Authorization": authorization}


def _too_large(limit: int) -> str:
    return f"the server's answer is larger than {limit} bytes, which is this client's limit"
