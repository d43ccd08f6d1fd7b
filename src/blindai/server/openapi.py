"""The OpenAPI document of a port: `openapi.json` beside this file, cut to the paths it serves.

Always true: what a port describes is what it serves, path by path and method by method; a path
that the document lacks is an error when the server starts.

Specification: OpenAPI 3.1.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blindai.errors import ConfigurationError
from blindai.server.app import Response

if TYPE_CHECKING:
    from blindai.server.app import Routes
    from blindai.server.request import Request

PATH: Final = b"/openapi.json"


def with_document(*tables: Routes) -> Routes:
    """Return the first table with one path more: the document of all of them.

    Args:
        tables: That one port serves.

    Raises:
        ConfigurationError: A path that the document lacks.
    """
    served = {
        path.decode(): {method.lower() for method in methods}
        for table in tables
        for path, methods in table.items()
    }
    served[PATH.decode()] = {"get"}
    response = Response(200, (msgspec.json.encode(describe(served)),))

    async def document(_: Request) -> Response:
        return response

    return {**tables[0], PATH: {"GET": document}}


def describe(served: dict[str, set[str]]) -> dict[str, Any]:
    """Return the document for some paths.

    Args:
        served: Path → its methods, in lower case.

    Raises:
        ConfigurationError: One that the document lacks.
    """
    document = load_document()
    paths: dict[str, dict[str, Any]] = document["paths"]
    for path, methods in served.items():
        if missing := methods - paths.get(path, {}).keys():
            msg = f"expected {path} in openapi.json, came no {', '.join(sorted(missing))}"
            raise ConfigurationError(msg)
    info = {**document["info"], "version": metadata.version("blindai")}
    cut = {
        path: {method: operation for method, operation in methods.items() if method in served[path]}
        for path, methods in paths.items()
        if path in served
    }
    return {**document, "info": info, "paths": cut}


@cache
def load_document() -> dict[str, Any]:
    """Return the whole document, of both ports. Not to be changed."""
    text = resources.files("blindai.server").joinpath("openapi.json").read_bytes()
    document: dict[str, Any] = msgspec.json.decode(text)
    return document
