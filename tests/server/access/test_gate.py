"""What is not granted is refused; who tries too often is not listened to."""

from datetime import UTC, datetime

import jwt
import pytest

from blindai.errors import AccessDenied, ConfigurationError, NotPermitted, RateLimited
from blindai.server.access.accounts import Account
from blindai.server.access.gate import Access, generate_token
from blindai.server.access.keys import create_key
from blindai.server.access.lockout import Lockout
from blindai.server.access.principal import OPERATOR, Scope
from blindai.server.access.rules import AccessRules, Issuer, Quota
from tests.server.access.shown import Clock, Shown
from tests.server.access.test_tokens import CLAIMS, NOW, PEM, sign

TOKEN = generate_token()
ISSUER = Issuer(name="https://id.example", audience="blindai", keys=PEM)
CLOSED = {"public": frozenset(), "listed": False}


def rules(tmp_path, *scopes, tenant="acme", **changes):
    """Return rules with a tenant and a key of it, and that key."""
    path = tmp_path / "keys.json"
    _, token = create_key(
        path, name="k", scopes=scopes, now=datetime.fromtimestamp(NOW, UTC), tenant=tenant
    )
    base = {"api_keys": path, "issuers": (ISSUER,), "tenants": {"acme": Quota()}}
    return AccessRules(**CLOSED | base | changes), token.encode()


def gate(made, **changes):
    """Return what decides."""
    return Access(TOKEN, made, now=lambda: NOW, clock=Clock(), **changes)


@pytest.mark.parametrize("granted", Scope)
def test_a_key_opens_what_it_was_given(tmp_path, granted):
    """Each scope opens itself; all others but running, as anybody may, are refused."""
    tenant = OPERATOR if granted is Scope.ADMIN else "acme"
    made, token = rules(tmp_path, granted, tenant=tenant)
    access = gate(made)
    for scope in Scope:
        if scope is granted:
            found = access.admit(scope, Shown(token))
            assert (found.kind, found.tenant) == ("key", tenant)
        elif scope is Scope.RUN:
            assert access.admit(scope, Shown(token)).is_anonymous
        else:
            with pytest.raises(NotPermitted):
                access.admit(scope, Shown(token))


def test_a_tenant_is_never_admin(tmp_path):
    """What is about all tenants' models is the operator's, whatever a tenant's proof says."""
    made, token = rules(tmp_path, *Scope)
    access = gate(made)
    assert access.admit(Scope.DELETE, Shown(token)).scopes == set(Scope) - {Scope.ADMIN}
    with pytest.raises(NotPermitted):
        access.admit(Scope.ADMIN, Shown(token))


@pytest.mark.parametrize("scope", sorted(set(Scope) - {Scope.RUN}))
def test_nobody_may_do_more_than_run(tmp_path, scope):
    """Without a proof, only running is left, and of public models only."""
    access = gate(rules(tmp_path, Scope.RUN)[0])
    assert access.admit(Scope.RUN, Shown()).is_anonymous
    with pytest.raises(AccessDenied, match="Bearer"):
        access.admit(scope, Shown())


def test_a_jwt(tmp_path):
    """A JWT opens what it says, in its tenant, which has to be one of this server's."""
    access = gate(rules(tmp_path, Scope.RUN)[0])
    found = access.admit(Scope.RUN, Shown(sign()))
    assert (found.kind, found.subject, found.tenant) == ("jwt", "dr-a", "acme")
    with pytest.raises(AccessDenied, match="tenant"):
        access.admit(Scope.RUN, Shown(sign(tenant="other")))


def test_a_key_of_an_unknown_tenant(tmp_path):
    """A key whose tenant is gone opens nothing."""
    made, token = rules(tmp_path, Scope.RUN, tenant="gone")
    with pytest.raises(AccessDenied, match="tenant"):
        gate(made).admit(Scope.RUN, Shown(token))


def test_a_server_with_fixed_models(tmp_path):
    """Where uploads are off, not even the operator's token changes what is served."""
    made, token = rules(tmp_path, *Scope, uploads=False)
    access = gate(made)
    for proof in (token, TOKEN.encode()):
        access.admit(Scope.RUN, Shown(proof))
        for scope in (Scope.UPLOAD, Scope.DELETE, Scope.ADMIN):
            with pytest.raises(NotPermitted):
                access.admit(scope, Shown(proof))


