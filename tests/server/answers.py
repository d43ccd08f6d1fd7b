"""Read what a server sent, with a reader that forgives nothing."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.server.talk import raw

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]+")
_HEADER = re.compile(rb"([a-z0-9-]+): ([ -~]+)")


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def parse_answers(data: bytes, *, heads: tuple[int, ...] = ()) -> list[Answer]:
    """Return the answers in a connection's bytes; `heads` are positions of answers to HEAD."""
    answers: list[Answer] = []
    final = 0
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(first)
        assert status, first
        code = int(status[1])
        found = [_HEADER.fullmatch(line) for line in lines]
        assert all(found), lines
        names = [match[1] for match in found]
        assert len(names) == len(set(names)), names
        headers = {match[1]: match[2] for match in found}
        body = b""
        if code >= 200:
            assert "transfer-encoding" not in headers
            if code != 204 and final not in heads:
                length = int(headers[b"content-length"])
                body, data = data[:length], data[length:]
                assert len(body) == length, (body, length)
            final += 1
        answers.append(Answer(code, headers, body))
    return answers


def ask_all(server, cases: list[bytes]) -> dict[bytes, list[Answer]]:
    """Return the answers to each, on a connection of its own, asked side by side."""
    with ThreadPoolExecutor(12) as clients:
        received = clients.map(lambda data: parse_answers(raw(server, data)), cases)
        return dict(zip(cases, received, strict=True))
