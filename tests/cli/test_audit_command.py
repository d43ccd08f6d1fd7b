"""`blindai audit verify` as an auditor runs it: a file, a policy, and no network."""

import json
from datetime import UTC, datetime

import pytest

from blindai.server.audit import AuditLog
from tests.audit_logs import MODEL, Person, begin, identity


@pytest.fixture
def log(tmp_path):
    """A log of one upload, written now."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    begin(log, identity(datetime.now(UTC)))
    with log.action("upload", Person(), model=MODEL):
        pass
    log.close()
    return path


def test_whole_log(blindai, log):
    """Without a policy nobody vouches for the signer; simulation is told as what it is."""
    done = blindai("audit", "verify", log)
    assert done.returncode == 0
    assert "nobody vouches for who signed it" in done.stdout
    assert "entries: 4" in done.stdout
    assert "shows only with --head" in done.stdout
    done = blindai("audit", "verify", log, "--simulation")
    assert done.returncode == 0
    assert "SIMULATED" in done.stdout


def test_json(blindai, log):
    """The head that is printed is what the next run is given."""
    found = json.loads(blindai("audit", "verify", log, "--simulation", "--json").stdout)
    assert (found["entries"], found["verified"], found["simulated"]) == (4, False, True)
    assert found["keys"][0]["platform"] == "simulation"
    again = blindai("audit", "verify", log, "--head", f"sha256:{found['head']}")
    assert again.returncode == 0
    assert "--head" not in again.stdout
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    cut = blindai("audit", "verify", log, "--head", found["head"])
    assert cut.returncode == 3
    assert "something was taken away" in cut.stderr


def test_changed_line(blindai, log):
    """The first line that differs is named, and the exit code says not to trust it."""
    log.write_bytes(log.read_bytes().replace(b'"clinic"', b'"office"'))
    done = blindai("audit", "verify", log)
    assert done.returncode == 3
    assert "DIFFERS  line 2: " in done.stderr
    done = blindai("audit", "verify", log, "--json")
    assert json.loads(done.stdout)["error"].startswith("line 2: ")


@pytest.mark.parametrize("arguments", [["missing"], ["--head", "abc", "log"]])
def test_settings(blindai, tmp_path, log, arguments):
    """A file that is not there and a head that is none are the caller's settings."""
    arguments = [str(log) if each == "log" else each for each in arguments]
    assert blindai("audit", "verify", *arguments).returncode == 2
