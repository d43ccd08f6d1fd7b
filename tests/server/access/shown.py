"""What requests show, without requests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What one request shows of who sent it."""

    bearer_token: bytes | None = None
    peer: str = "192.0.2.1"
    client_certificate: bytes | None = None


class Clock:
    """Seconds that go on when a test says so."""

    def __init__(self, seconds=1_000_000.0):
        self.seconds = seconds

    def __call__(self):
        return self.seconds
