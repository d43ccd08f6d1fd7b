"""SIGHUP: what proofs are checked with is read again, and what clients see of it is attested."""

import json
import signal
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.server.access.test_certificates import Authority, shown, talk

ISSUER = "https://id.example"
SETTINGS = """
[access]
listed = false
client_ca = "{folder}/ca.pem"
[[access.jwt]]
issuer = "https://id.example"
audience = "blindai"
keys = "{folder}/issuer.pem"
tenant = ""
scopes = ["run", "list"]
[[access.certificates]]
name = "lab"
"""


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def token(key):
    """Return a JWT that holds for a minute."""
    claims = {"iss": ISSUER, "aud": "blindai", "exp": time.time() + 60, "scope": "list"}
    return jwt.encode(claims, key, "ES256")


@pytest.fixture
def place(tmp_path):
    """A server in a process of its own, and the folder of its files."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    authorities = [Authority(), Authority()]
    (tmp_path / "issuer.pem").write_bytes(pem(keys[0]))
    (tmp_path / "ca.pem").write_bytes(authorities[0].pem)
    (tmp_path / "settings.toml").write_text(SETTINGS.format(folder=tmp_path))
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation", "--json"]
    command += ["--port", "0", "--public-port", "0", "--no-grpc"]
    command += ["--config", str(tmp_path / "settings.toml")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            ready = json.loads(process.stdout.readline())
            yield SimpleNamespace(
                process=process,
                address=ready["attested"],
                folder=tmp_path,
                keys=keys,
                authorities=authorities,
            )
        finally:
            process.kill()


def listed(place, proof):
    """Return the status of a list with a JWT."""
    connection = ssl._create_unverified_context()
    headers = {"Authorization": f"Bearer {proof}"}
    return talk(place, connection, headers=headers).status


def certificate(place):
    host, port = place.address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)))


def wait_for(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_other_keys_and_authorities(place, tmp_path):
    """What was replaced opens nothing any more; the server has keys that attest to the change."""
    first, second = map(token, place.keys)
    labs = [shown(tmp_path, *each.issue("lab")) for each in place.authorities]
    assert (listed(place, first), listed(place, second)) == (200, 401)
    assert talk(place, labs[0]).status == 200
    before = certificate(place)
    (place.folder / "issuer.pem").write_bytes(pem(place.keys[1]))
    (place.folder / "ca.pem").write_bytes(place.authorities[1].pem)
    assert listed(place, second) == 401
    place.process.send_signal(signal.SIGHUP)
    wait_for(lambda: certificate(place) != before)
    wait_for(lambda: listed(place, second) == 200)
    assert listed(place, first) == 401
    assert talk(place, labs[1]).status == 200
    with pytest.raises(OSError):
        talk(place, labs[0])


@pytest.mark.parametrize("name", ["issuer.pem", "ca.pem"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA", None])
def test_what_cannot_be_used_changes_nothing(place, name, damage):
    """A file that is gone or malformed leaves all as it was, and the server goes on."""
    proof, before = token(place.keys[0]), certificate(place)
    path = place.folder / name
    good = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    place.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert listed(place, proof) == 200
    assert certificate(place) == before
    # And it still listens: the next one is heard.
    path.write_bytes(good)
    (place.folder / "issuer.pem").write_bytes(pem(place.keys[1]))
    place.process.send_signal(signal.SIGHUP)
    wait_for(lambda: listed(place, token(place.keys[1])) == 200)
