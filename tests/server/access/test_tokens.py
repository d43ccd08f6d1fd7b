"""JWTs: every known way around a signature is closed."""

import base64
import contextlib
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import AccessDenied, ConfigurationError
from blindai.server.access.jwks import KeySet, VerificationKey, parse_key_set
from blindai.server.access.principal import Scope
from blindai.server.access.rules import Issuer
from blindai.server.access.tokens import Tokens, is_jwt
from tests.server.access.shown import Clock

NOW = 1_800_000_000.0
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER = ec.generate_private_key(ec.SECP256R1())
PEM = EC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CLAIMS = {
    "iss": "https://id.example",
    "aud": "blindai",
    "sub": "dr-a",
    "exp": NOW + 600,
    "tenant": "acme",
    "scope": "run upload openid",
}
EVERYTHING = frozenset(Scope)


def tokens(keys=None, **changes):
    """Return what verifies the tokens of one issuer."""
    issuer = Issuer(
        **{"name": "https://id.example", "audience": "blindai", "keys": PEM, "scopes": EVERYTHING}
        | changes
    )
    keys = keys or (
        VerificationKey("one", "ES256", EC_KEY.public_key()),
        VerificationKey("two", "EdDSA", ED_KEY.public_key()),
    )
    return Tokens([(issuer, KeySet(keys))])


def sign(key=EC_KEY, algorithm="ES256", headers=None, **changes):
    """Return a token; a claim that is `None` is left out."""
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    # Claims of wrong types are signed too: PyJWT checks some, its JWS layer does not.
    payload = json.dumps(claims).encode()
    return jwt.PyJWS().encode(payload, key, algorithm, {"typ": "JWT"} | (headers or {})).encode()


