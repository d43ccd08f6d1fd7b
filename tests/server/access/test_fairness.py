"""Many requests of one party do not take the places, nor the turn, of another's few."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import RateLimited
from blindai.inference.scheduler import Scheduler
from blindai.server.access.accounts import Parties
from blindai.server.access.keys import create_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.testing.server import start_server
from tests.inference.fakes import FakeModel, entry, rows
from tests.inference.models import slow
from tests.server.talk import request


@given(st.integers(2, 40), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=99))
def test_there_is_always_a_place_for_who_has_none(places, steps):
    """Whatever came and went, a party without any run gets one, and none has more than half."""
    parties, running = Parties(places), {party: [] for party in "abcd"}
    for party, comes in steps:
        mine = running[party]
        if not comes and mine:
            mine.pop().close()
        elif comes:
            run = contextlib.ExitStack()
            try:
                assert run.enter_context(parties.run(party)) == len(mine)
            except RateLimited:
                assert mine
                assert len(mine) >= places // max(2, sum(map(bool, running.values())))
            else:
                mine.append(run)
        assert all(len(each) <= max(1, places // 2) for each in running.values())


class Slow(FakeModel):
    """Takes ten milliseconds."""

    def compute(self, tensor, outputs):
        time.sleep(0.01)
        return super().compute(tensor, outputs)


def test_the_few_do_not_wait_for_the_many():
    """A request of another party runs before most of a backlog that was there before it."""
    model, done = Slow(), []
    with contextlib.closing(Scheduler(workers=1, max_queue=99)) as scheduler:
        loaded = entry(model)
        for _ in range(3):  # so that it is known how long a run takes
            scheduler.submit(loaded, rows(0)).result()
        with model.gate_shut():
            waiting = [
                scheduler.submit(loaded, rows(n), behind=n, finish=lambda _, n=n: done.append(n))
                for n in range(20)
            ]
            waiting.append(scheduler.submit(loaded, rows(99), finish=lambda _: done.append(99)))
        for each in waiting:
            each.result()
    assert done.index(99) <= 2
    assert [each for each in done if each != 99] == list(range(20))


def test_anybody_floods_a_public_model(tmp_path):
    """Who is of no tenant gets half of the places; a tenant's requests are all answered."""
    _, token = create_key(
        tmp_path / "keys.json", name="k", scopes=[Scope.RUN], now=datetime.now(UTC), tenant="acme"
    )
    rules = AccessRules(api_keys=tmp_path / "keys.json", tenants={"acme": Quota()})
    body = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 400], "data": [1.0] * 400},
            ]
        }
    ).encode()
    over = threading.Event()

    def flood(server):
        found = set()
        while not over.is_set():
            found.add(request(server, "POST", "/v2/models/m/infer", body).status)
        return found

    with (
        start_server(
            models={"m": slow(100, 400)}, config={"access": rules, "runs": 1}, max_queue=7
        ) as server,
        ThreadPoolExecutor(12) as threads,
    ):
        floods = [threads.submit(flood, server) for _ in range(12)]
        headers = {"Authorization": f"Bearer {token}"}
        answers = [
            request(server, "POST", "/v2/models/m/infer", body, headers).status for _ in range(20)
        ]
        over.set()
        statuses = set().union(*(each.result() for each in floods))
    assert answers == [200] * 20
    assert statuses == {200, 429}
