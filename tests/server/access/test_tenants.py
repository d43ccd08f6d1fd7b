"""Tenants of one real server: what is another's is not there."""

import hashlib
from datetime import UTC, datetime

import grpc
import pytest

from blindai.server.access.keys import create_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.server.grpc.introspection import INFERENCE
from blindai.server.grpc.messages import message_class
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server.access.shown import channel_to
from tests.server.talk import infer_body, public_request, request

SECRET, SHARED = add(2.0), add(3.0)
DIGEST = hashlib.sha256(SECRET).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server with two tenants, a public and a private model, and what its callers present."""
    path = tmp_path_factory.mktemp("access") / "keys.json"
    tokens = {}
    for tenant in ("acme", "beta", ""):
        _, token = create_key(
            path, name=tenant or "own", scopes=Scope, now=datetime.now(UTC), tenant=tenant
        )
        tokens[tenant] = {"Authorization": f"Bearer {token}"}
    rules = AccessRules(
        public=frozenset({"open"}),
        listed=False,
        api_keys=path,
        tenants={
            "acme": Quota(max_models=3),
            "beta": Quota(max_models=2, max_bytes=10_000, rate=1000.0),
        },
    )
    models = {"open": identity(), "hidden": add(1.0)}
    with start_server(models=models, config={"access": rules}) as server:
        for tenant in ("acme", "beta"):
            reply = request(server, "PUT", "/blindai/v1/models/shared", SHARED, tokens[tenant])
            assert reply.status == 201
        reply = request(server, "PUT", "/blindai/v1/models/secret", SECRET, tokens["acme"])
        assert reply.status == 201
        yield server, tokens


def names(server, headers):
    """Return the names that somebody sees, on all three ways to ask."""
    listed = request(server, "GET", "/blindai/v1/models", headers=headers).json()["models"]
    index = request(server, "POST", "/v2/repository/index", b"{}", headers).json()
    stats = request(server, "GET", "/v2/models/stats", headers=headers).json()["model_stats"]
    found = [[entry["name"] for entry in each] for each in (listed, index, stats)]
    assert found[0] == found[1] == found[2]
    return found[0]


def test_each_sees_their_own_and_what_is_public(place):
    """Lists, the index and statistics hold the caller's models and the public ones."""
    server, tokens = place
    assert names(server, tokens["acme"]) == ["open", "secret", "shared"]
    assert names(server, tokens["beta"]) == ["open", "shared"]
    assert names(server, tokens[""]) == ["hidden", "open"]


PATHS = [
    ("GET", "/v2/models/{}", None),
    ("GET", "/v2/models/{}/ready", None),
    ("GET", "/v2/models/{}/config", None),
    ("GET", "/v2/models/{}/stats", None),
    ("POST", "/v2/models/{}/infer", infer_body([1.0])),
    ("POST", "/v2/models/{}/versions/1/infer", infer_body([1.0])),
    ("POST", "/v2/repository/models/{}/load", b""),
    ("POST", "/v2/repository/models/{}/unload", b""),
    ("DELETE", "/blindai/v1/models/{}", None),
]


@pytest.mark.parametrize(
    "key", ["secret", DIGEST, f"sha256:{DIGEST}", DIGEST.upper(), "acme%2Fsecret"]
)
@pytest.mark.parametrize(("method", "path", "body"), PATHS, ids=[path for _, path, _ in PATHS])
def test_another_tenants_model(place, method, path, body, key):
    """By name, SHA-256 or a guessed prefix, on every path: as if it were not there."""
    server, tokens = place
    reply = request(server, method, path.format(key), body, tokens["beta"])
    never = request(server, method, path.format("never"), body, tokens["beta"])
    assert (reply.status, never.status) == (404, 404)
    assert reply.error == never.error
    assert request(server, "GET", "/v2/models/secret", headers=tokens["acme"]).status == 200


@pytest.mark.parametrize("key", ["hidden", hashlib.sha256(add(1.0)).hexdigest(), "secret", DIGEST])
@pytest.mark.parametrize("who", [None, "acme", "beta"])
def test_private_models_of_the_operator(place, who, key):
    """The operator's private models are not there for tenants and anybody."""
    server, tokens = place
    headers = None if who is None else tokens[who]
    status = request(server, "POST", f"/v2/models/{key}/infer", infer_body([1.0]), headers).status
    assert status == (200 if who == "acme" and key in {"secret", DIGEST} else 404)


@pytest.mark.parametrize("key", ["open", hashlib.sha256(identity()).hexdigest()])
def test_public_models(place, key):
    """Anybody runs a public model, by its name or SHA-256."""
    server, tokens = place
    for headers in (None, *tokens.values()):
        reply = request(server, "POST", f"/v2/models/{key}/infer", infer_body([1.0]), headers)
        assert reply.status == 200


def test_anybody_lists_nothing(place):
    """Without a proof there is no list, on REST and gRPC."""
    server, _ = place
    for method, path in (
        ("GET", "/blindai/v1/models"),
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/models/stats"),
    ):
        assert request(server, method, path, b"" if method == "POST" else None).status == 401


