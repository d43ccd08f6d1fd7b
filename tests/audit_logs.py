"""What the tests of audit logs share: a server's keys, and a log that was written with them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from blindai.attestation import wire
from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.server.audit import AuditLog
from blindai.server.config import ServerConfig
from blindai.server.identity import Identity

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LIFETIME = timedelta(days=1)
MODEL = "a5" * 32


@dataclass(frozen=True)
class Person:
    """Somebody who proved who they are."""

    kind: str = "key"
    subject: str = "4f1d20b7a6c3e958"
    tenant: str = "clinic"


def identity(now=NOW):
    """Return keys and their evidence, of a simulated server."""
    config = ServerConfig(platform=Platform.SIMULATION, key_lifetime=LIFETIME)
    return Identity.create(SimulationAttester(), config, now=now)


def begin(log, keys):
    """Let a log sign with the keys of an identity."""
    log.begin(keys.keys.receipt, wire.dump_bundle(keys.attest(None)))


def write_log(path, keys=None, *, actions=2, now=NOW):
    """Write a log of some uploads, whose server was stopped; return the keys."""
    keys = keys or identity()
    log = AuditLog(path, now=lambda: now)
    begin(log, keys)
    for _ in range(actions):
        with log.action("upload", Person(), model=MODEL, size=1234):
            pass
    log.close()
    return keys
