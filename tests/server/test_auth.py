"""The simple case: one token opens everything, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import AccessDenied, ConfigurationError
from blindai.server.access import Access, AccessRules, Scope, generate_token
from tests.server.access.shown import Shown

TOKEN = generate_token()


def test_tokens_are_fresh_and_long():
    """Each token is another, of 256 bits in URL-safe characters."""
    assert generate_token() != TOKEN
    assert len(TOKEN) == 43


@pytest.mark.parametrize("scope", Scope)
def test_running_and_listing_are_open_changes_are_not(scope):
    """Running and listing need no token; the rest needs the one, which opens everything."""
    access = Access(TOKEN)
    assert access.admit(scope, Shown(TOKEN.encode())).kind == "token"
    if scope in {Scope.RUN, Scope.LIST}:
        assert access.admit(scope, Shown()).is_anonymous
        return
    with pytest.raises(AccessDenied, match="Bearer"):
        access.admit(scope, Shown())


@given(st.binary(max_size=60))
def test_no_other_token(token):
    """No other bytes open anything, not even what is open, and the refusal does not quote them."""
    with pytest.raises(AccessDenied) as caught:
        Access(TOKEN, AccessRules(listed=False)).admit(Scope.RUN, Shown(token))
    assert TOKEN not in str(caught.value)


def test_token_is_not_kept():
    """Only the token's SHA-256 is in memory of the object."""
    access = Access(TOKEN)
    assert TOKEN.encode() not in access._digest
    assert not hasattr(access, "__dict__")


@pytest.mark.parametrize("token", ["", "short", "with a space in the token", "é" * 20])
def test_tokens_that_are_none(token):
    """A token that can be guessed, or that no header can carry, is refused."""
    with pytest.raises(ConfigurationError):
        Access(token)
