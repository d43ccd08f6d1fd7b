"""What releases are made with: one wheel twice, whole bills, no audit that passes by luck."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.programs import DEPLOY, load
from tests.docs.pages import ROOT

RELEASE = DEPLOY / "release"
CYCLONEDX = ROOT / ".venv-audit" / "bin" / "cyclonedx-py"
LOCK = (
    "a==1 \\\n    --hash=sha256:"
    + "0" * 64
    + "\nb==2 ; python_version < '4' \\\n"
    + ("    --hash=sha256:" + "1" * 64 + " \\\n    --hash=sha256:" + "2" * 64 + "\n")
)
LOCKED = {("a", "1"): {"0" * 64}, ("b", "2"): {"1" * 64, "2" * 64}}


@pytest.fixture
def sbom():
    return load("release/sbom.py")


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.syspath_prepend(RELEASE)
    return load("release/audit.py")


@pytest.fixture
def wheel():
    return load("release/wheel.py")


def has_commits():
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_commits(), reason="the wheel is built from a commit, and here is none")
def test_the_wheel_is_the_same_twice(tmp_path):
    """Two builds of HEAD under different conditions are one file, with its digest beside it."""
    command = [sys.executable, RELEASE / "wheel.py", "--python", sys.executable]
    done = subprocess.run(
        [*command, "--output", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "built twice, identical" in done.stdout
    check = ["sha256sum", "--check", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path, check=True, capture_output=True)
    (statement,) = tmp_path.glob("*.intoto.json")
    digest = (tmp_path / "SHA256SUMS").read_text().split()[0]
    said = json.loads(statement.read_text())
    assert said["subject"][0]["digest"] == {"sha256": digest}
    commit = said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"]
    assert len(commit) == 40


@pytest.mark.skipif(not has_commits(), reason="the wheel is built from a commit, and here is none")
def test_a_difference_would_show(wheel, tmp_path):
    """What is compared are the bytes: another time in the archive is another wheel."""
    built = [
        wheel.build(Path(sys.executable), tmp_path / epoch, epoch, wheel.CONDITIONS[0]).read_bytes()
        for epoch in ("1000000000", "1000000002")
    ]
    assert built[0] != built[1]


def test_locks_are_read(sbom):
    """Names, versions and every hash of a lock are read; a line without a hash is refused."""
    assert sbom.load_lock(LOCK) == LOCKED
    for lock in ("a==1\n", "a>=1 --hash=sha256:" + "0" * 64, "-e ."):
        with pytest.raises(SystemExit, match="expected NAME==VERSION with hashes"):
            sbom.load_lock(lock)


@pytest.mark.parametrize("name", ["client.txt", "server.txt", "vm.txt", "build.txt", "audit.txt"])
def test_our_locks_are_hashed(sbom, name):
    """Every package of what is shipped, and of what ships it, is pinned with hashes."""
    text = (ROOT / "requirements" / name).read_text()
    assert len(sbom.load_lock(text)) > 5
    assert "://" not in text


def component(name, version, *digests):
    hashes = [{"alg": "SHA-256", "content": digest} for digest in digests]
    return {"name": name, "version": version, "externalReferences": [{"hashes": hashes}]}


def test_bills_that_are_not_whole_are_refused(sbom):
    """A package or hash too few or too many is named."""
    first, second = component("a", "1", "0" * 64), component("B", "2", "1" * 64, "2" * 64)
    assert sbom.compare({"components": [first, second]}, LOCKED) == []
    assert sbom.compare({"components": [first]}, LOCKED) == ["b 2 is locked and not listed"]
    extra = component("c", "3")
    problems = sbom.compare({"components": [first, second, extra]}, LOCKED)
    assert problems == ["c 3 is listed and not locked"]
    poor = component("b", "2", "1" * 64)
    problems = sbom.compare({"components": [first, poor]}, LOCKED)
    assert problems == ["b 2 is listed with other hashes"]


@pytest.mark.skipif(not CYCLONEDX.exists(), reason="make sbom installs cyclonedx-py")
def test_the_bill_of_the_client(tmp_path):
    """The real tool's bill has every package of the lock, with licence and version of our own."""
    command = [sys.executable, RELEASE / "sbom.py", "--cyclonedx", CYCLONEDX, "--output", tmp_path]
    for _ in range(2):
        subprocess.run([*command, "client.txt"], check=True, capture_output=True)
    bill = json.loads((tmp_path / "blindai-client.cdx.json").read_text())
    assert bill["metadata"]["component"]["name"] == "blindai"
    assert {"cbor2", "cryptography", "dcap-qvl"} <= {each["name"] for each in bill["components"]}


def report(*entries):
    return json.dumps({"dependencies": list(entries), "fixes": []})


FINE = [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": []}]
KNOWN = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found and could not be audited: b (2)"}


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        (report(*FINE), 0, "2 packages were looked up"),
        (report(FINE[0], KNOWN), 1, "b 2: PYSEC-1, fixed in 3"),
        (report(FINE[0], SKIPPED), 2, "NOT AUDITED, which is no pass: 1 of 2"),
        (report(FINE[0]), 2, "NOT AUDITED, which is no pass: 1 of 2"),
        (report(FINE[0], FINE[1] | {"version": "3"}), 2, "NOT AUDITED"),
        (report(), 2, "NOT AUDITED, which is no pass: 2 of 2"),
        ("", 2, "pip-audit failed: no route"),
        ("[]", 2, "pip-audit failed: no route"),
    ],
)
def test_an_audit_passes_only_if_everything_was_looked_up(audit, output, code, words):
    """Nothing known is a pass only where each locked package was looked up, in its version."""
    found, lines = audit.judge(output, "Traceback\nno route", LOCKED)
    assert found == code
    assert words in " ".join(lines)


def test_offline_is_no_pass(tmp_path):
    """A pip-audit that could ask nobody says that nothing is known and exits with 0: we with 2."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!/bin/sh\necho '{report(SKIPPED)}'\necho 'No known vulnerabilities' >&2\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, RELEASE / "audit.py", "--pip-audit", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert "client.txt: NOT AUDITED, which is no pass" in done.stdout
    assert "server.txt" not in done.stdout
