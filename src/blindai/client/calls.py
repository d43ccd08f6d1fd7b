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
        if timeout is not None and not timeout > 0:
            msg = f"expected a timeout above 0 seconds, found {timeout}"
            raise InvalidInput(msg)
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


def _check_outputs(outputs: Sequence[str], info: ModelInfo) -> None:
    known = [spec.name for spec in info.outputs]
    unknown = [name for name in outputs if name not in known]
    if isinstance(outputs, str) or unknown:
        came = repr(outputs)[:100] if isinstance(outputs, str) else ", ".join(map(repr, unknown))
        msg = f"expected outputs as a list of names out of {', '.join(known)}; came {came}"
        raise InvalidInput(msg)


def _refused(name: str, expected: str, found: str) -> AppraisalError:
    mismatch = Mismatch(f"models.{name}", expected, found)
    return AppraisalError(f"the policy does not accept this model: {mismatch}", [mismatch])
