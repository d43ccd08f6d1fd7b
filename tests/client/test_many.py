"""Many runs over several connections, on both clients."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import warnings

import numpy as np
import pytest

import blindai
from tests.client.fakes import FakeServer, error

ROW = np.array([[1, 2]], np.float32)


def rows(count):
    return [ROW * (step + 1) for step in range(count)]


def run_many(server, kind, inputs, *, take=None, **options):
    """Return what a client of a kind yields, all of it or the first `take`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        if kind == "async":
            return asyncio.run(_awaited(server, inputs, take, options))
        with (
            blindai.connect(server.address, simulation=True) as client,
            contextlib.closing(client.run_many("double", inputs, **options)) as found,
        ):
            return _first(found, take)


async def _awaited(server, inputs, take, options):
    async with blindai.AsyncClient(server.address, simulation=True) as client:
        found = []
        async with contextlib.aclosing(client.run_many("double", inputs, **options)) as results:
            async for result in results:
                found.append(result)
                if len(found) == take:
                    break
        return found


def _first(results, take):
    found = []
    for result in results:
        found.append(result)
        if len(found) == take:
            break
    return found


both = pytest.mark.parametrize("kind", ["sync", "async"])


def slowly(server, delays):
    """Make runs take as long as `delays` says of their first element; count those at once."""
    lock, now, most = threading.Lock(), [0], [0]

    def answer(method, target, headers, body):
        if method == "POST":
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            first = int(np.frombuffer(body[-8:], "<f4")[0])
            time.sleep(delays(first))
            with lock:
                now[0] -= 1
        return server.serve_model(method, target, headers, body)

    server.answer = answer
    return most


@both
def test_results_come_in_order(server, kind):
    """However long each run takes, the results stand in the order of the inputs."""
    slowly(server, lambda first: 0.03 if first % 4 == 1 else 0.0)
    found = run_many(server, kind, rows(40), connections=5)
    assert [result["y"][0, 0] for result in found] == [2 * (step + 1) for step in range(40)]


@both
@pytest.mark.parametrize("connections", [1, 3])
def test_never_more_at_once_than_connections(server, kind, connections):
    """As many runs are on their way as there are connections, and no more."""
    most = slowly(server, lambda _: 0.02)
    run_many(server, kind, rows(15), connections=connections)
    assert most == [connections]
    # One more for evidence.
    assert server.connections == connections + 1


@both
def test_an_endless_source(server, kind):
    """Inputs are taken only as far ahead of the results as is allowed."""
    taken = [0]

    def endless():
        while True:
            taken[0] += 1
            yield ROW

    assert len(run_many(server, kind, endless(), connections=2, take=5)) == 5
    assert taken[0] <= 5 + 2 * 2


@both
def test_nothing_runs_on_after_the_end(server, kind):
    """What was not begun when the iteration ends is never sent."""
    slowly(server, lambda _: 0.05)
    run_many(server, kind, rows(50), connections=2, take=1)
    runs = len([method for method, _ in server.verbs if method == "POST"])
    time.sleep(0.2)
    assert runs == len([method for method, _ in server.verbs if method == "POST"])
    assert runs <= 5


def failing(server, which):
    """Make the runs fail whose first element is in `which`."""

    def answer(method, target, headers, body):
        if method == "POST" and int(np.frombuffer(body[-8:], "<f4")[0]) in which:
            return error(400, "InvalidInput", "not this one")
        return server.serve_model(method, target, headers, body)

    server.answer = answer


@both
def test_an_error_says_of_which_run_it_is(server, kind):
    """The error of a run is raised when its turn comes, with its number."""
    failing(server, {8})
    with pytest.raises(blindai.InvalidInput, match="not this one") as caught:
        run_many(server, kind, rows(20))
    assert "run 7 of run_many" in caught.value.__notes__[0]


@both
def test_errors_in_the_place_of_results(server, kind):
    """With `return_exceptions` the runs after one that failed go on."""
    failing(server, {3, 8})
    found = run_many(server, kind, [*rows(10), np.zeros((1, 9))], return_exceptions=True)
    wrong = [index for index, one in enumerate(found) if isinstance(one, blindai.InvalidInput)]
    assert (len(found), wrong) == (11, [2, 7, 10])


@both
def test_a_server_that_is_not_trusted_ends_them_all(server, kind):
    """An AttestationError is never returned: nothing else may be sent."""
    inputs = iter(rows(40))

    def replaced():
        for step, row in enumerate(inputs):
            if step == 9:
                server.rotate()
                server.evidence = lambda _: b""
            yield row

    with pytest.raises(blindai.EvidenceError):
        run_many(server, kind, replaced(), connections=3, return_exceptions=True)
    assert len(list(inputs)) > 20


@both
def test_a_restart_is_verified_once_for_all(server, kind):
    """New keys in the middle cost one verification, whatever the number of connections."""

    def restarted():
        for step, row in enumerate(rows(60)):
            if step == 30:
                server.rotate()
            yield row

    found = run_many(server, kind, restarted(), connections=6)
    assert [result["y"][0, 0] for result in found] == [2 * (step + 1) for step in range(60)]
    assert len([None for _, target, _, _ in server.requests if "/evidence" in target]) == 2


@both
@pytest.mark.parametrize("connections", [0, -1, 65])
def test_connections_that_cannot_be(server, kind, connections):
    """A number of connections out of range is refused at the call."""
    with pytest.raises(blindai.ConfigurationError, match="1 to 64 connections"):
        run_many(server, kind, [], connections=connections)


@both
def test_no_inputs_no_results(server, kind):
    """Nothing in, nothing out, nothing sent."""
    assert run_many(server, kind, []) == []
    assert server.verbs == []


def test_sixty_four_requests_at_once():
    """An AsyncClient has 64 requests on their way on one core, each with its own answer."""
    with FakeServer() as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        most = slowly(server, lambda _: 0.3)

        async def main():
            async with blindai.AsyncClient(server.address, simulation=True) as client:
                await client.model("double")
                return await asyncio.gather(*(client.run_model("double", row) for row in rows(64)))

        found = asyncio.run(main())
    assert most[0] > 48
    assert [result["y"][0, 0] for result in found] == [2 * (step + 1) for step in range(64)]