def call(server, method, headers, **fields):
    """Call an RPC; return its code, and its answer."""
    request_class = message_class(f"inference.{method}Request")
    answer_class = message_class(f"inference.{method}Response")
    with channel_to(server) as channel:
        rpc = channel.unary_unary(
            f"/{INFERENCE}/{method}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=answer_class.FromString,
        )
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        try:
            return grpc.StatusCode.OK, rpc(request_class(**fields), metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code(), None


def test_grpc_keeps_to_the_same(place):
    """What REST hides and refuses, gRPC hides and refuses."""
    server, tokens = place
    code = grpc.StatusCode
    assert call(server, "ModelMetadata", tokens["acme"], name="secret")[0] is code.OK
    for key in ("secret", DIGEST):
        assert call(server, "ModelMetadata", tokens["beta"], name=key)[0] is code.NOT_FOUND
    assert call(server, "RepositoryIndex", None)[0] is code.UNAUTHENTICATED
    assert call(server, "ModelStatistics", None)[0] is code.UNAUTHENTICATED
    assert call(server, "ModelStatistics", None, name="open")[0] is code.OK
    index = call(server, "RepositoryIndex", tokens["beta"])[1]
    assert [model.name for model in index.models] == ["open", "shared"]


def test_the_same_file_of_two_tenants_has_two_statistics(place):
    """Running a file that another tenant has, too, shows in nobody else's numbers."""
    server, tokens = place

    def count(tenant):
        reply = request(server, "GET", "/v2/models/shared/stats", headers=tokens[tenant])
        return reply.json()["model_stats"][0]["inference_count"]

    before = count("acme"), count("beta")
    assert (
        request(server, "POST", "/v2/models/shared/infer", infer_body([1.0]), tokens["acme"]).status
        == 200
    )
    assert (count("acme"), count("beta")) == (before[0] + 1, before[1])


def test_metrics_say_nothing_of_tenants(place):
    """The unattested port counts the operator's models alone, and of public ones the use."""
    server, _ = place
    text = public_request(server, "GET", "/metrics").body.decode()
    assert hashlib.sha256(identity()).hexdigest()[:12] in text
    for private in (DIGEST, hashlib.sha256(add(1.0)).hexdigest()):
        assert private[:12] not in text
    assert "blindai_models 2.0" in text


def test_quotas(place):
    """A tenant has so many models and bytes, whatever room there is for others."""
    server, tokens = place
    path = "/blindai/v1/models/{}"
    large = request(server, "PUT", path.format("big"), b"\0" * 20_000, tokens["beta"])
    assert (large.status, large.error) == (413, "LimitExceeded")
    assert request(server, "PUT", path.format("two"), add(4.0), tokens["beta"]).status == 201
    third = request(server, "PUT", path.format("three"), add(5.0), tokens["beta"])
    assert (third.status, third.error) == (413, "LimitExceeded")
    assert request(server, "DELETE", path.format("two"), None, tokens["beta"]).status == 204


def test_own_name_before_a_public_one(place):
    """A tenant's model with a public model's name is for that tenant alone."""
    server, tokens = place
    path = "/blindai/v1/models/open"
    assert request(server, "PUT", path, add(9.0), tokens["acme"]).status == 201

    def result(headers):
        reply = request(server, "POST", "/v2/models/open/infer", infer_body([1.0]), headers)
        return reply.json()["outputs"][0]["data"]

    assert result(tokens["acme"]) == [10.0]
    assert result(None) == result(tokens["beta"]) == [1.0]
    assert request(server, "DELETE", path, None, tokens["acme"]).status == 204
    assert result(tokens["acme"]) == [1.0]


def test_a_tenant_cannot_delete_what_is_public(place):
    """Deleting is for one's own models."""
    server, tokens = place
    reply = request(server, "DELETE", "/blindai/v1/models/open", None, tokens["beta"])
    assert reply.status == 404
    assert request(server, "GET", "/v2/models/open").status == 200


def test_too_often_is_429():
    """A tenant beyond its rate is told when to come again; another is not held up."""
    # Rules of their own: the bucket is empty afterwards.
    rules = {"tenants": {"slow": Quota(rate=0.01, burst=1), "other": Quota()}}
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        now = datetime.now(UTC)
        slow, other = (
            create_key(path, name=name, scopes=[Scope.RUN], now=now, tenant=name)[1]
            for name in ("slow", "other")
        )
        made = AccessRules(api_keys=path, **rules)
        with start_server(models={"m": identity()}, config={"access": made}) as server:

            def run(token):
                headers = {"Authorization": f"Bearer {token}"}
                return request(server, "POST", "/v2/models/m/infer", infer_body([1.0]), headers)

            assert run(slow).status == 200
            refused = run(slow)
            assert (refused.status, refused.error) == (429, "RateLimited")
            assert int(refused.headers["retry-after"]) > 1
            assert run(other).status == 200
