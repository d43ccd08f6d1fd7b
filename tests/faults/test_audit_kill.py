"""A server killed at any moment has written down whatever it acknowledged, and changed no line."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from blindai.attestation.policy import Policy
from blindai.audit import verify_audit_log
from blindai.channel.audit import parse_entry
from tests.inference.models import add
from tests.server.talk import ask, connect

ROUNDS = 4


def change(server, acknowledged):
    """Upload and delete as fast as it goes, until the server is gone; note what it says is done."""
    headers = {"Authorization": f"Bearer {server.token}"}
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        contextlib.closing(connect(server)) as connection,
    ):
        for number in range(100_000):
            content = add(float(number))
            path = f"/blindai/v1/models/m{number}"
            if ask(connection, "PUT", path, content, headers).status == 201:
                acknowledged.append(("upload", hashlib.sha256(content).hexdigest()))
            if ask(connection, "DELETE", path, None, headers).status == 204:
                acknowledged.append(("delete", hashlib.sha256(content).hexdigest()))


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Of every upload and deletion that was acknowledged before `kill -9` there is an entry."""
    path, token = tmp_path / "audit.jsonl", tmp_path / "token"
    command = [Path(sys.executable).with_name("blindai"), "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--no-grpc", "--no-fetch-endorsements"]
    command += ["--audit-log", path, "--token-file", token, "--log-level", "error", "--json"]
    # What a killed server leaves behind is then in the test's own folder.
    environment = {**os.environ, "BLINDAI_STORE": str(tmp_path / "store")}
    (tmp_path / "store").mkdir()
    chance = random.Random(7)
    acknowledged, entries = [], []
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            address = json.loads(process.stdout.readline())["attested"]
            server = SimpleNamespace(address=address, token=token.read_text().strip())
            client = threading.Thread(target=change, args=(server, acknowledged))
            client.start()
            time.sleep(0.5 + chance.random())
            process.kill()
            client.join(30)
        with path.open("rb") as file:
            result = verify_audit_log(file, Policy.simulation(), now=datetime.now(UTC))
        assert len(result.open) <= len(result.results)
        lines = path.read_bytes().splitlines(keepends=True)
        entries = [parse_entry(line[:-1]) for line in lines if line.endswith(b"\n")]
    assert len(result.results) == ROUNDS
    begun = {(e.event, e.model) for e in entries if e.outcome == "begun"}
    assert len(acknowledged) > ROUNDS
    assert set(acknowledged) <= begun
