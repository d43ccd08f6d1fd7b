"""Every path and every RPC, for somebody without a proof: what is not open by name is refused."""

from datetime import UTC, datetime

import grpc
import pytest

from blindai.server.access.keys import create_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.server.grpc.introspection import INFERENCE
from blindai.server.grpc.messages import POOL, message_class
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.access.shown import channel_to
from tests.server.talk import request

# Evidence, health, what the server is, and its description.
OPEN = {"/blindai/v1/evidence", "/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"}
ANSWER = message_class("inference.ModelStreamInferResponse")
OPEN_RPCS = {"ServerLive", "ServerReady", "ServerMetadata"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server where nothing is public, and what a tenant's key with one scope shows."""
    path = tmp_path_factory.mktemp("access") / "keys.json"
    _, token = create_key(path, name="k", scopes=[Scope.LIST], now=datetime.now(UTC), tenant="acme")
    rules = AccessRules(public=frozenset(), listed=False, api_keys=path, tenants={"acme": Quota()})
    with start_server(models={"m": identity()}, config={"access": rules}) as server:
        yield server, {"Authorization": f"Bearer {token}"}


def places(server):
    """Return every method of every path that the server describes."""
    paths = request(server, "GET", "/openapi.json").json()["paths"]
    assert len(paths) > 20
    return [
        (method.upper(), path.replace("{name}", "m"))
        for path, methods in paths.items()
        for method in methods
        if method in {"get", "post", "put", "delete"}
    ]


def test_no_proof_no_answer(place):
    """Nothing but evidence and health answers; what is private is as if it were not there."""
    server, _ = place
    for method, path in places(server):
        body = b"{}" if method in {"POST", "PUT"} else None
        status = request(server, method, path, body).status
        if path in OPEN:
            assert status == 200, path
        else:
            # 501: an extension that is not served at all says so to everybody.
            assert status in {401, 404, 501}, (method, path, status)


def test_one_scope_is_no_other(place):
    """Who may list changes nothing, and neither runs nor sees another's model."""
    server, headers = place
    answered = set()
    for method, path in places(server):
        body = b"{}" if method in {"POST", "PUT"} else None
        status = request(server, method, path, body, headers).status
        if status < 300:
            answered.add(path)
        else:
            assert status in {403, 404, 501}, (method, path, status)
    lists = {"/blindai/v1/models", "/v2/repository/index", "/v2/models/stats"}
    assert answered == OPEN | lists
    assert request(server, "GET", "/blindai/v1/models", headers=headers).json()["models"] == []


def test_no_proof_no_rpc(place):
    """The same over gRPC."""
    server, _ = place
    methods = POOL.FindServiceByName(INFERENCE).methods
    with channel_to(server) as channel:
        for method in methods:
            call = channel.stream_stream if method.client_streaming else channel.unary_unary
            rpc = call(f"/{INFERENCE}/{method.name}")
            try:
                if method.client_streaming:
                    (part,) = rpc(iter([b""]), timeout=10)
                    assert "no model" in ANSWER.FromString(part).error_message
                else:
                    rpc(b"", timeout=10)
                code = grpc.StatusCode.OK
            except grpc.RpcError as error:
                code = error.code()
            if method.name in OPEN_RPCS:
                assert code is grpc.StatusCode.OK
            elif not method.client_streaming:
                assert code.name in {"UNAUTHENTICATED", "NOT_FOUND", "UNIMPLEMENTED"}, method.name
