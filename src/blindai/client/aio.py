"""The asyncio client: the verbs of `blindai.client.client.Client`, awaited.

Always true: as there. Verifying, and reading what is uploaded, runs in a thread, so it never
stalls the loop.
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.client.aio_many import run_in_order
from blindai.client.aio_transport import AsyncTransport
from blindai.client.calls import Call, Calls
from blindai.client.client import (
    KEY_CHANGED_AGAIN,
    LOAD_TIMEOUT,
    MAX_RESPONSE_BYTES,
    SIMULATION_WARNING,
)
from blindai.client.many import DEFAULT_CONNECTIONS, check_connections
from blindai.client.progress import Progress, watch
from blindai.client.receipts import request_receipt
from blindai.client.sequence import AsyncSequence
from blindai.client.session import Channel, Session, resolve_policy
from blindai.client.streaming import (
    End,
    Parts,
    Track,
    check_beginning,
    cut_short,
    loop_parameters,
)
from blindai.client.upload import Model, open_source
from blindai.errors import BindingError, ConfigurationError, SimulationWarning

if TYPE_CHECKING:
    import os
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from datetime import datetime

    from blindai.attestation.model import AttestationResult
    from blindai.attestation.policy import Policy
    from blindai.attestation.stored import StoredEvidence
    from blindai.client.http1 import Head
    from blindai.client.messages import Response
    from blindai.client.receipts import ReceiptRequest
    from blindai.client.results import ModelInfo, Result
    from blindai.endorsements import Endorser
    from blindai.errors import ConnectionFailed, InferenceError

T = TypeVar("T")


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
        self._transport = AsyncTransport(self._session.address, self._session.proxy)
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
        return await self._drive(lambda _: self._calls.models())

    async def model(self, name: str) -> ModelInfo:
        """Return what one model expects and gives; see `Client.model`."""
        return await self._drive(lambda _: self._calls.model(name))

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
        return await self._drive(
            lambda channel: self._calls.run_model(
                name,
                inputs,
                outputs=outputs,
                timeout=timeout,
                receipt=request_receipt(channel.shown, wanted=receipt),
            )
        )

    @overload
    def run_many(
        self,
        name: str,
        inputs: Iterable[object],
        *,
        connections: int = DEFAULT_CONNECTIONS,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        receipt: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> AsyncGenerator[Result]: ...

    @overload
    def run_many(
        self,
        name: str,
        inputs: Iterable[object],
        *,
        connections: int = DEFAULT_CONNECTIONS,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        receipt: bool = False,
        return_exceptions: bool,
    ) -> AsyncGenerator[Result | InferenceError | ConnectionFailed]: ...

    def run_many(
        self,
        name: str,
        inputs: Iterable[object],
        *,
        connections: int = DEFAULT_CONNECTIONS,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        receipt: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Any]:
        """Run a model on many inputs; see `Client.run_many` for arguments and errors."""
        check_connections(connections)
        found: AsyncGenerator[Any] = run_in_order(
            lambda item: self.run_model(
                name, item, outputs=outputs, timeout=timeout, receipt=receipt
            ),
            inputs,
            connections,
            return_exceptions=return_exceptions,
        )
        return found

    async def stream(  # noqa: PLR0913 - all but two are keywords
        self,
        name: str,
        inputs: object,
        *,
        max_steps: int,
        state: Mapping[str, str] = {},
        greedy: Mapping[str, str] = {},
        grow: Sequence[str] = (),
        count: Sequence[str] = (),
        stop: int | Sequence[int] = (),
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's deadline, not the loop's
    ) -> AsyncGenerator[Result]:
        """Run a model in a loop on the server, and yield what each step gives as it is made.

        See `Client.stream` for arguments and errors. An iterator that is left before its end
        holds its connection until it is closed (`contextlib.aclosing`).
        """
        parameters = loop_parameters(
            max_steps=max_steps, state=state, greedy=greedy, grow=grow, count=count, stop=stop
        )
        limit = self._max_response_bytes

        async def begin(
            channel: Channel,
        ) -> tuple[ModelInfo, AsyncGenerator[Head | Response | memoryview]]:
            verb = self._calls.stream_request(
                name,
                inputs,
                parameters=parameters,
                state=state,
                tokens=greedy,
                outputs=outputs,
                timeout=timeout,
            )
            request, info = await self._answered(verb, channel)
            seconds = self._session.timeout if request.timeout is None else request.timeout
            pieces = self._transport.stream(
                request, channel.ssl_context, timeout=seconds, limit=limit
            )
            try:
                check_beginning(await anext(pieces, None))
            except BaseException:
                await pieces.aclose()
                raise
            return info, pieces

        info, pieces = await self._through(begin)
        parts = Parts(limit)
        async with aclosing(pieces):
            async for piece in pieces:
                for part in parts.feed(piece) if isinstance(piece, memoryview) else ():
                    if isinstance(part, End):
                        return
                    yield self._calls.took(name, info, part)
        raise cut_short()

    def sequence(self, name: str, *, state: Mapping[str, str]) -> AsyncSequence:
        """Return a sequence of steps whose state stays on the server; see `Client.sequence`."""
        return AsyncSequence(
            name, Track(state), self._calls, lambda verb: self._drive(lambda _: verb())
        )

    async def upload_model(  # noqa: PLR0913 - all but two are keywords
        self,
        model: Model,
        name: str | None = None,
        *,
        token: str | None = None,
        replace: bool = False,
        progress: Progress = None,
        timeout: float = LOAD_TIMEOUT,  # noqa: ASYNC109 - the server's time to load
        receipt: bool = False,
        engine: str | None = None,
        precision: str | None = None,
        tolerance: float | None = None,
        max_batch: int | None = None,
        max_wait: float | None = None,
        threads: int | None = None,
        instances: int | None = None,
    ) -> ModelInfo:
        """Send a model to the server; see `Client.upload_model` for arguments and errors."""
        options = {
            "engine": engine,
            "precision": precision,
            "tolerance": tolerance,
            "max_batch": max_batch,
            "max_wait": max_wait,
            "threads": threads,
            "instances": instances,
        }
        with open_source(model) as source:
            with watch(progress, name or source.name or "model", source.size) as advance:

                async def send(channel: Channel) -> tuple[Response, ReceiptRequest | None]:
                    wish = request_receipt(channel.shown, wanted=receipt)
                    request = self._calls.upload_request(
                        source,
                        name,
                        token,
                        replace=replace,
                        timeout=timeout,
                        receipt=wish,
                        options=options,
                    )
                    async with aclosing(_pieces(source.chunks(advance))) as chunks:
                        response = await self._transport.upload(
                            request,
                            chunks,
                            source.size,
                            channel.ssl_context,
                            idle=self._session.timeout,
                            limit=self._max_response_bytes,
                        )
                    return response, wish

                response, wish = await self._through(send)
            return self._calls.uploaded(response, source, wish)

    async def delete_model(self, name: str, *, token: str | None = None) -> None:
        """Take a model away from the server; see `Client.delete_model`."""
        await self._drive(lambda _: self._calls.delete_model(name, token))

    async def hand_over(
        self, measurements: Mapping[str, bytes], *, token: str | None = None
    ) -> None:
        """Let the server's next code open its sealed models; see `Client.hand_over`."""
        await self._drive(lambda _: self._calls.hand_over(measurements, token))

    async def withdraw_handover(
        self,
        *,
        token: str | None = None,
        timeout: float = LOAD_TIMEOUT,  # noqa: ASYNC109 - the server's time to seal
    ) -> None:
        """Let the server seal its models anew; see `Client.withdraw_handover`."""
        await self._drive(lambda _: self._calls.withdraw_handover(token, timeout))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

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

    async def _drive(self, verb: Callable[[Channel], Call[T]]) -> T:
        return await self._through(lambda channel: self._answered(verb(channel), channel))

    async def _answered(self, call: Call[T], channel: Channel) -> T:
        """Send what a verb asks, all of it over one channel, and return what it makes of it."""
        try:
            request = next(call)
            while True:
                seconds = self._session.timeout if request.timeout is None else request.timeout
                response = await self._transport.send(
                    request, channel.ssl_context, timeout=seconds, limit=self._max_response_bytes
                )
                request = call.send(response)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _through(self, use: Callable[[Channel], Awaitable[T]]) -> T:
        """Use the channel; after a change of keys verify once more, and begin once more."""
        channel = await self._verified()
        try:
            return await use(channel)
        except ssl.SSLCertVerificationError:
            self._channel = channel = await asyncio.to_thread(self._session.renew, channel)
        try:
            return await use(channel)
        except ssl.SSLCertVerificationError as error:
            raise BindingError(KEY_CHANGED_AGAIN) from error


async def _pieces(chunks: Iterator[memoryview]) -> AsyncGenerator[bytes]:
    # Read in a thread: a disk may be slow. A copy: the event loop may hold it longer than the
    # piece lives.
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield bytes(chunk)
