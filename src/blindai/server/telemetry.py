"""What a server may tell those who make BlindAI: by default nothing, to nobody.

Always true: nothing is sent unless the operator named an address, and nothing at all where
`BLINDAI_DISABLE_TELEMETRY` or `DO_NOT_TRACK` is set, whatever else is. What is sent has no
identifier of anybody or anything: how the server runs, which version, and powers of ten. It is sent
once a day at most, for the first time after a day, so that restarts do not add to it; over
https with a certificate that the machine trusts, without waiting for it anywhere, and a failure
changes nothing but a count.

`Report.dump` is the only place that makes what is sent; `blindai telemetry show` prints its bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

import msgspec

from blindai.attestation.model import Platform
from blindai.endorsements import HttpsGet
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from blindai.server.load_history import Counts

DAY: Final = 86_400.0
CONTENT_TYPE: Final = "application/json"
SECONDS: Final = 10.0
"""For one report, connecting included."""
MAX_ANSWER_BYTES: Final = 4096
OFF: Final = ("BLINDAI_DISABLE_TELEMETRY", "DO_NOT_TRACK")
_FORMAT: Final = 1
_HTTPS: Final = 443
_MOST: Final = 10**9


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether anything is sent, and why.

    Attributes:
        endpoint: Where to; `None`: nothing is sent.
        reason: In words.
    """

    endpoint: str | None
    reason: str

    @property
    def port(self) -> int | None:
        """Of the endpoint; `None`: nothing is sent."""
        return None if self.endpoint is None else urlsplit(self.endpoint).port or _HTTPS


def choose(endpoint: str | None, environment: Mapping[str, str]) -> Choice:
    """Decide whether reports are sent.

    Args:
        endpoint: That the operator named; `None`: none.
        environment: Of this process. A variable of `OFF` that is set to anything but "0" and
            nothing at all counts.

    Raises:
        ConfigurationError: An endpoint that is not https, or that names a user.
    """
    if endpoint is not None:
        _check_endpoint(endpoint)
    for name in OFF:
        if environment.get(name, "").strip() not in {"", "0"}:
            return Choice(None, f"{name} is set: nothing is sent")
    if endpoint is None:
        return Choice(None, "no endpoint is set: nothing is sent")
    return Choice(endpoint, "the operator set an endpoint: once a day")


@dataclass(frozen=True, slots=True)
class Report:
    """What is sent, and nothing beside it.

    Attributes:
        version: Of BlindAI.
        platform: That makes evidence.
        requests: That the models which are loaded answered.
        failures: Requests that they failed at.
        models: That are loaded.
    """

    version: str
    platform: Platform
    requests: int
    failures: int
    models: int

    def dump(self) -> bytes:
        """Return the bytes that are sent: JSON, counts as powers of ten."""
        simulated = self.platform is Platform.SIMULATION
        return msgspec.json.encode(
            {
                "format": _FORMAT,
                "blindai": self.version,
                "mode": "simulation" if simulated else "hardware",
                "platform": str(self.platform),
                "requests": bucket(self.requests),
                "failures": bucket(self.failures),
                "models": bucket(self.models),
            }
        )


def bucket(count: int) -> str:
    """Return the power of ten that a count lies in, as "0", "1-9", "10-99" and so on."""
    if count <= 0:
        return "0"
    if count >= _MOST:
        return f"{_MOST}+"
    low = 10 ** (len(str(count)) - 1)
    return f"{low}-{low * 10 - 1}"


class Telemetry:
    """Sends reports, or does not. Its coroutine is for one event loop.

    Args:
        choice: Whether, and where to.
        post: Sends bytes to an address, bounded in time and in what it reads; may block.
        interval: Seconds before the first report, and between two.

    Attributes:
        choice: As it was passed.
        sent: Reports that were taken.
        failed: Reports that were not.
    """

    def __init__(
        self, choice: Choice, post: Callable[[str, bytes], object], *, interval: float = DAY
    ) -> None:
        self.choice = choice
        self.sent = 0
        self.failed = 0
        self._post = post
        self._interval = interval

    @classmethod
    def off(cls) -> Self:
        """Return what sends nothing."""
        return cls(choose(None, {}), lambda _endpoint, _content: None)

    async def send_for_ever(self, report: Callable[[], Report]) -> None:
        """Send a report after each interval, until cancelled; return at once if none is sent.

        Args:
            report: Makes one, as of now.
        """
        endpoint = self.choice.endpoint
        while endpoint is not None:
            await asyncio.sleep(self._interval)
            if await self._send(endpoint, report().dump()):
                self.sent += 1
            else:
                self.failed += 1

    async def _send(self, endpoint: str, content: bytes) -> bool:
        """Send from a thread of its own, which nobody waits for when the server ends."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()

        def settle(taken: bool) -> None:  # noqa: FBT001 - called by the loop
            if not done.done():
                done.set_result(taken)

        def send() -> None:
            try:
                self._post(endpoint, content)
            except Exception:  # noqa: BLE001 - whatever it is, serving goes on
                taken = False
            else:
                taken = True
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(settle, taken)

        threading.Thread(target=send, name="blindai-telemetry", daemon=True).start()
        return await done


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the unattested port says of telemetry.

    Attributes:
        enabled: Whether reports are sent.
        reason: Why, or why not.
        sent: Reports that were taken.
        failed: Reports that were not.
        payload: What would be sent now, byte for byte.
    """

    enabled: bool
    reason: str
    sent: int
    failed: int
    payload: msgspec.Raw


def describe(telemetry: Telemetry, report: Report) -> bytes:
    """Return what the unattested port says of telemetry, as JSON."""
    return msgspec.json.encode(
        Description(
            telemetry.choice.endpoint is not None,
            telemetry.choice.reason,
            telemetry.sent,
            telemetry.failed,
            msgspec.Raw(report.dump()),
        )
    )


def post_report(endpoint: str, content: bytes) -> None:
    """Send a report over https, bounded in time and in what is read of the answer.

    Raises:
        EndorsementError: The address is not https, or the answer is not HTTP 200.
        ConnectionFailed: There is no answer.
    """
    ask = HttpsGet(timeout=SECONDS, max_bytes=MAX_ANSWER_BYTES)
    ask.post(endpoint, content, content_type=CONTENT_TYPE)


def gather_report(platform: Platform, counts: Iterable[Counts], models: int) -> Report:
    """Return what a server would report now.

    Args:
        platform: That makes evidence.
        counts: What each model has served.
        models: That are loaded.
    """
    served = list(counts)
    return Report(
        metadata.version("blindai"),
        platform,
        sum(each.success.count for each in served),
        sum(each.fail.count for each in served),
        models,
    )


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_https = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_https = False
    if not is_https or parts.username is not None or not endpoint.isascii() or " " in endpoint:
        msg = "telemetry_endpoint: expected an https address without a user's name, came another"
        raise ConfigurationError(msg)
