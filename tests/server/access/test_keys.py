"""API keys: kept as digests, ended by time or revocation, and never guessed at."""

import contextlib
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import AccessDenied, ConfigurationError, InvalidInput, Overloaded
from blindai.server.access import keys as module
from blindai.server.access.keys import ApiKeys, create_key, load_keys, parse_keys, revoke_key
from blindai.server.access.principal import Scope

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def make(path, **changes):
    """Return a fresh key of a file."""
    return create_key(path, **{"name": "lab", "scopes": [Scope.RUN], "now": NOW} | changes)


def test_the_key_is_not_in_the_file(tmp_path):
    """The file holds a digest, is its owner's alone, and what was shown opens it."""
    path = tmp_path / "keys.json"
    record, token = make(path, tenant="acme")
    assert token.rpartition("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert ApiKeys(path).find(token.encode(), now=NOW) == record


def test_every_change_of_the_key_is_refused(tmp_path):
    """No key but the one itself opens anything, whichever character is another."""
    path = tmp_path / "keys.json"
    token = make(path)[1].encode()
    known = ApiKeys(path)
    for place in range(len(token)):
        other = b"A" if token[place : place + 1] != b"A" else b"B"
        with pytest.raises(AccessDenied, match="does not open"):
            known.find(token[:place] + other + token[place + 1 :], now=NOW)


def test_expired(tmp_path):
    """A key ends when it said it would, not a moment later."""
    path = tmp_path / "keys.json"
    _, token = make(path, lifetime=timedelta(days=1))
    known = ApiKeys(path)
    known.find(token.encode(), now=NOW + timedelta(hours=23))
    with pytest.raises(AccessDenied, match="expired"):
        known.find(token.encode(), now=NOW + timedelta(days=1))


def test_revoked_while_the_server_runs(tmp_path):
    """A revoked key opens nothing as soon as the file is looked at again; others still do."""
    path = tmp_path / "keys.json"
    (record, token), (_, other) = make(path), make(path)
    known = ApiKeys(path)
    known.find(token.encode(), now=NOW)
    revoke_key(path, record.id, now=NOW)
    known.refresh()
    with pytest.raises(AccessDenied, match="revoked"):
        known.find(token.encode(), now=NOW)
    known.find(other.encode(), now=NOW)


@pytest.mark.parametrize("damage", ["remove", "write", "open to others"])
def test_a_file_that_cannot_be_used_opens_nothing(tmp_path, damage):
    """Keys that were known are forgotten with a file that is gone, malformed or not safe."""
    path = tmp_path / "keys.json"
    _, token = make(path)
    known = ApiKeys(path)
    if damage == "remove":
        path.unlink()
    elif damage == "write":
        path.write_text("{")
    else:
        path.write_bytes(path.read_bytes() + b" ")
        path.chmod(0o666)
    known.refresh()
    with pytest.raises(AccessDenied):
        known.find(token.encode(), now=NOW)


def test_comparison_takes_the_same_way_for_all(tmp_path, monkeypatch):
    """A key that is there and one that is not are both compared in constant time, once."""
    path = tmp_path / "keys.json"
    _, token = make(path)
    known, compared = ApiKeys(path), []

    class Watched:
        @staticmethod
        def compare_digest(one, other):
            compared.append((len(one), len(other)))
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", Watched)
    known.find(token.encode(), now=NOW)
    for wrong in (b"bk_" + b"0" * 16 + b"_" + b"A" * 43, b"bk_nothing"):
        with pytest.raises(AccessDenied):
            known.find(wrong, now=NOW)
    assert compared == [(64, 64)] * 3


def test_unknown_key_cannot_be_revoked(tmp_path):
    """Revoking what is not there says so."""
    path = tmp_path / "keys.json"
    make(path)
    with pytest.raises(InvalidInput, match="no API key"):
        revoke_key(path, "../../etc", now=NOW)
    assert len(load_keys(path)) == 1


@pytest.mark.parametrize(
    "changes", [{"name": ""}, {"name": "a\nb"}, {"scopes": []}, {"tenant": "../x"}]
)
def test_impossible_keys(tmp_path, changes):
    """Names that would break a line, no scopes and impossible tenants are refused."""
    with pytest.raises(ConfigurationError):
        make(tmp_path / "keys.json", **changes)


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_content_is_keys_or_an_error(content):
    """Whatever a file holds, it is keys or the one error."""
    content = content if isinstance(content, bytes) else content.encode()
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse_keys(content), dict)


def test_who_is_told_of_changes_decides(tmp_path):
    """Keys that somebody could not be told of open nothing; they do as soon as it can be told."""
    path, told, can = tmp_path / "keys.json", [], [True]

    def tell(count, sha256):
        if not can[0]:
            msg = "the disk is full"
            raise Overloaded(msg)
        told.append((count, sha256))

    make(path)
    known = ApiKeys(path)
    known.tell_changes(tell)
    _, token = make(path)
    can[0] = False
    known.refresh()
    with pytest.raises(AccessDenied):
        known.find(token.encode(), now=NOW)
    can[0] = True
    known.refresh()
    known.find(token.encode(), now=NOW)
    assert [count for count, _ in told] == [1, 2]
    assert told[-1][1] == hashlib.sha256(path.read_bytes()).hexdigest()
