"""The token opens what is closed, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import AccessDenied, ConfigurationError
from blindai.server.auth import Access, Scope, generate_token

TOKEN = generate_token()


def test_tokens_are_fresh_and_long():
    """Each token is another, of 256 bits in URL-safe characters."""
    assert generate_token() != TOKEN
    assert len(TOKEN) == 43


def test_running_is_open_managing_is_not():
    """Running needs no token; managing needs the one."""
    access = Access(TOKEN)
    access.check(Scope.RUN, None)
    access.check(Scope.MANAGE, TOKEN.encode())
    with pytest.raises(AccessDenied, match="Bearer"):
        access.check(Scope.MANAGE, None)


@given(st.binary(max_size=60))
def test_no_other_token(token):
    """No other bytes open anything, and the refusal does not quote them."""
    with pytest.raises(AccessDenied) as caught:
        Access(TOKEN, open_scopes=frozenset()).check(Scope.RUN, token)
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
