"""Every error has a code of gRPC, and its message arrives as it was."""

from urllib.parse import unquote

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai import errors
from blindai.server.app import STATUS
from blindai.server.grpc.status import CODES, Status, StatusCode, encode_trailers, status_of


def fields(block: bytes) -> dict[str, str]:
    """Return what a client reads in trailers."""
    return dict(hpack.Decoder().decode(block))


def test_codes_are_grpcs():
    """Our numbers are those of the gRPC library."""
    theirs = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: int(code) for code in StatusCode}.items() <= theirs.items()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("x"), StatusCode.INVALID_ARGUMENT),
        (errors.AccessDenied("x"), StatusCode.UNAUTHENTICATED),
        (errors.NotPermitted("x"), StatusCode.PERMISSION_DENIED),
        (errors.RateLimited("x"), StatusCode.RESOURCE_EXHAUSTED),
        (errors.ModelNotFound("x"), StatusCode.NOT_FOUND),
        (errors.ModelConflict("x"), StatusCode.ALREADY_EXISTS),
        (errors.LimitExceeded("x"), StatusCode.RESOURCE_EXHAUSTED),
        (errors.Overloaded("x"), StatusCode.UNAVAILABLE),
        (errors.DeadlineExceeded("x"), StatusCode.DEADLINE_EXCEEDED),
        (errors.InvalidModel("x"), StatusCode.INVALID_ARGUMENT),
        (errors.SealedDataError("x"), StatusCode.UNAVAILABLE),
        (errors.InferenceError("x"), StatusCode.INTERNAL),
        (errors.PolicyError("x"), StatusCode.INTERNAL),
    ],
)
def test_code_of_each_error(error, code):
    """An error, also one that the table does not name, has a code."""
    assert status_of(error).code is code


def test_every_error_has_a_code():
    """No error of ours is without one, whatever is added."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    ours = [kind for kind in kinds if issubclass(kind, errors.BlindAIError)]
    assert all(set(kind.__mro__) & set(CODES) for kind in ours)


def test_same_errors_as_rest():
    """What REST tells apart is told apart here; a client that leaves is gRPC's own affair."""
    assert set(CODES) - {errors.ConnectionFailed} == set(STATUS)


def test_retry():
    """A client learns when a retry makes sense, in the form that gRPC's retries follow."""
    trailers = fields(encode_trailers(status_of(errors.Overloaded("later", retry_after=1.5))))
    assert trailers["grpc-retry-pushback-ms"] == "1500"


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_message_is_escaped(message):
    """Whatever stands in a message is one line of ASCII on the way, and itself again behind."""
    found = fields(encode_trailers(Status(StatusCode.INTERNAL, message)))
    sent = found.get("grpc-message", "")
    assert sent.isascii()
    assert sent.isprintable() or not sent
    assert unquote(sent) == message


def test_long_message_is_cut():
    """A long message is cut between two characters, so that every client can read it."""
    found = fields(encode_trailers(Status(StatusCode.INTERNAL, "ö" * 5000)))
    assert len(found["grpc-message"]) <= 2048
    assert set(unquote(found["grpc-message"])) == {"ö"}
