"""What a streamed answer and a sequence are, for both clients: nothing here sends.

Always true: a part is returned when all of it came, and only with the weights that were asked for;
an answer that ends without saying that it is complete is an error; no more of it is held than one
part. A sequence's identifier is 128 random bits, made here, and stands in no error and no repr.

Specification: `blindai.server.streaming` and `blindai.server.stepping` say what is spoken.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from blindai.client.answers import check_status, parse_result
from blindai.client.http1 import Head
from blindai.client.messages import JSON_HEADER_LENGTH, Response, too_large
from blindai.errors import ConnectionFailed, InferenceError, InvalidInput, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from blindai.client.results import ModelInfo, Result

FRAMES: Final = "application/x-blindai-frames"
CUT_SHORT: Final = "the streamed answer ended before it was complete"
_JSON_LENGTH: Final = 4
_LENGTHS: Final = _JSON_LENGTH + 8
_SECRET_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class End:
    """The last part of a complete answer.

    Attributes:
        reason: "stop": each row had a token that stops; "max_steps": there were so many.
        steps: That were made.
    """

    reason: str
    steps: int


class _Document(msgspec.Struct):
    final: bool = False
    reason: str = ""
    steps: int = 0
    error: str | None = None


def loop_parameters(
    *,
    max_steps: int,
    state: Mapping[str, str],
    greedy: Mapping[str, str],
    grow: Sequence[str],
    count: Sequence[str],
    stop: int | Sequence[int],
) -> dict[str, object]:
    """Return the parameters that say what feeds what; see `blindai.Client.stream`."""
    loop = {
        "max_steps": max_steps,
        "state": dict(state),
        "greedy": dict(greedy),
        "grow": list(grow),
        "count": list(count),
        "stop": [stop] if isinstance(stop, int) else list(stop),
    }
    return {"loop": loop}


def check_beginning(found: Head | Response | memoryview | None) -> None:
    """Refuse what begins no streamed answer.

    Raises:
        InferenceError: What the server says went wrong, or an answer of another type.
        AccessDenied: If the token is missing or gives no right to this.
    """
    if isinstance(found, Response):
        check_status(found)
    kind = found.headers.get("content-type") if isinstance(found, Head) else None
    if kind != FRAMES or not isinstance(found, Head) or found.status != 200:  # noqa: PLR2004
        msg = f"expected {FRAMES} from the server, came another answer"
        raise InferenceError(msg)


class Parts:
    """Cuts a streamed answer into its parts.

    Args:
        limit: Of one part, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Result | End]:
        """Yield the parts that are complete with `data`; take all of them before the next call.

        Raises:
            InferenceError: What the server says went wrong, or a part that is malformed.
            LimitExceeded: A part is larger than the limit.
        """
        self._waiting += data
        while len(self._waiting) >= _LENGTHS:
            json_length = int.from_bytes(self._waiting[:_JSON_LENGTH], "little")
            size = json_length + int.from_bytes(self._waiting[_JSON_LENGTH:_LENGTHS], "little")
            if size > self._limit:
                raise LimitExceeded(too_large(self._limit))
            if len(self._waiting) < _LENGTHS + size:
                return
            part = self._waiting[_LENGTHS : _LENGTHS + size]
            del self._waiting[: _LENGTHS + size]
            yield _parse_part(memoryview(part), json_length)


def _parse_part(part: memoryview, json_length: int) -> Result | End:
    """Read one part of an answer; its arrays are views of its memory."""
    try:
        found = msgspec.json.decode(part[:json_length], type=_Document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        msg = f"the server's answer is malformed: {error}"
        raise InferenceError(msg) from error
    if found.error is not None:
        check_status(Response(500, {}, part[:json_length]))
    if found.final:
        return End(found.reason[:100], found.steps)
    return parse_result(Response(200, {JSON_HEADER_LENGTH: str(json_length)}, part))


@dataclass(slots=True)
class Track:
    """Where a sequence is, as far as the client knows.

    Attributes:
        state: Input → output.
        info: Of the model; `None`: not looked up yet.
        steps: That succeeded.
        is_over: No more are made.
    """

    state: Mapping[str, str]
    info: ModelInfo | None = None
    steps: int = 0
    is_over: bool = False
    _id: str = field(default_factory=lambda: secrets.token_hex(_SECRET_BYTES), repr=False)

    def __post_init__(self) -> None:
        if not self.state:
            msg = "state: expected at least one input: output, came none"
            raise InvalidInput(msg)

    def next(self) -> dict[str, object]:
        """Return the parameters of the next step.

        Raises:
            InvalidInput: The sequence was closed.
        """
        if self.is_over:
            msg = "expected a sequence that is open, came one that was closed"
            raise InvalidInput(msg)
        parameters: dict[str, object] = {"sequence_id": self._id, "sequence_step": self.steps}
        if not self.steps:
            parameters |= {"sequence_start": True, "sequence_state": dict(self.state)}
        return parameters

    def last(self) -> dict[str, object]:
        """Return the parameters that end the sequence."""
        return {"sequence_id": self._id, "sequence_end": True}


def cut_short() -> ConnectionFailed:
    """Return the error of an answer that ended early."""
    return ConnectionFailed(CUT_SHORT)
