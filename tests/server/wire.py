"""A connection without a network, for tests of what stands on one."""

import asyncio

from blindai.server.exchange import Exchange
from blindai.server.request import Request
from tests.server.answers import parse_answers


class Wire:
    """A connection without a network: gives an exchange its body, and keeps its answer."""

    stamp = b"date: today\r\nserver: blindai"

    def __init__(self, pieces=(), *, ends=True, headers=(), path=b"/x", query=b"", method="GET"):
        self.written = []
        self.aborted = self.is_over = self._is_coming = False
        self.pieces = list(pieces)
        self._ends = ends
        headers = dict([(b"host", b"a"), *headers])
        self.exchange = Exchange(
            self, method, path, query, "1.1", headers, repeated=(), keep_alive=True
        )
        if not self.pieces and ends:
            self.exchange.finish()

    @property
    def loop(self):
        return asyncio.get_running_loop()

    def write(self, data):
        self.written.append(bytes(data))

    async def drain(self):
        pass

    def pause_reading(self):
        pass

    def resume_reading(self):
        """Deliver the next piece, a little later, as a network does."""
        if not self._is_coming:
            self._is_coming = True
            self.loop.call_soon(self._deliver)

    def _deliver(self):
        self._is_coming = False
        if self.pieces:
            self.exchange.feed(self.pieces.pop(0))
        elif not self._ends:
            self.exchange.lose()
        if not self.pieces and self._ends:
            self.exchange.finish()

    def ended(self, exchange):
        self.is_over = exchange is self.exchange

    def abort(self):
        self.aborted = True

    @property
    def request(self) -> Request:
        return Request(self.exchange)

    @property
    def answer(self):
        (answer,) = parse_answers(b"".join(self.written))
        return answer

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return self.answer.headers

    @property
    def body(self) -> bytes:
        return self.answer.body
