"""What a clock that jumps does to a server: to its keys, its models, and to who verifies it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np

import blindai
from blindai.errors import AttestationError
from tests.faults.clock import Clock
from tests.faults.disk import Finding, losses, put, served
from tests.served import Served, serving
from tests.server.talk import request

DAY = 86_400
# Forward by a minute, a day, a year, ten; back by the same; and to where it was.
JUMPS = (60, DAY, 365 * DAY, 3650 * DAY, -60, -DAY, -365 * DAY, -3650 * DAY, 0)


def jumps(folder: Path) -> Finding:
    """Let the clock jump under a server that seals, and start servers at wrong times."""
    if not Clock.is_possible():
        return Finding(0, 0, "skipped: no C compiler, or another dynamic loader")
    clock = Clock(folder)
    kept = {"a": 2.0, "b": 3.0}
    options = ("--sealed-models", folder / "models" / "vault")
    lost = refused = 0
    with serving(*options, prefix=clock.prefix) as server:
        for name, constant in kept.items():
            assert put(server, name, constant).status == 201
        for seconds in JUMPS:
            clock.jump(seconds)
            time.sleep(1.2)  # for a tick of the listener
            lost += losses(served(server), kept)
            assert put(server, "a", 2.0).status in {200, 201}
            assert not dated(server, seconds)
        verified(server)
        assert server.stop().status == 0
    for seconds in (3650 * DAY, -3650 * DAY, 40 * DAY, 0):
        clock.jump(seconds)
        with serving(*options, prefix=clock.prefix) as server:
            lost += losses(served(server), kept)
            try:
                verified(server)
            except AttestationError:
                refused += 1
    said = (
        "models and predictions stay; a server that started at a wrong time is refused by who "
        f"verifies it ({refused} of 3)"
    )
    return Finding(len(JUMPS) + 4, lost + (refused != 3), said)


def dated(server: Served, seconds: int) -> str:
    """Return what is wrong with the date of an answer; the shim has to have done its work."""
    date = request(server, "GET", "/v2/health/live").headers["date"]
    told = time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    return "" if abs(told - time.time() - seconds) < 30 else date


def verified(server: Served) -> None:
    """Predict as a client does, which verifies first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        with blindai.connect(server.address, simulation=True) as client:
            client.run_model("a", {"x": np.ones((1, 256), np.float32)})
