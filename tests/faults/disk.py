"""Disks that are full, that cannot be written, and that give back other bytes than they got."""

from __future__ import annotations

import contextlib
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kill import path_of, run, scaled
from tests.served import Served, serving
from tests.server.talk import Reply, ask, authorized, connect, request


@dataclass(frozen=True, slots=True)
class Finding:
    """What a fault did.

    Attributes:
        faults: That were made.
        losses: Acknowledged models that were not there afterwards, or were others.
        said: What happened instead, in a sentence.
    """

    faults: int
    losses: int
    said: str


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "4m"):
    """Mount a small file system; `None` where that is not allowed."""
    folder.mkdir()
    options = f"size={size},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def put(server: Served, name: str, constant: float) -> Reply:
    """Upload a model."""
    return request(
        server, "PUT", path_of(name, "?replace=true"), scaled(constant), authorized(server)
    )


def served(server: Served) -> dict[str, float]:
    """Return name → by what it multiplies, of all models; each is run."""
    with contextlib.closing(connect(server)) as connection:
        listed = ask(connection, "GET", "/blindai/v1/models").json()["models"]
        return {entry["name"]: run(connection, entry["name"]) for entry in listed}


def losses(found: dict[str, float], kept: dict[str, float]) -> int:
    """Return how many models are not as they have to be."""
    return sum(found.get(name) != kept.get(name) for name in {*found, *kept})


def full(disk: Path) -> Finding:
    """Upload until a disk is full; then make room, and go on."""
    kept: dict[str, float] = {}
    refused = lost = 0
    with serving("--sealed-models", disk / "vault") as server:
        for number in range(40):
            reply = put(server, f"m{number}", number + 1.0)
            if reply.status == 201:
                kept[f"m{number}"] = number + 1.0
                continue
            assert (reply.status, reply.error) == (503, "Overloaded"), reply.body
            assert int(reply.headers["retry-after"]) > 0
            refused += 1
        assert refused
        assert kept
        lost += losses(served(server), kept)
        assert request(server, "DELETE", path_of("m0"), headers=authorized(server)).status == 204
        del kept["m0"]
        reply = put(server, "again", 99.0)
        assert reply.status == 201, reply.body
        kept["again"] = 99.0
        lost += losses(served(server), kept)
        server.kill()
    with serving("--sealed-models", disk / "vault") as server:
        lost += losses(served(server), kept)
        files = len(list((disk / "vault").iterdir()))
        assert files == 1 + len(kept), files
    said = f"{refused} uploads refused with 503, {len(kept)} models kept and run; room made is used"
    return Finding(refused, lost, said)


def read_only(disk: Path) -> Finding:
    """Take the right to write away under a running server, start on such a disk, give it back."""
    kept = {"a": 2.0, "b": 3.0}
    vault, lost = disk / "vault", 0
    with serving("--sealed-models", vault) as server:
        for name, constant in kept.items():
            assert put(server, name, constant).status == 201
        remount(disk, "ro")
        try:
            refused = [
                put(server, "c", 4.0),
                put(server, "a", 5.0),
                request(server, "DELETE", path_of("b"), headers=authorized(server)),
            ]
            assert {reply.status for reply in refused} == {503}, refused
            lost += losses(served(server), kept)
            server.kill()
            with serving("--sealed-models", vault) as again:
                lost += losses(served(again), kept)
                assert put(again, "c", 4.0).status == 503
        finally:
            remount(disk, "rw")
    with serving("--sealed-models", vault) as server:
        lost += losses(served(server), kept)
        assert put(server, "c", 4.0).status == 201
        lost += losses(served(server), kept | {"c": 4.0})
    return Finding(
        4, lost, "4 changes refused with 503, predictions and a restart worked; writable again"
    )


def remount(disk: Path, how: str) -> None:
    """Let a file system be written, or not."""
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def corrupted(folder: Path, rounds: int, *, seed: int) -> Finding:
    """Damage sealed files in every way, start, look; mend them, start, look again."""
    dice = random.Random(seed)
    vault = folder / "vault"
    kept = {f"m{number}": number + 1.0 for number in range(6)}
    with serving("--sealed-models", vault) as server:
        for name, constant in kept.items():
            assert put(server, name, constant).status == 201
    good = {path: path.read_bytes() for path in vault.iterdir()}
    registry = vault / "registry.sealed"
    lost = faults = 0
    for number in range(rounds):
        files = [path for path in good if path != registry]
        dice.shuffle(files)
        for path, damage in zip(files, damages(dice, good[files[-1]]), strict=False):
            damage(path)
            faults += 1
        with serving("--sealed-models", vault) as server:
            found = served(server)
            # One of six was left alone. The others are not there, or they would be other weights.
            lost += losses(found, kept | dict.fromkeys(kept.keys() - found.keys())) + (
                len(found) != 1
            )
            assert len(server.ready["failed"]) == 5, server.ready["failed"]
            assert not any(name in str(server.ready["failed"]) for name in kept)
        restore(good)
        if number % 3 == 0:  # and the list of them all
            faults += 1
            flip(dice, registry)
            with serving("--sealed-models", vault) as server:
                lost += bool(served(server))
                assert put(server, "new", 1.0).status == 503
            restore(good)
    with serving("--sealed-models", vault) as server:
        lost += losses(served(server), kept)
    return Finding(
        faults,
        lost,
        "the damaged are not served and told of by digest, the others are; mended, all",
    )


def damages(dice: random.Random, other: bytes):
    """Return ways to damage a file."""
    return (
        lambda path: flip(dice, path),
        lambda path: path.write_bytes(path.read_bytes()[: dice.randrange(1, path.stat().st_size)]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(other),
        lambda path: path.unlink(),
    )


def flip(dice: random.Random, path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def restore(good: dict[Path, bytes]) -> None:
    """Write files as they were."""
    for path, content in good.items():
        path.write_bytes(content)
