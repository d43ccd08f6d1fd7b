"""What each verb asks, in which order, and what it refuses: once for both clients.

Always true: nothing here sends. A verb is a generator that yields requests and is sent the
answers, so a blocking and an asyncio client can drive the same one. Where the policy names
models, inputs go only to weights that it names, addressed by their SHA-256: a name that is
moved to other weights in the meantime leads nowhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from msgspec import structs

from blindai.attestation.model import Mismatch
from blindai.channel.statement import Kind
from blindai.client.answers import (
    check_status,
    parse_model,
    parse_record,
    parse_records,
    parse_result,
)
from blindai.client.messages import (
    Request,
    Response,
    authorization,
    check_name,
    delete_request,
    handover_request,
    infer_request,
    list_request,
    model_request,
    upload_request,
    withdrawal_request,
)
from blindai.client.receipts import digest_body
from blindai.errors import AppraisalError, InvalidInput, ModelNotFound
from blindai.inference.tensors import coerce_inputs

if TYPE_CHECKING:
    from blindai.client.receipts import ReceiptRequest
    from blindai.client.results import ModelInfo, Result
    from blindai.client.streaming import Track
    from blindai.client.upload import Source

T = TypeVar("T")
Call = Generator[Request, Response, T]


class Calls:
    """The verbs, and what is remembered between them.

    Args:
        allowed: The policy's models: name → SHA-256 of the weights; empty: any.
        token: Presented with every request, unless a verb brings its own; or `None`.

    Raises:
        ConfigurationError: If the token could not stand in a header.
    """

    def __init__(self, allowed: Mapping[str, frozenset[bytes]], token: str | None) -> None:
        self._headers = authorization(token)
        self._allowed = {
            name: frozenset(digest.hex() for digest in digests) for name, digests in allowed.items()
        }
        self._known: dict[str, ModelInfo] = {}

    def models(self) -> Call[list[ModelInfo]]:
        """Ask for the list of models."""
        response = yield list_request(self._headers)
        check_status(response)
        return parse_records(response)

    def model(self, name: str) -> Call[ModelInfo]:
        """Ask what one model expects, and remember it."""
        response = yield model_request(name, self._headers)
        self._known.pop(name, None)
        check_status(response)
        self._known[name] = info = parse_model(response)
        return info

    def delete_model(self, name: str, token: str | None) -> Call[None]:
        """Ask for a model to be taken away."""
        response = yield delete_request(name, self._presenting(token))
        self._known.pop(name, None)
        check_status(response)

    def hand_over(self, measurements: Mapping[str, bytes], token: str | None) -> Call[None]:
        """Ask for the sealed models to be opened to other code."""
        check_status((yield handover_request(measurements, self._presenting(token))))

    def withdraw_handover(self, token: str | None, timeout: float) -> Call[None]:
        """Ask for the sealed models to be sealed anew."""
        check_status((yield withdrawal_request(self._presenting(token), timeout)))

    def upload_request(
        self,
        source: Source,
        name: str | None,
        token: str | None,
        *,
        replace: bool,
        timeout: float,
        receipt: ReceiptRequest | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Request:
        """Return the request that precedes the bytes of `source`.

        Raises:
            InvalidInput: If there is no name, or none that a model can have.
        """
        chosen = source.name if name is None else name
        if chosen is None:
            msg = "expected a name for the model: bytes and open files have none; pass name=…"
            raise InvalidInput(msg)
        return upload_request(
            check_name(chosen),
            self._presenting(token),
            replace=replace,
            timeout=timeout,
            parameters={
                **({} if receipt is None else receipt.parameters()),
                **{key: value for key, value in (options or {}).items() if value is not None},
            },
        )

    def uploaded(
        self, response: Response, source: Source, receipt: ReceiptRequest | None = None
    ) -> ModelInfo:
        """Return the model that the server now holds, if it is the one that was sent."""
        check_status(response)
        info = source.check_received(parse_record(response))
        self._known.pop(info.name, None)
        if receipt is None:
            return info
        digest = bytes.fromhex(info.sha256)
        taken = receipt.take(response, Kind.UPLOAD, model_sha256=info.sha256, request_sha256=digest)
        return replace(info, receipt=taken)

    def run_model(
        self,
        name: str,
        inputs: object,
        *,
        outputs: Sequence[str] | None,
        timeout: float | None,
        receipt: ReceiptRequest | None = None,
    ) -> Call[Result]:
        """Run a model once; see `blindai.Client.run_model`."""
        _check_timeout(timeout)
        self._check_allowed(name)
        info = self._known.get(name)
        if info is not None:
            try:
                return (yield from self._run(name, info, inputs, outputs, timeout, receipt))
            except (InvalidInput, ModelNotFound):
                # The name may belong to other weights than when it was looked up.
                latest = yield from self.model(name)
                if latest == info:
                    raise
                return (yield from self._run(name, latest, inputs, outputs, timeout, receipt))
        info = yield from self.model(name)
        return (yield from self._run(name, info, inputs, outputs, timeout, receipt))

    def _run(
        self,
        name: str,
        info: ModelInfo,
        inputs: object,
        outputs: Sequence[str] | None,
        timeout: float | None,
        receipt: ReceiptRequest | None,
    ) -> Call[Result]:
        self._check_weights(name, info.sha256)
        tensors = coerce_inputs(inputs, info.inputs)
        if outputs is not None:
            _check_outputs(outputs, info)
        target = info.key if self._allowed else name
        request = infer_request(
            target,
            tensors,
            self._headers,
            outputs=outputs,
            timeout=timeout,
            parameters=None if receipt is None else receipt.parameters(),
        )
        response = yield request
        check_status(response)
        result = parse_result(response)
        self._check_weights(name, result.model_sha256)
        if self._allowed or info.sha256 == name:
            self._check_same(name, info.sha256, result.model_sha256)
        elif result.model_sha256 != info.sha256:
            self._known.pop(name, None)
        if receipt is not None:
            result.receipt = receipt.take(
                response,
                Kind.RUN,
                model_sha256=result.model_sha256,
                request_sha256=digest_body(request.body),
            )
        return result

    def stream_request(
        self,
        name: str,
        inputs: object,
        *,
        parameters: Mapping[str, object],
        state: Mapping[str, str],
        tokens: Mapping[str, str],
        outputs: Sequence[str] | None,
        timeout: float | None,
    ) -> Call[tuple[Request, ModelInfo]]:
        """Return the request for a streamed answer; see `blindai.Client.stream`.

        Args:
            name: Of the model.
            inputs: Of the first step; of `state` what is known.
            parameters: What feeds what.
            state: Input → output.
            tokens: Inputs that can be shown beside the outputs.
            outputs: That are wanted.
            timeout: Seconds for each step.
        """
        self._check_allowed(name)
        info = yield from self.model(name)
        if outputs is not None:
            _check_outputs(outputs, info, [*tokens])
        request = self._stepped_request(name, info, inputs, state, outputs, timeout, parameters)
        target = request.target.removeprefix("/v2").removesuffix("/infer")
        return structs.replace(request, target=f"/blindai/v1{target}/stream"), info

    def step(
        self,
        name: str,
        track: Track,
        inputs: object,
        *,
        outputs: Sequence[str] | None,
        timeout: float | None,
    ) -> Call[Result]:
        """Make one step of a sequence; see `blindai.client.sequence.Sequence.step`."""
        parameters = track.next()
        self._check_allowed(name)
        if track.info is None:
            track.info = yield from self.model(name)
        info = track.info
        if outputs is not None:
            _check_outputs(outputs, info)
        state = track.state
        if track.steps:
            # After the first step the state is inside.
            left = tuple(spec for spec in info.inputs if spec.name not in state)
            info, state = replace(info, inputs=left), {}
        request = self._stepped_request(name, info, inputs, state, outputs, timeout, parameters)
        response = yield request
        check_status(response)
        track.steps += 1
        return self.took(name, track.info, parse_result(response))

    def end_sequence(self, name: str, track: Track) -> Call[None]:
        """Ask for the state of a sequence to be let go of."""
        if track.info is not None:
            target = track.info.key if self._allowed else name
            parameters = track.last()
            check_status(
                (
                    yield infer_request(
                        target,
                        [],
                        self._headers,
                        outputs=None,
                        timeout=None,
                        parameters=parameters,
                    )
                )
            )

    def took(self, name: str, info: ModelInfo, result: Result) -> Result:
        """Return a result, if it is of the weights that were asked for."""
        self._check_weights(name, result.model_sha256)
        if self._allowed or info.sha256 == name:
            self._check_same(name, info.sha256, result.model_sha256)
        return result

    def _stepped_request(
        self,
        name: str,
        info: ModelInfo,
        inputs: object,
        state: Mapping[str, str],
        outputs: Sequence[str] | None,
        timeout: float | None,
        parameters: Mapping[str, object],
    ) -> Request:
        """Return the request for a step; what it leaves out of `state` begins as zeros."""
        _check_timeout(timeout)
        self._check_weights(name, info.sha256)
        given = inputs if isinstance(inputs, Mapping) else {}
        specs = [spec for spec in info.inputs if spec.name not in state or spec.name in given]
        return infer_request(
            info.key if self._allowed else name,
            coerce_inputs(inputs, specs),
            self._headers,
            outputs=outputs,
            timeout=timeout,
            parameters=parameters,
        )

    def _presenting(self, token: str | None) -> Mapping[str, str]:
        return self._headers if token is None else authorization(token)

    def _check_allowed(self, name: str) -> None:
        """Refuse a model that the policy does not name, before anything is sent."""
        check_name(name)
        if not self._allowed or name in self._allowed or self._is_allowed_digest(name):
            return
        expected = f"one of {', '.join(sorted(self._allowed))}"
        raise _refused(name, expected, f"{name!r}, which the policy does not name")

    def _check_weights(self, name: str, sha256: str) -> None:
        if not self._allowed:
            return
        expected = self._allowed.get(name, frozenset({name}))
        if sha256 not in expected:
            words = " or ".join(f"sha256:{digest}" for digest in sorted(expected))
            raise _refused(name, words, f"sha256:{sha256}")

    def _check_same(self, name: str, asked: str, found: str) -> None:
        if asked != found:
            raise _refused(name, f"sha256:{asked}, which was asked for", f"sha256:{found}")

    def _is_allowed_digest(self, name: str) -> bool:
        return any(name in digests for digests in self._allowed.values())


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout > 0:
        msg = f"expected a timeout above 0 seconds, found {timeout}"
        raise InvalidInput(msg)


def _check_outputs(outputs: Sequence[str], info: ModelInfo, tokens: Sequence[str] = ()) -> None:
    known = [spec.name for spec in info.outputs] + [*tokens]
    unknown = [name for name in outputs if name not in known]
    if isinstance(outputs, str) or unknown:
        came = repr(outputs)[:100] if isinstance(outputs, str) else ", ".join(map(repr, unknown))
        msg = f"expected outputs as a list of names out of {', '.join(known)}; came {came}"
        raise InvalidInput(msg)


def _refused(name: str, expected: str, found: str) -> AppraisalError:
    mismatch = Mismatch(f"models.{name}", expected, found)
    return AppraisalError(f"the policy does not accept this model: {mismatch}", [mismatch])
