"""What lasts longer than one request: streams, sequences, and the right to them."""

import queue
import time
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest

from blindai.server.access.keys import create_key, revoke_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.server.grpc.introspection import INFERENCE
from blindai.server.grpc.messages import message_class
from blindai.testing.server import start_server
from tests.inference.loop_models import cell
from tests.inference.models import identity
from tests.server.access.shown import channel_to
from tests.server.talk import request
from tests.server.test_streaming import events, loop_body, tensor

REQUEST = message_class("inference.ModelInferRequest")
ANSWER = message_class("inference.ModelStreamInferResponse")


@pytest.fixture
def keys(tmp_path):
    """A file of keys with one key of a tenant, and that key."""
    path = tmp_path / "keys.json"
    record, token = create_key(
        path, name="k", scopes=[Scope.RUN], now=datetime.now(UTC), tenant="acme"
    )
    return path, record, token


def test_a_stream_is_one_run_of_its_tenants(keys):
    """However many steps an answer has, it counts once; the next is refused before it begins."""
    path, _, token = keys
    rules = AccessRules(api_keys=path, tenants={"acme": Quota(rate=0.01, burst=1)})
    headers = {"Authorization": f"Bearer {token}"}
    body = loop_body(
        [tensor("x", np.ones((1, 3), np.float32))], state={"h": "next_h"}, max_steps=20
    )
    where = "/blindai/v1/models/cell/stream"
    with start_server(models={"cell": cell()}, config={"access": rules}) as server:
        parts = events(request(server, "POST", where, body, headers))
        assert parts[-1]["steps"] == 20
        refused = request(server, "POST", where, body, headers)
        assert (refused.status, refused.error) == (429, "RateLimited")


def test_a_revoked_key_ends_in_the_middle_of_a_stream(keys):
    """Each message of a stream is looked at: it may outlast the right of who opened it."""
    path, record, token = keys
    rules = AccessRules(public=frozenset({"m"}), api_keys=path, tenants={"acme": Quota()})
    sent: queue.SimpleQueue = queue.SimpleQueue()
    message = REQUEST(model_name="m")
    part = message.inputs.add(name="x", datatype="FP32", shape=[1])
    part.contents.fp32_contents.append(1.0)
    with (
        start_server(models={"m": identity()}, config={"access": rules}) as server,
        channel_to(server) as channel,
    ):
        answers = channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer",
            request_serializer=REQUEST.SerializeToString,
            response_deserializer=ANSWER.FromString,
        )(iter(sent.get, None), metadata=[("authorization", f"Bearer {token}")], timeout=30)
        sent.put(message)
        assert next(answers).error_message == ""
        revoke_key(path, record.id, now=datetime.now(UTC))
        ends = time.monotonic() + 10
        error = ""
        while not error and time.monotonic() < ends:
            time.sleep(0.1)
            sent.put(message)
            error = next(answers).error_message
        assert "revoked" in error
        sent.put(None)
        with pytest.raises(StopIteration):
            next(answers)
    assert grpc.StatusCode.OK is answers.code()
