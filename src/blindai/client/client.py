"""The blocking client.

Always true: a request is sent only through the channel of a server that was verified and
whose result holds at that moment. When the server shows another key, it is verified once
more with the same policy, and the request is sent once more; if it does not fit, the
`AttestationError` is raised and the request was never sent.
"""

from __future__ import annotations

import ssl
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.client.calls import Call, Calls
from blindai.client.many import DEFAULT_CONNECTIONS, check_connections, run_in_order
from blindai.client.progress import Progress, watch
from blindai.client.receipts import request_receipt
from blindai.client.sequence import Sequence as StepSequence
from blindai.client.session import Channel, Session, resolve_policy
from blindai.client.streaming import (
    End,
    Parts,
    Track,
    check_beginning,
    cut_short,
    loop_parameters,
)
from blindai.client.transport import Transport
from blindai.client.upload import Model, open_source
from blindai.errors import BindingError, SimulationWarning

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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

MAX_RESPONSE_BYTES: Final = 1 << 30
# A server answers an upload when the model is loaded, which may take long.
LOAD_TIMEOUT: Final = 900.0
SIMULATION_WARNING: Final = (
    "this server runs in simulation: no hardware protects what is sent to it; use it for tests only"
)


def connect(  # noqa: PLR0913 - all but one are keywords
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
) -> Client:
    """Verify a server and return a client that talks to it, and to nobody else.

    Args:
        address: "host:port" of the attested port, or "host" for port 50051.
        policy: What to accept: a `Policy` or the path of a policy file.
        simulation: Accept a simulated server, which protects nothing: exactly
            `Policy.simulation()`. For tests; warns.
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
        AttestationError: If the server is not to be trusted; it was sent nothing.
        ConfigurationError: If the arguments or the policy cannot be used.
        ConnectionFailed: If the server cannot be reached.
    """
    session = Session(
        address,
        resolve_policy(policy, simulation=simulation),
        proxy=proxy,
        trust_env=trust_env,
        timeout=timeout,
        clock=clock,
        anchors=anchors,
        endorser=endorser,
    )
    client = Client(session, token=token, max_response_bytes=max_response_bytes)
    if client.attestation.simulated:
        warnings.warn(SIMULATION_WARNING, SimulationWarning, stacklevel=2)
    return client