def encode(part):
    """Return a part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(EC_KEY, "ES256", "one"), (ED_KEY, "EdDSA", "two")]
)
def test_good_tokens(key, algorithm, kid):
    """A token that its issuer signed says who it is of, and what they may."""
    found = tokens().verify(sign(key, algorithm, {"kid": kid}), now=NOW)
    assert (found.subject, found.tenant) == ("dr-a", "acme")
    assert found.scopes == {Scope.RUN, Scope.UPLOAD}


def test_no_more_than_the_issuer_may_give():
    """What a token asks for is cut to what its issuer may give; a silent one gives run alone."""
    few = tokens(scopes=frozenset({Scope.RUN}))
    assert few.verify(sign(scope="run admin"), now=NOW).scopes == {Scope.RUN}
    assert tokens().verify(sign(scope=None), now=NOW).scopes == {Scope.RUN}
    assert tokens().verify(sign(scope=7), now=NOW).scopes == set()


def unsigned(algorithm):
    """Return a token that says it needs no signature."""
    return encode({"alg": algorithm, "typ": "JWT"}) + b"." + encode(CLAIMS) + b"."


def confused(header):
    """Return a token whose MAC has the public key as its secret."""
    signed = encode({"alg": "HS256", "typ": "JWT"} | header) + b"." + encode(CLAIMS)
    mac = hmac.new(PEM, signed, hashlib.sha256).digest()
    return signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")


def own_key():
    """Return a token that brings the key it is signed with."""
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(OTHER.public_key()))
    return sign(OTHER, headers={"jwk": jwk, "jku": "https://evil.example/keys"})


RSA_KEY = rsa.generate_private_key(65537, 2048)
FORGED = {
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "no alg": unsigned(None),
    "public key as a secret": confused({}),
    "public key as a secret, kid": confused({"kid": "one"}),
    "RSA": sign(RSA_KEY, "RS256"),
    "another curve": sign(ec.generate_private_key(ec.SECP384R1()), "ES384"),
    "another key": sign(OTHER),
    "its own key": own_key(),
    "kid of another algorithm": sign(headers={"kid": "two"}),
    "kid is a path": sign(OTHER, headers={"kid": "../../../../dev/null"}),
    "kid is SQL": sign(OTHER, headers={"kid": "one' UNION SELECT 'x"}),
    "good key, unknown kid": sign(headers={"kid": "../one"}),
    "crit": sign(headers={"crit": ["b64"], "b64": False}),
    "another type": sign(headers={"typ": "logout+jwt"}),
    "another issuer": sign(iss="https://evil.example"),
    "no issuer": sign(iss=None),
    "issuer is a list": sign(iss=["https://id.example"]),
    "another audience": sign(aud="other"),
    "no audience": sign(aud=None),
    "expired": sign(exp=NOW - 31),
    "no end": sign(exp=None),
    "end is a string": sign(exp=str(NOW + 600)),
    "end is true": sign(exp=True),
    "end is never": sign(exp=1e300),
    "too long": sign(exp=NOW + 90_000),
    "not yet": sign(nbf=NOW + 31),
    "issued in the future": sign(iat=NOW + 31),
    "no tenant": sign(tenant=None),
    "tenant is a number": sign(tenant=5),
    "tenant is empty": sign(tenant=""),
    "large": sign(sub="x" * 9000),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED)
def test_refused(token):
    """What is forged, for others, out of date or boundless opens nothing."""
    with pytest.raises(AccessDenied):
        tokens().verify(token, now=NOW)


def test_clock_skew():
    """Clocks may differ by the leeway, in both directions, and by no more."""
    for good in (sign(exp=NOW - 29), sign(nbf=NOW + 29), sign(iat=NOW + 29)):
        assert tokens().verify(good, now=NOW).subject == "dr-a"


def test_every_flipped_byte():
    """A token with any one byte changed is refused."""
    token = sign()
    known = tokens()
    for place in range(len(token)):
        other = b"A" if token[place : place + 1] != b"A" else b"Q"
        changed = token[:place] + other + token[place + 1 :]
        # The last character of a signature has bits that mean nothing.
        if place == len(token) - 1:
            continue
        with pytest.raises(AccessDenied):
            known.verify(changed, now=NOW)


def test_remembering_ends_with_the_token():
    """A token that was verified is refused when it has expired, remembered or not."""
    known = tokens()
    token = sign(exp=NOW + 1)
    known.verify(token, now=NOW)
    known.verify(token, now=NOW + 30)
    with pytest.raises(AccessDenied, match="expired"):
        known.verify(token, now=NOW + 31)


def test_a_fixed_tenant_is_not_the_tokens_to_choose():
    """An issuer of one tenant cannot speak for another."""
    assert tokens(tenant="beta").verify(sign(), now=NOW).tenant == "beta"


@given(st.binary(max_size=200))
def test_any_bytes(token):
    """Whatever comes, it is refused with the one error."""
    with pytest.raises(AccessDenied):
        tokens().verify(token + b"." + token + b".", now=NOW)
    assert is_jwt(b"a.b.c")


# Key sets.


def jwk(key=EC_KEY, **changes):
    """Return a public key as JWK."""
    algorithm = jwt.algorithms.ECAlgorithm if key is EC_KEY else jwt.algorithms.OKPAlgorithm
    return json.loads(algorithm.to_jwk(key.public_key())) | changes


def dump(*keys):
    """Return a JWKS."""
    return json.dumps({"keys": keys}).encode()


def test_key_sets():
    """P-256 and Ed25519 are taken from a JWKS or PEM; what is for something else is left out."""
    found = parse_key_set(
        dump(jwk(kid="a"), jwk(ED_KEY, kid="b"), {"kty": "RSA", "n": "x"}, jwk(kid="c", use="enc"))
    )
    assert [(key.kid, key.algorithm) for key in found] == [("a", "ES256"), ("b", "EdDSA")]
    assert [key.algorithm for key in parse_key_set(PEM + PEM)] == ["ES256", "ES256"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"keys": 1}',
        dump(),
        dump(jwk(kid="a"), jwk(kid="a")),
        dump(jwk(d="c2VjcmV0")),
        dump({"kty": "oct", "k": "c2VjcmV0"}),
        dump(jwk(x="AAAA")),
        dump(jwk(kid="x" * 300)),
        dump(*(jwk(kid=str(number)) for number in range(33))),
        b" " * 70_000 + dump(jwk()),
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ],
)
def test_key_sets_that_are_none(content):
    """Malformed, private, repeated, too many and too large sets are refused."""
    with pytest.raises(ConfigurationError):
        parse_key_set(content)


@given(st.binary(max_size=200))
def test_any_content_is_keys_or_an_error(content):
    """Whatever a file or a host says, it is keys or the one error."""
    with contextlib.suppress(ConfigurationError):
        assert parse_key_set(content)


def test_fetched_keys_change_and_end():
    """Fetched keys follow the issuer; when it is silent for a day they open nothing."""
    clock, answers = Clock(), [dump(jwk(kid="a")), b"broken", dump(jwk(ED_KEY, kid="b"))]
    keys = KeySet(fetch=lambda: answers.pop(0), clock=clock)
    assert keys.candidates("ES256", "a") == []
    assert keys.refresh()
    assert keys.candidates("ES256", "a")
    assert not keys.refresh()
    assert keys.candidates("ES256", "a")
    assert keys.refresh()
    assert not keys.candidates("ES256", "a")
    assert keys.candidates("EdDSA", "b")
    clock.seconds += 86_401
    assert not keys.candidates("EdDSA", "b")


def test_oversized_set_is_not_taken():
    """A host that answers with too much changes nothing."""
    answers = [dump(jwk(kid="a")), b" " * 70_000 + dump(jwk(ED_KEY, kid="b"))]
    keys = KeySet(fetch=lambda: answers.pop(0))
    assert keys.refresh()
    assert not keys.refresh()
    assert keys.candidates("ES256", "a")
    assert not keys.candidates("EdDSA", "b")


def test_fetching_in_the_background():
    """Entered, a set fetches its keys by itself, and ends when it is left."""
    with KeySet(fetch=lambda: dump(jwk(kid="a"))) as keys:
        for _ in range(500):
            if keys.candidates("ES256", "a"):
                break
            keys._ended.wait(0.01)
        assert keys.candidates("ES256", "a")
    assert not keys._thread.is_alive()