def test_refusals_tell_nothing_apart(tmp_path):
    """Proofs that nobody could have made are refused in the same words, whatever they name."""
    made, token = rules(tmp_path, Scope.RUN)
    access, said = gate(made), set()
    wrong = [b"x" * 43, b"bk_" + b"0" * 60, token[:-1] + b"!", token[:20] + b"_" + b"A" * 43]
    wrong += [sign(iss="nobody"), jwt.encode(CLAIMS, "k" * 32, "HS256").encode(), b"a.b.c"]
    for each in wrong:
        with pytest.raises(AccessDenied) as caught:
            access.admit(Scope.UPLOAD, Shown(each, peer=str(len(said))))
        said.add(str(caught.value))
    assert said == {"the token that came does not open this"}


def test_lockout_by_address(tmp_path):
    """After too many wrong proofs an address is not listened to, right or wrong; others are."""
    made, token = rules(tmp_path, Scope.RUN)
    access, said = gate(made), []
    for _ in range(20):
        with pytest.raises(AccessDenied):
            access.admit(Scope.RUN, Shown(b"wrong"))
    for proof in (b"wrong", token, TOKEN.encode()):
        with pytest.raises(RateLimited) as caught:
            access.admit(Scope.RUN, Shown(proof))
        said.append((str(caught.value), caught.value.retry_after))
    assert len(set(said)) == 1
    assert access.admit(Scope.RUN, Shown()).is_anonymous
    assert access.admit(Scope.RUN, Shown(token, peer="192.0.2.2")).kind == "key"


def test_lockout_ends():
    """An address that waits as long as it was told is listened to again."""
    clock = Clock()
    lockout = Lockout(burst=2, rate=0.1, clock=clock)
    for _ in range(2):
        lockout.check("192.0.2.1")
        lockout.refused("192.0.2.1")
    with pytest.raises(RateLimited) as caught:
        lockout.check("192.0.2.1")
    clock.seconds += caught.value.retry_after
    lockout.check("192.0.2.1")


def test_lockout_of_a_network():
    """The addresses of one IPv6 customer count as one; those of IPv4 do not."""
    lockout = Lockout(burst=1)
    lockout.refused("2001:db8::1")
    with pytest.raises(RateLimited):
        lockout.check("2001:db8::ffff")
    lockout.check("2001:db8:0:1::1")
    lockout.refused("192.0.2.1")
    lockout.check("192.0.2.2")


def test_lockout_is_bounded():
    """Many addresses do not fill the memory."""
    lockout = Lockout(clock=Clock())
    for number in range(6000):
        lockout.refused(f"10.0.{number // 256}.{number % 256}")
    assert len(lockout._refusals) == 4096


def test_quota_of_runs():
    """A tenant has so many runs at once, and so many per second."""
    clock = Clock()
    account = Account(Quota(max_runs=2, rate=1, burst=3), clock=clock)
    with account.run(), account.run(), pytest.raises(RateLimited, match="2 runs"), account.run():
        pass
    with account.run(), pytest.raises(RateLimited, match="per second"), account.run():
        pass
    clock.seconds += 1
    with account.run():
        assert account.running == 1
    assert account.running == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"tenants": {"Acme": Quota()}},
        {"tenants": {"../x": Quota()}},
        {"issuers": (ISSUER, ISSUER)},
        {"issuers": (Issuer(name="i", audience="a", keys=PEM, tenant="gone"),)},
        {"client_crl": b"x"},
    ],
)
def test_impossible_rules(changes):
    """Rules that contradict each other are refused."""
    with pytest.raises(ConfigurationError):
        AccessRules(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": None},
        {"jwks_url": "https://x.example"},
        {"keys": None, "jwks_url": "http://x.example"},
        {"audience": ""},
        {"leeway": 301.0},
    ],
)
def test_impossible_issuers(changes):
    """An issuer has an audience, and its keys in one place, over https."""
    with pytest.raises(ConfigurationError):
        Issuer(**{"name": "i", "audience": "a", "keys": PEM} | changes)


def test_keys_that_nothing_fetches():
    """An address without anybody to ask is refused at the start."""
    made = AccessRules(issuers=(Issuer(name="i", audience="a", jwks_url="https://x.example"),))
    with pytest.raises(ConfigurationError, match="nothing fetches"):
        Access(TOKEN, made)


def test_what_a_client_can_pin():
    """Every rule that changes who may do what changes the statement; quotas do not."""
    base = AccessRules(issuers=(ISSUER,), tenants={"acme": Quota()}).statement()
    others = [
        AccessRules(issuers=(ISSUER,), tenants={"acme": Quota()}, **changes).statement()
        for changes in ({"public": frozenset()}, {"listed": False}, {"uploads": False})
    ]
    rate = AccessRules(issuers=(ISSUER,), tenants={"acme": Quota(rate=1)}).statement()
    assert rate == base
    assert base not in others