class Client:
    """Talks to one verified server. Thread-safe; `blindai.connect` makes one.

    Args:
        session: Verified here, unless it was already.
        token: For what the server asks one for, such as uploading models.
        max_response_bytes: Greatest answer that is accepted.

    Raises:
        AttestationError: If the server is not to be trusted; it was sent nothing.
        ConnectionFailed: If the server cannot be reached.
    """

    def __init__(
        self,
        session: Session,
        *,
        token: str | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self._session = session
        self._max_response_bytes = max_response_bytes
        self._calls = Calls({} if session.policy is None else session.policy.models, token)
        self._transport = Transport(session.address, session.proxy)
        self._channel = session.channel()

    @property
    def attestation(self) -> AttestationResult:
        """What was verified, and until when it holds."""
        return self._channel.attestation

    @property
    def evidence(self) -> StoredEvidence:
        """What the server showed for `attestation`; `.dump()` is a file to verify again."""
        return self._channel.shown

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """A context that shakes hands with the attested key only, for any HTTP library.

        It outlives neither the server's keys nor its certificate: after a rotation, use the
        one that stands here then.
        """
        return self._channel.ssl_context

    @property
    def url(self) -> str:
        """Where the server is, for any HTTP library."""
        return f"https://{self._session.address.authority}"

    def models(self) -> list[ModelInfo]:
        """Return the models that the server has."""
        return self._drive(lambda _: self._calls.models())

    def model(self, name: str) -> ModelInfo:
        """Return what one model expects and gives.

        Args:
            name: Or the SHA-256 of its file, in hexadecimal.

        Raises:
            ModelNotFound: If the server has no such model.
        """
        return self._drive(lambda _: self._calls.model(name))

    def run_model(
        self,
        name: str,
        inputs: object,
        *,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        receipt: bool = False,
    ) -> Result:
        """Run a model once.

        Args:
            name: Of the model, or the SHA-256 of its file in hexadecimal.
            inputs: Name → value, or a sequence by position, or a single value where the
                model has one input. Values are numpy arrays, torch tensors, lists, scalars.
            outputs: Names of the outputs to return; all by default.
            timeout: Seconds after which the server stops the run.
            receipt: Ask for a signed receipt; it stands in `Result.receipt`.

        Raises:
            InvalidInput: If the inputs do not fit, with what was expected and what came.
            ModelNotFound: If the server has no such model.
            AppraisalError: If the policy names models and not this one, or other weights;
                the inputs were not sent.
            DeadlineExceeded: If it took longer than `timeout`.
            AttestationError: If the server changed its keys and is no longer accepted.
            ConnectionFailed: If the server cannot be reached.
        """
        return self._drive(
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
    ) -> Generator[Result]: ...

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
    ) -> Generator[Result | InferenceError | ConnectionFailed]: ...

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
    ) -> Generator[Any]:
        """Run a model on many inputs, several at a time, and yield the results in their order.

        Connections are kept and each is to the attested key; when the keys change, the server is
        verified once for all. Close the iterator, or take all of it, to be done.

        Args:
            name: Of the model, or the SHA-256 of its file in hexadecimal.
            inputs: What each run gets, as in `run_model`. Taken while the results are, by the
                same thread, and never more than two for each connection ahead of them.
            connections: How many runs are on their way at once, 1 to 64.
            outputs: Names of the outputs to return; all by default.
            timeout: Seconds after which the server stops each run.
            receipt: Ask for a signed receipt of each run.
            return_exceptions: Yield the `InferenceError` or `ConnectionFailed` of a run in its
                place and go on. By default it is raised, with a note that says of which run it
                is, when its turn comes, and the runs after it are lost. Any other error, such
                as one that says not to trust the server, is always raised.

        Raises:
            ConfigurationError: If there cannot be so many connections.
        """
        check_connections(connections)
        found: Generator[Any] = run_in_order(
            lambda item: self.run_model(
                name, item, outputs=outputs, timeout=timeout, receipt=receipt
            ),
            inputs,
            connections,
            return_exceptions=return_exceptions,
        )
        return found

    def stream(  # noqa: PLR0913 - all but two are keywords
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
        timeout: float | None = None,
    ) -> Generator[Result, None, str]:
        """Run a model in a loop on the server, and yield what each step gives as it is made.

        Outputs feed inputs on the server, so that nothing is sent between the steps::

            for result in client.stream(
                "decoder",
                {"tokens": prompt, "mask": ones},
                state={"past": "present"},
                greedy={"tokens": "logits"},
                grow=["mask"],
                stop=2,
                max_steps=200,
            ):
                print(result["tokens"])

        Close the iterator, or leave it, to end the loop. The server makes a step when there is
        room for its result, so that a slow reader stops the loop and fills no memory.

        Args:
            name: Of the model, or the SHA-256 of its file in hexadecimal.
            inputs: Of the first step, as in `run_model`. What is left out of `state` begins as
                zeros, in the model's own shape: a named dimension as large as in the inputs, one
                that remains open 0. What no argument mentions stays the same in each step.
            max_steps: At the most.
            state: Input → output whose value it takes in the next step.
            greedy: Input of tokens → output of scores: it takes the position of the greatest one
                on the last axis, for the last place of the axis before.
            grow: Inputs that get one more 1 on their last axis, as attention masks do.
            count: Inputs that become one more than their last element, as positions do.
            stop: Tokens; the loop ends when each row had one of them.
            outputs: What to return of each step: names of outputs, or of inputs in `greedy` for
                the tokens. By default the tokens; without `greedy` the outputs that are no state,
                or all if there are no others.
            timeout: Seconds after which the server stops a step.

        Returns:
            Why the loop ended: "stop" or "max_steps".

        Raises:
            InvalidInput: If the inputs, or what feeds what, do not fit.
            ModelNotFound: If the server has no such model.
            LimitExceeded: If the state becomes larger than the server keeps.
            AppraisalError: If the policy names models and not this one, or other weights.
            ConnectionFailed: If the server cannot be reached, or goes away before the end.
        """
        parameters = loop_parameters(
            max_steps=max_steps, state=state, greedy=greedy, grow=grow, count=count, stop=stop
        )
        limit = self._max_response_bytes

        def begin(channel: Channel) -> tuple[ModelInfo, Generator[Head | Response | memoryview]]:
            verb = self._calls.stream_request(
                name,
                inputs,
                parameters=parameters,
                state=state,
                tokens=greedy,
                outputs=outputs,
                timeout=timeout,
            )
            request, info = self._answered(verb, channel)
            seconds = self._session.timeout if request.timeout is None else request.timeout
            pieces = self._transport.stream(
                request, channel.ssl_context, timeout=seconds, limit=limit
            )
            try:
                check_beginning(next(pieces, None))
            except BaseException:
                pieces.close()
                raise
            return info, pieces

        info, pieces = self._through(begin)
        parts = Parts(limit)
        with closing(pieces):
            for piece in pieces:
                for part in parts.feed(piece) if isinstance(piece, memoryview) else ():
                    if isinstance(part, End):
                        return part.reason
                    yield self._calls.took(name, info, part)
        raise cut_short()

    def sequence(self, name: str, *, state: Mapping[str, str]) -> StepSequence:
        """Return a sequence: steps of a model whose state stays on the server between them.

        ::

            with client.sequence("cell", state={"h": "next_h"}) as sequence:
                for x in frames:
                    result = sequence.step({"x": x})

        Args:
            name: Of the model, or the SHA-256 of its file in hexadecimal.
            state: Input → output whose value it takes in the next step.

        Raises:
            InvalidInput: If there is no state.
        """
        return StepSequence(
            name, Track(state), self._calls, lambda verb: self._drive(lambda _: verb())
        )

    def upload_model(  # noqa: PLR0913 - all but two are keywords
        self,
        model: Model,
        name: str | None = None,
        *,
        token: str | None = None,
        replace: bool = False,
        progress: Progress = None,
        timeout: float = LOAD_TIMEOUT,
        receipt: bool = False,
        engine: str | None = None,
        precision: str | None = None,
        tolerance: float | None = None,
        max_batch: int | None = None,
        max_wait: float | None = None,
        threads: int | None = None,
        instances: int | None = None,
    ) -> ModelInfo:
        """Send a model to the server, in constant memory, and check that it arrived unchanged.

        Args:
            model: Path of an ONNX file, its bytes, or a file open for reading in binary.
            name: What to call it; by default the file's name without its ending.
            token: Instead of the client's own.
            replace: Whether a model with other weights may lose this name to it.
            progress: Told the bytes sent and the size; `True` or `False`: a bar or none; by
                default a bar for large models on a terminal.
            timeout: Seconds that the server may take to load it.
            receipt: Ask for a signed receipt; it stands in `ModelInfo.receipt`.
            engine: "onnx" or "openvino"; by default onnxruntime, or what has the precision.
            precision: "fp32" (as the file says, the default), "bf16", "int8", or "auto": the
                fastest on the server's machine that stays within `tolerance`.
            tolerance: Of "auto": the largest error of an output on random inputs, as a fraction
                of its largest element; 0.01 by default.
            max_batch: Rows of different requests that may run together; at most what the
                server's operator allows.
            max_wait: Seconds that a request may wait for others to run with.
            threads: Threads of one run under load; takes a second copy of the weights.
            instances: Runs at the same time.

        Raises:
            InvalidModel: If the server cannot serve it.
            ModelConflict: If the name belongs to other weights.
            LimitExceeded: If it is larger than the server accepts.
            AccessDenied: If the token is missing or gives no right to this.
            ConnectionFailed: If the server cannot be reached.
        """
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

                def send(channel: Channel) -> tuple[Response, ReceiptRequest | None]:
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
                    response = self._transport.upload(
                        request,
                        source.chunks(advance),
                        source.size,
                        channel.ssl_context,
                        idle=self._session.timeout,
                        limit=self._max_response_bytes,
                    )
                    return response, wish

                response, wish = self._through(send)
            return self._calls.uploaded(response, source, wish)

    def delete_model(self, name: str, *, token: str | None = None) -> None:
        """Take a model away from the server.

        Raises:
            ModelNotFound: If the server has no such model.
            AccessDenied: If the token is missing or gives no right to this.
        """
        self._drive(lambda _: self._calls.delete_model(name, token))

    def hand_over(self, measurements: Mapping[str, bytes], *, token: str | None = None) -> None:
        """Let the server's next code open the models that this one sealed; both can, until then.

        Args:
            measurements: Name, such as "pcr9", to value: of what is other in that code, as
                `blindai measure` computes it.
            token: Instead of the client's own.

        Raises:
            InvalidInput: If nothing is sealed, or its platform cannot.
            SealedDataError: If the models are shut to this server, too.
            AccessDenied: If the token is missing or gives no right to this.
        """
        self._drive(lambda _: self._calls.hand_over(measurements, token))

    def withdraw_handover(self, *, token: str | None = None, timeout: float = LOAD_TIMEOUT) -> None:
        """Let the server seal its models anew, so that what it handed over opens them no more.

        Args:
            token: Instead of the client's own.
            timeout: Seconds that the server may take.

        Raises:
            InvalidInput: If nothing is sealed.
            SealedDataError: If the models are shut to this server, or one of them is damaged.
            Overloaded: If the disk has no room for them a second time.
            AccessDenied: If the token is missing or gives no right to this.
        """
        self._drive(lambda _: self._calls.withdraw_handover(token, timeout))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "SIMULATED" if self.attestation.simulated else str(self.attestation.platform)
        return f"<Client {self.url} {kind}>"

    def _drive(self, verb: Callable[[Channel], Call[T]]) -> T:
        return self._through(lambda channel: self._answered(verb(channel), channel))

    def _answered(self, call: Call[T], channel: Channel) -> T:
        """Send what a verb asks, all of it over one channel, and return what it makes of it."""
        try:
            request = next(call)
            while True:
                seconds = self._session.timeout if request.timeout is None else request.timeout
                response = self._transport.send(
                    request, channel.ssl_context, timeout=seconds, limit=self._max_response_bytes
                )
                request = call.send(response)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _through(self, use: Callable[[Channel], T]) -> T:
        """Use the channel; after a change of keys verify once more, and begin once more."""
        self._channel = channel = self._session.channel()
        try:
            return use(channel)
        except ssl.SSLCertVerificationError:
            self._channel = channel = self._session.renew(channel)
        try:
            return use(channel)
        except ssl.SSLCertVerificationError as error:
            raise BindingError(KEY_CHANGED_AGAIN) from error


KEY_CHANGED_AGAIN: Final = (
    "the server showed another key right after it was verified: several servers may stand behind "
    "this address, or somebody between you and the enclave"
)
