"""The unattested port: nothing on it is secret, and nothing else is on it."""

import re
from datetime import UTC, datetime

import pytest

from blindai.attestation import wire
from blindai.attestation.policy import Policy
from blindai.server.access.rules import AccessRules
from blindai.testing.server import start_server
from blindai.verify import verify
from tests.inference.models import identity
from tests.server.talk import public_request, request


def test_page_says_simulated(server):
    """The page names the platform, says SIMULATED, how to verify, and which models are public."""
    reply = public_request(server, "GET", "/")
    text = re.sub("<[^>]*>", "", reply.body.decode())
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for expected in ("SIMULATED", "simulation", "blindai verify", "proves nothing"):
        assert expected in text
    assert server.token not in text
    assert "identity-fp32" in text


def test_evidence_is_the_same_servers(server):
    """Evidence of the unattested port verifies, for the key of the attested one."""
    nonce = bytes(32)
    results = [
        verify(
            wire.parse_bundle(ask(server, "GET", f"/blindai/v1/evidence?nonce={nonce.hex()}").body),
            Policy.simulation(),
            nonce=nonce,
            now=datetime.now(UTC),
        )
        for ask in (request, public_request)
    ]
    assert results[0].tls_public_key == results[1].tls_public_key


@pytest.mark.parametrize("path", ["/v2/models/identity-fp32", "/blindai/v1/models", "/page"])
def test_models_are_not_here(server, path):
    """Models are on the attested port only."""
    assert public_request(server, "GET", path).status == 404


def test_evidence_has_a_rate():
    """Fresh evidence too often is 429 with Retry-After; cached evidence always comes."""
    path = f"/blindai/v1/evidence?nonce={'00' * 32}"
    with start_server(models={"m": identity()}, evidence_rate=0.01, evidence_burst=2) as server:
        for ask in (public_request, request):
            statuses = [ask(server, "GET", path).status for _ in range(3)]
            assert statuses == [200, 200, 429]
            reply = ask(server, "GET", path)
            assert reply.error == "Overloaded"
            assert 1 <= int(reply.headers["retry-after"]) <= 100
            assert ask(server, "GET", "/blindai/v1/evidence").status == 200


@pytest.mark.parametrize(
    ("access", "shown", "text"),
    [
        (AccessRules(), ["open", "private"], ""),
        (AccessRules(public=frozenset({"open"})), ["open"], "1 more, not public."),
        (AccessRules(public=frozenset({"open"}), listed=False), [], "2 loaded. Their names are"),
        (AccessRules(listed=False), [], "2 loaded. Their names are not public."),
    ],
)
def test_page_names_public_models_only(access, shown, text):
    """Names of models stand on the page where anybody may run and list them; else their number."""
    models = {"open": identity(), "private": identity()}
    with start_server(models=models, config={"access": access}) as server:
        page = public_request(server, "GET", "/").body.decode()
        metrics = public_request(server, "GET", "/metrics").body.decode()
    found = [name for name in models if f"<code>{name}</code>" in page]
    assert found == shown
    assert text in page
    assert "private" not in metrics
