"""Kill a real server at random points; what it acknowledged has to be there, and nothing else.

A round is: start, compare what is served with what was acknowledged, run every model, begin to
upload, replace, rename and delete, and kill -9 everything at a random moment; sometimes already
while it starts, sometimes by SIGTERM. What was under way when it died may have happened or not;
either is right, half of it is not.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from tests.inference.models import model, value
from tests.served import Served, launch
from tests.server.talk import ask, authorized, connect, infer_body

WIDTH = 256
NAMES = 8
PIECE = 16 << 10
LONGEST_ROUND = 0.8


def scaled(constant: float) -> bytes:
    """Return a model of 256 KiB, y = constant * x, that no other constant gives."""
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32) * np.float32(constant), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = ["n", WIDTH]
    return model(
        [node], [value("x", shape=shape)], [value("y", shape=shape)], [weight]
    ).SerializeToString()


@dataclass
class Tally:
    """What was done, and what was lost.

    Attributes:
        rounds: Lives of a server, from its start to its death.
        killed: Phase → kills in it.
        stopped: Rounds that ended by SIGTERM.
        acknowledged: Uploads and deletions that were answered with success.
        compared: Models that were run after a restart.
        lost: Acknowledged, and not there.
        extra: There, and never asked for, or deleted.
        damaged: There, with other weights or none.
        leftovers: Files in the vault that belong to no model.
    """

    rounds: int = 0
    killed: collections.Counter = field(default_factory=collections.Counter)
    stopped: int = 0
    acknowledged: int = 0
    compared: int = 0
    lost: int = 0
    extra: int = 0
    damaged: int = 0
    leftovers: int = 0

    @property
    def losses(self) -> int:
        """All that must not be."""
        return self.lost + self.extra + self.damaged + self.leftovers


@dataclass
class Owner:
    """Uploads and deletes models, and remembers what was acknowledged.

    Attributes:
        kept: Name → constant, acknowledged.
        open: Name → constant that it may have as well (`None`: no such model), because the
            answer never came.
        phase: What is under way now.
    """

    dice: random.Random
    tally: Tally
    kept: dict[str, float] = field(default_factory=dict)
    open: dict[str, float | None] = field(default_factory=dict)
    phase: str = "nothing"
    number: int = 0

    def act(self, server: Served, stop: threading.Event) -> None:
        """Change models until the server is gone, or `stop` is set."""
        gone = (OSError, http.client.HTTPException)
        with contextlib.suppress(*gone), contextlib.closing(connect(server)) as connection:
            while not stop.is_set():
                self._change(server, connection)
                self.phase = "nothing"

    def _change(self, server: Served, connection: http.client.HTTPSConnection) -> None:
        name = f"m{self.dice.randrange(NAMES)}"
        if name in self.kept and self.dice.random() < 0.4:
            self.phase = "delete"
            self.open[name] = None
            reply = ask(connection, "DELETE", path_of(name), headers=authorized(server))
            self._acknowledge(name, reply.status, {204})
            return
        self.number += 1
        # Sometimes weights that are there under another name: one file, two names.
        again = self.kept and self.dice.random() < 0.2
        constant = self.dice.choice([*self.kept.values()]) if again else float(self.number)
        self.phase = "upload"
        self.open[name] = constant
        body = scaled(constant)

        def pieces():
            for start in range(0, len(body), PIECE):
                time.sleep(self.dice.random() * 0.002)
                yield body[start : start + PIECE]
            self.phase = "try, load and seal"

        headers = authorized(server, **{"Content-Length": str(len(body))})
        reply = ask(connection, "PUT", path_of(name, "?replace=true"), pieces(), headers)
        self._acknowledge(name, reply.status, {200, 201})

    def _acknowledge(self, name: str, status: int, expected: set[int]) -> None:
        if status not in expected:
            # Refused: what was there has to be there still. A server that stops may do so.
            assert status == 503, status
            del self.open[name]
            return
        self.tally.acknowledged += 1
        constant = self.open.pop(name)
        if constant is None:
            self.kept.pop(name)
        else:
            self.kept[name] = constant

    def compare(self, server: Served, vault: Path) -> None:
        """Look at all that is served, and run it; settle what was open."""
        with contextlib.closing(connect(server)) as connection:
            listed = ask(connection, "GET", "/blindai/v1/models").json()["models"]
            served = {entry["name"]: run(connection, entry["name"]) for entry in listed}
        self.tally.compared += len(served)
        for name in {*self.kept, *self.open, *served}:
            allowed = {self.kept.get(name)} | ({self.open[name]} if name in self.open else set())
            found = served.get(name)
            if found in allowed:
                continue
            if found is None:
                self.tally.lost += 1
            elif name not in self.kept and name not in self.open:
                self.tally.extra += 1
            else:
                self.tally.damaged += 1
        files = len(list(vault.iterdir())) - 1 if vault.exists() else 0  # one is the registry
        self.tally.leftovers += max(0, files - len(set(served.values())))
        self.kept, self.open = served, {}


def path_of(name: str, query: str = "") -> str:
    """Return where a model is put and deleted."""
    return f"/blindai/v1/models/{name}{query}"


def run(connection: http.client.HTTPSConnection, name: str) -> float:
    """Return by what a model multiplies; NaN: not by one number, or not at all."""
    body = infer_body([1.0] * WIDTH, shape=[1, WIDTH])
    reply = ask(connection, "POST", f"/v2/models/{name}/infer", body)
    if reply.status != 200:
        return float("nan")
    found = set(reply.json()["outputs"][0]["data"])
    return found.pop() if len(found) == 1 else float("nan")


def kill_rounds(folder: Path, rounds: int, *, seed: int) -> Tally:
    """Start and kill a server so many times, and once more to look.

    Args:
        folder: For its sealed models.
        rounds: How many times.
        seed: Decides what is done; when it is killed depends on the machine, too.
    """
    vault = folder / "vault"
    tally = Tally()
    owner = Owner(random.Random(seed), tally)
    dice = random.Random(seed + 1)
    start_seconds = 2.0
    while True:
        began = time.monotonic()
        server = launch("--sealed-models", vault, log=folder / "log")
        if tally.rounds < rounds and dice.random() < 0.2:
            time.sleep(dice.random() * start_seconds)
            server.kill()
            tally.rounds += 1
            tally.killed["restart"] += 1
            continue
        server.wait_until_ready()
        start_seconds = time.monotonic() - began
        owner.compare(server, vault)
        if tally.rounds == rounds:
            ended = server.stop()
            assert ended.status == 0, ended.log
            return tally
        tally.rounds += 1
        stop = threading.Event()
        acting = threading.Thread(target=owner.act, args=(server, stop))
        acting.start()
        time.sleep(dice.random() * LONGEST_ROUND)
        if dice.random() < 0.1:
            ended = server.stop()
            assert ended.status == 0, ended.log
            tally.stopped += 1
        else:
            tally.killed[owner.phase] += 1
            server.kill()
        stop.set()
        acting.join()
