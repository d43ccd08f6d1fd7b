"""The OpenAPI document says what each port serves: all of it, and nothing else."""

import json
import re

import pytest

from blindai.attestation.wire import MEDIA_TYPE
from blindai.errors import ConfigurationError
from blindai.inference.tensors import DataType
from blindai.server.openapi import describe, load_document
from blindai.server.unsupported import unsupported_routes
from tests.server.talk import public_request, request

PORTS = {"attested": request, "unattested": public_request}


@pytest.fixture(params=PORTS)
def port(request):
    """How to ask one of the ports."""
    return PORTS[request.param]


def test_every_path_and_method_is_served(server, port):
    """What is described is there: no answer says that it knows no such path or method."""
    paths = port(server, "GET", "/openapi.json").json()["paths"]
    assert "/v2" in paths
    for path, methods in paths.items():
        for method in methods:
            reply = port(server, method.upper(), path.replace("{name}", "no-model"))
            assert reply.status != 405
            assert b"no such path" not in reply.body


def test_nothing_else_is_served(server, port):
    """A method that is not described is 405, and a path that is not described 404."""
    described = port(server, "GET", "/openapi.json").json()["paths"]
    for path in load_document()["paths"]:
        for method in ("get", "post", "put", "delete", "patch"):
            reply = port(server, method.upper(), path.replace("{name}", "no-model"))
            unknown = reply.status == 405 or b"no such path" in reply.body
            # A name can stand where another path has a word of its own.
            shadow = path == "/v2/models/stats"
            assert unknown == (method not in described.get(path, {})) or shadow


def test_a_path_that_nobody_described():
    """A server with a path that the document lacks does not start."""
    with pytest.raises(ConfigurationError, match="/v2/new"):
        describe({"/v2/new": {"get"}})
    with pytest.raises(ConfigurationError, match="post"):
        describe({"/v2": {"get", "post"}})


def test_references_lead_somewhere():
    """Every reference has a target, and every part is used."""
    document = load_document()
    text = json.dumps(document)
    referred = set(re.findall(r'"#/components/(\w+/\w+)"', text))
    components = document["components"]
    parts = {
        f"{kind}/{name}"
        for kind, named in components.items()
        if kind != "securitySchemes"
        for name in named
    }
    assert referred == parts


def test_identifiers_and_parameters():
    """Operations have identifiers of their own, and the parameters that stand in their path."""
    operations = [
        (path, operation)
        for path, methods in load_document()["paths"].items()
        for operation in methods.values()
    ]
    identifiers = [operation["operationId"] for _, operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    name = {"$ref": "#/components/parameters/name"}
    for path, operation in operations:
        assert ("{name}" in path) == (name in operation.get("parameters", []))
        assert operation["summary"].endswith(".")


def test_types_are_ours():
    """Datatypes and media types are those of the code."""
    document = load_document()
    assert document["components"]["schemas"]["DataType"]["enum"] == list(map(str, DataType))
    evidence = document["paths"]["/blindai/v1/evidence"]["get"]
    assert list(evidence["responses"]["200"]["content"]) == [MEDIA_TYPE]


def test_extensions_that_are_not_here(server):
    """Shared memory, traces and log settings are 501, in the protocol's form of an error."""
    for path, methods in unsupported_routes().items():
        for method in methods:
            reply = request(server, method, path.decode().replace("{name}", "x"), b"{}")
            assert (reply.status, reply.error) == (501, "InferenceError")
            assert "not supported" in reply.json()["error"]
