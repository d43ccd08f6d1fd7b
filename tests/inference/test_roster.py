"""Turns, shares and sizes, without threads and clocks."""

from concurrent.futures import Future
from itertools import count

from blindai.inference.engine import RunHandle
from blindai.inference.ledger import Ledger, SchedulingOptions
from blindai.inference.queues import Request
from blindai.inference.roster import Roster

KEY = ((), ((2,),))
NUMBERS = count()


def request(ledger, *, arrived=0.0, priority=0, key=KEY, rows=1):
    return Request(
        entry=None,
        inputs=[],
        outputs=(),
        key=key,
        rows=rows,
        arrived=arrived,
        order=(arrived - priority, next(NUMBERS)),
        handle=RunHandle(),
        deadline=None,
        finish=list,
        future=Future(),
        ledger=ledger,
    )


def model(workers=1, **options):
    scheduling = SchedulingOptions(**({"max_batch": 16} | options))
    ledger = Ledger("0" * 64, scheduling, workers, batches=True)
    for size in (1, 2, 4, 8, 16):
        for _ in range(3):
            ledger.shape(KEY).batches(workers).record(size, 1.0)
    return ledger


def waiting(roster, ledger, number, **values):
    made = [request(ledger, **values) for _ in range(number)]
    for each in made:
        roster.add(each)
    return made


def choose(roster, now=0.0, *, idle=1, hurry=False):
    chosen, again_at = roster.choose(now, idle=idle, hurry=hurry)
    return (chosen[1] if chosen else None), again_at


def test_idle_workers_share_what_waits():
    """Small batches side by side, in as many lanes as are free."""
    roster, ledger = Roster(), model(workers=2)
    made = waiting(roster, ledger, 7)
    assert choose(roster, idle=2) == (made[:4], None)
    assert choose(roster, idle=1) == (made[4:], None)
    assert choose(roster) == (None, None)
    assert len(roster) == 0


def run_of(roster, ledger, number, now, *, seconds=1.0):
    """Let so many requests run together, from `now` for some seconds."""
    made = waiting(roster, ledger, number, arrived=now)
    assert choose(roster, now) == (made, None)
    ledger.per_run.add(seconds)
    roster.ended(ledger, number, now=now + seconds, seconds=seconds)


def test_a_group_waits_for_those_who_may_come_back():
    """As long as it was told to at most, and until all are there."""
    roster, ledger = Roster(), model(max_wait=2.0)
    run_of(roster, ledger, 3, 10.0)
    early = waiting(roster, ledger, 1, arrived=10.5)
    assert choose(roster, 11.0) == (None, 13.0)
    late = waiting(roster, ledger, 2, arrived=12.0)
    assert choose(roster, 12.0) == (early + late, None)
    roster.ended(ledger, 3, now=13.0, seconds=1.0)
    alone = waiting(roster, ledger, 1, arrived=13.5)
    assert choose(roster, 13.5) == (None, 15.5)
    assert choose(roster, 15.5) == (alone, None)


def test_a_group_waits_neither_when_full_nor_in_a_hurry():
    """There is nothing to wait for."""
    roster, ledger = Roster(), model(max_wait=2.0, max_batch=2)
    run_of(roster, ledger, 2, 10.0)
    (first,) = waiting(roster, ledger, 1, arrived=11.0)
    assert choose(roster, 11.0, hurry=True) == ([first], None)
    roster.ended(ledger, 1, now=12.0, seconds=1.0)
    run_of(roster, ledger, 2, 12.0)


def test_a_lone_caller_never_waits_for_company():
    """Nobody is expected: not beside the last run, nor any more long after a larger one."""
    roster, ledger = Roster(), model(max_wait=2.0)
    run_of(roster, ledger, 1, 10.0)
    run_of(roster, ledger, 1, 11.5)
    run_of(roster, ledger, 1, 13.0)
    run_of(roster, ledger, 1, 19.1)
    waiting(roster, ledger, 2, arrived=30.0)
    choose(roster, 30.0)
    roster.ended(ledger, 2, now=31.0, seconds=1.0)
    run_of(roster, ledger, 1, 37.1)


