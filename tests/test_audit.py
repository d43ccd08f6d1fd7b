"""Whatever is changed in an audit log is seen, and the first line that differs is named."""

from datetime import timedelta

import msgspec
import pytest

from blindai.attestation.model import Platform
from blindai.attestation.policy import Policy
from blindai.audit import verify_audit_log
from blindai.channel.audit import Head, parse_entry, sign_entry
from blindai.errors import (
    AppraisalError,
    AttestationError,
    BindingError,
    EvidenceError,
    SignatureError,
)
from blindai.server.audit import AuditLog
from blindai.server.config import ServerConfig
from blindai.server.identity import Identity
from blindai.testing.fake_sev_snp import FakeAMD
from tests.audit_logs import LIFETIME, MODEL, NOW, Person, begin, identity, write_log


@pytest.fixture
def path(tmp_path):
    """A log of two uploads."""
    path = tmp_path / "audit.jsonl"
    write_log(path)
    return path


def verify(path, policy=None, **more):
    """Verify a log at the time of its writing."""
    with path.open("rb") as file:
        return verify_audit_log(file, policy, **{"now": NOW, **more})


def forge(path, key, *, change):
    """Write a log again from its second line on, as who owns the disk and has a key can."""
    lines = path.read_bytes().splitlines()
    head, forged = Head().after(lines[0]), lines[:1]
    for line in lines[1:]:
        entry = msgspec.structs.replace(parse_entry(line), previous=head.sha256, **change)
        forged.append(sign_entry(entry, key))
        head = head.after(forged[-1])
    path.write_bytes(b"\n".join(forged) + b"\n")


def test_whole_log(path):
    """A log as it was written is whole; with a policy, its keys are those of a known server."""
    assert verify(path).results == ()
    result = verify(path, Policy.simulation())
    assert result.simulated
    assert result.open == ()
    assert result.head.entries == 6


def test_every_changed_byte_is_seen(path):
    """No byte of a log can be another, wherever it is."""
    content = path.read_bytes()
    lines = content.split(b"\n")
    # A sample: of the first line, which is long for its evidence, every 97th.
    where = [*range(0, len(lines[0]), 97), *range(len(lines[0]), len(content) - 1, 5)]
    for position in where:
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(AttestationError, match=r"^line \d: "):
            verify(path)


def test_first_line_that_differs_is_named(path):
    """A tenant changed in the second line is told as the second line."""
    path.write_bytes(path.read_bytes().replace(b'"clinic"', b'"office"', 1))
    with pytest.raises(SignatureError, match=r"^line 2: "):
        verify(path)


@pytest.mark.parametrize("removed", [0, 1, 3])
def test_removed_line(path, removed):
    """A line that is taken out from before others is missed."""
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[removed]
    path.write_bytes(b"".join(lines))
    with pytest.raises(EvidenceError, match=f"line {removed + 1}: expected entry {removed + 1}"):
        verify(path)


def test_swapped_lines(path):
    """Lines in another order are seen."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1], lines[3] = lines[3], lines[1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(EvidenceError, match="line 2: "):
        verify(path)


def test_forged_chain(path):
    """Who writes the whole chain anew has not the key in the TEE."""
    forge(path, identity().keys.receipt, change={"subject": "somebody else"})
    with pytest.raises(SignatureError, match="line 2: "):
        verify(path)


def test_log_of_another_server(path):
    """A log that another, unaccepted server wrote is refused by the policy, not by the chain."""
    other = Policy.from_toml(
        f'version = 1\n[[accept]]\nplatform = "nitro"\nmeasurement = ["{"01" * 48}"]\n'
    )
    assert verify(path).head.entries == 6
    with pytest.raises(AppraisalError, match="line 1: ") as refusal:
        verify(path, other)
    assert refusal.value.mismatches
    assert refusal.value.steps


def test_truncation_shows_only_with_a_head(path):
    """What was cut off at the end is seen by who knows the head, and by nobody else."""
    head = verify(path).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert verify(path).head.entries == head.entries - 2
    with pytest.raises(EvidenceError, match="something was taken away"):
        verify(path, head=head.sha256)


def test_head_of_before_is_found(path):
    """A head that was known is found in a log that has grown since."""
    head = verify(path).head
    write_log(path)
    assert verify(path, head=head.sha256).head.entries > head.entries


def test_torn_end(path):
    """A last line that is not whole is told, and does not make the others wrong."""
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    result = verify(path)
    assert result.head.entries == 5
    assert result.torn > 0


def test_times_outside_the_keys_life(tmp_path):
    """An entry after the end of its key, or in the future, is refused."""
    path = tmp_path / "audit.jsonl"
    times = iter([NOW, NOW + LIFETIME])
    log = AuditLog(path, now=lambda: next(times))
    begin(log, identity())
    log.close()
    with pytest.raises(BindingError, match="line 2: the key that signed it ended"):
        verify(path, now=NOW + 2 * LIFETIME)
    with pytest.raises(EvidenceError, match="line 2: expected a time in the past"):
        verify(path, now=NOW + timedelta(hours=1))


def test_action_without_an_end(tmp_path):
    """An action that was under way when the server was killed is told."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, now=lambda: NOW)
    begin(log, identity())
    with log.action("delete", Person(), model=MODEL):
        assert verify(path).open == (2,)
    log.close()
    assert verify(path).open == ()


def test_keys_come_first(path):
    """Entries before any keys are refused: nobody could have signed them."""
    lines = path.read_bytes().splitlines()
    entry = msgspec.structs.replace(parse_entry(lines[1]), seq=1, previous="0" * 64)
    path.write_bytes(sign_entry(entry, identity().keys.receipt) + b"\n")
    with pytest.raises(EvidenceError, match="line 1: expected the server's keys first"):
        verify(path)


def test_log_of_a_machine(tmp_path):
    """A log that a server on AMD hardware wrote is verified with AMD's roots, and no others."""
    vendor = FakeAMD()
    now = vendor.now
    config = ServerConfig(platform=Platform.SEV_SNP, key_lifetime=LIFETIME)
    keys = Identity.create(vendor, config, now=now)
    path = tmp_path / "audit.jsonl"
    write_log(path, keys, now=now)
    policy = Policy.from_toml(
        f'version = 1\n[[accept]]\nplatform = "sev-snp"\nmeasurement = ["{"5a" * 48}"]\n'
    )
    result = verify(path, policy, now=now, anchors={Platform.SEV_SNP: vendor.anchors})
    assert not result.simulated
    assert [each.platform for each in result.results] == [Platform.SEV_SNP]
    with pytest.raises(SignatureError, match="line 1: "):
        verify(path, policy, now=now)
