"""The protocol's model repository: index, load, unload. Here, a repository is what is loaded.

Always true: a model comes in with the request that loads it, as one file under one name; the
name of that file is compared, and never a path; whoever loads or unloads needs the same right
as for an upload or a deletion.

Specification: Open Inference Protocol (KServe v2), model repository extension, with the
parameters `config` and `file:<version>/<file>` (base64) as Triton's clients send them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blindai.errors import InvalidInput
from blindai.server.access import Access, Scope
from blindai.server.app import Response, json_response
from blindai.server.model_config import (
    DEFAULT_BACKEND,
    ConfigWish,
    backend_of,
    check_config,
    parse_config,
)
from blindai.server.open_inference import MODEL_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from blindai.server.access.principal import Principal
    from blindai.server.config import Limits
    from blindai.server.limits import ByteBudget
    from blindai.server.request import Request
    from blindai.server.service import Service

MODEL_FILE: Final = f"file:{MODEL_VERSION}/model.onnx"
_MAX_SMALL_BODY: Final = 64 << 10
# A request's bytes up to which decoding takes less than the hop to a thread, or little more.
_SMALL: Final = 4096
_CHUNK: Final = 256 << 10
_SHOWN: Final = 200


class _Index(msgspec.Struct):
    ready: bool = False


class _Parameters(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}


@dataclass(frozen=True, slots=True)
class LoadCall:
    """A request to load a model.

    Attributes:
        config: That the model shall have; `None`: not said.
        model: The file; `None`: the model is here already.
    """

    config: ConfigWish | None = None
    model: bytes | None = None


def parse_load(body: bytes | memoryview) -> LoadCall:
    """Read a request to load a model.

    Args:
        body: JSON; empty: no parameters.

    Raises:
        InvalidInput: Anything that cannot be done here, other files above all.
    """
    parameters = _parameters(body)
    for name in parameters:
        if name not in {"config", MODEL_FILE}:
            msg = f"parameters: expected 'config' or {MODEL_FILE!r}, came {name[:_SHOWN]!r}"
            raise InvalidInput(msg)
    config = model = None
    if "config" in parameters:
        config = parse_config(
            _decode(parameters["config"], str, "config: expected JSON as a string")
        )
    if MODEL_FILE in parameters:
        # As bytes, it is decoded from base64 in one go.
        what = f"{MODEL_FILE}: expected a file in base64"
        model = _decode(parameters[MODEL_FILE], bytes, what)
    return LoadCall(config, model)


def parse_unload(body: bytes | memoryview) -> None:
    """Read a request to unload a model; there is nothing in it that changes anything.

    Args:
        body: JSON; empty: no parameters. `unload_dependents` may be said: there are none.

    Raises:
        InvalidInput: Other parameters.
    """
    for name, value in _parameters(body).items():
        if name != "unload_dependents":
            msg = f"parameters: expected 'unload_dependents', came {name[:_SHOWN]!r}"
            raise InvalidInput(msg)
        _decode(value, bool, "unload_dependents: expected true or false")


def parse_index(body: bytes | memoryview) -> None:
    """Read a request for the index; `ready` changes nothing, for all that is here is ready.

    Args:
        body: JSON, or empty.

    Raises:
        InvalidInput: Something else.
    """
    if body:
        _decode(body, _Index, "expected a JSON object, with 'ready' true or false if at all")


class Repository:
    """Handlers of the model repository; see `blindai.server.attested.attested_app`."""

    def __init__(
        self, service: Service, access: Access, limits: Limits, bodies: ByteBudget
    ) -> None:
        self._service = service
        self._access = access
        self._limits = limits
        self._bodies = bodies

    async def index(self, request: Request) -> Response:
        """List the models, one entry for each name."""
        who = self._access.admit(Scope.LIST, request)
        with self._bodies.share() as share:
            parse_index(await request.body(limit=_MAX_SMALL_BODY, share=share))
        return json_response(
            [
                {"name": name, "version": MODEL_VERSION, "state": "READY", "reason": ""}
                for name, _ in self._service.entries(who)
            ]
        )

    async def load(self, request: Request) -> Response:
        """Take in the model that comes with the request, in the place of one with its name."""
        who = self._access.admit(Scope.UPLOAD, request)
        with self._bodies.share() as share:
            body = await request.body(limit=self._limits.max_body_bytes, share=share)
            share.grow(len(body))  # for what it decodes to
            if len(body) <= _SMALL:
                call = parse_load(body)
            else:
                call = await asyncio.to_thread(parse_load, body)
            await load_model(self._service, who, request.name, call)
        return Response(200)

    async def unload(self, request: Request) -> Response:
        """Take a model's name away."""
        who = self._access.admit(Scope.DELETE, request)
        with self._bodies.share() as share:
            parse_unload(await request.body(limit=_MAX_SMALL_BODY, share=share))
        await self._service.delete(request.name, who)
        return Response(200)


async def load_model(service: Service, who: Principal, name: str, call: LoadCall) -> None:
    """Take a model in, in the place of one with its name; or look whether it is here.

    Args:
        service: To have it.
        who: Asks.
        name: Of the model.
        call: What came.

    Raises:
        ModelNotFound: No file came, and no model has this name.
        InferenceError: See `Service.upload`.
    """
    config = call.config or ConfigWish()
    if call.model is None:
        check_config(config, name, backend_of(service.get(name, who).record))
        return
    check_config(config, name, DEFAULT_BACKEND)
    size = len(call.model)
    await service.upload(name, _chunks(call.model), who=who, size=size, sha256=None, replace=True)


def _parameters(body: bytes | memoryview) -> dict[str, msgspec.Raw]:
    if not body:
        return {}
    what = "expected a JSON object with 'parameters', an object"
    parameters: _Parameters = _decode(body, _Parameters, what)
    return parameters.parameters


def _decode(data: bytes | memoryview | msgspec.Raw, kind: Any, expected: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(expected) from None


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