def test_a_group_that_waits_does_not_hold_up_others():
    """Other shapes and other models run meanwhile."""
    roster, ledger, other = Roster(), model(workers=9, max_wait=2.0), model(workers=9)
    run_of(roster, ledger, 2, 10.0)
    waiting(roster, ledger, 1, arrived=11.0)
    single = waiting(roster, ledger, 1, arrived=11.0, key=None)
    assert choose(roster, 11.0) == (single, None)
    roster.ended(ledger, 1, now=11.0, seconds=1.0)
    second = waiting(roster, other, 1, arrived=11.0)
    assert choose(roster, 11.0) == (second, None)
    assert choose(roster, 11.0) == (None, 13.0)


def test_no_more_runs_go_side_by_side_than_there_are_lanes():
    """However many workers are idle; other models may use those."""
    roster, ledger, other = Roster(), model(workers=4, instances=2, max_batch=1), model(workers=4)
    made = waiting(roster, ledger, 3)
    assert choose(roster, idle=4)[0] == made[:1]
    assert roster.may_have_more(ledger)
    assert choose(roster, idle=3)[0] == made[1:2]
    assert not roster.may_have_more(ledger)
    assert choose(roster, idle=2)[0] is None
    second = waiting(roster, other, 1)
    assert roster.may_have_more(ledger)
    assert choose(roster, idle=2)[0] == second
    roster.ended(ledger, 1, now=1.0, seconds=1.0)
    assert choose(roster, idle=2)[0] == made[2:]


def test_the_model_that_had_least_is_next():
    """Whatever the number of its requests, and whenever they came."""
    roster, one, two = Roster(), model(), model()
    first = waiting(roster, one, 1)
    second = waiting(roster, two, 1, arrived=5.0)
    one.queue.served, two.queue.served = 3.0, 1.0
    assert choose(roster)[0] == second
    assert choose(roster)[0] == first


def test_a_model_that_slept_has_no_credit():
    """Or it could take all workers for as long as it slept."""
    roster, busy, sleeper = Roster(), model(workers=2), model()
    busy.queue.served = 100.0
    busy.queue.running = 1
    waiting(roster, busy, 1)
    choose(roster)
    waiting(roster, sleeper, 1)
    assert sleeper.queue.served == 100.0


def test_urgency_counts_between_models_and_ends():
    """An urgent request lends its model seconds, not the machine."""
    roster, one, two = Roster(), model(), model()
    waiting(roster, one, 1)
    urgent = waiting(roster, two, 1, priority=5)
    one.queue.served, two.queue.served = 1.0, 4.0
    assert choose(roster)[0] == urgent
    two.queue.served = 7.0
    waiting(roster, two, 1, priority=5)
    assert choose(roster)[0] != urgent
    assert len(one.queue) == 0


def test_waiting_makes_old_requests_urgent():
    """None waits for ever behind urgent ones that keep coming."""
    roster, ledger = Roster(), model(max_batch=1)
    ledger.batches = False
    (old,) = waiting(roster, ledger, 1, arrived=0.0)
    waiting(roster, ledger, 3, arrived=11.0, priority=10)
    assert choose(roster)[0] == [old]


def test_one_that_left_is_out():
    """Whatever stands around it."""
    roster, ledger = Roster(), model()
    made = waiting(roster, ledger, 5)
    for index in (3, 0):
        roster.withdraw(made[index])
    assert list(roster) == [made[1], made[2], made[4]]
    assert choose(roster)[0] == [made[1], made[2], made[4]]


def test_shapes_that_are_remembered_are_bounded():
    """A peer chooses them."""
    ledger = model()
    for width in range(1000):
        ledger.shape(((), ((width,),)))
    assert len(ledger._shapes) == 64
