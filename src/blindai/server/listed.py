"""The models that the configuration names one by one: from a file, or fetched over https.

Always true: what is fetched has the SHA-256 that the operator wrote down, or is not served;
it is bounded while it is read, goes straight into the store's file, and no redirect is
followed. The host that it comes from is trusted with nothing.
"""

from __future__ import annotations

import http.client
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from blindai.errors import BlindAIError, ConfigurationError, ConnectionFailed, InvalidModel
from blindai.inference.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blindai.inference.store import ModelStore
    from blindai.server.config import ModelToLoad

_CHUNK: Final = 1 << 20
_OK: Final = 200
_IDLE_SECONDS: Final = 30.0
_MAX_SECONDS: Final = 3600.0


def load_listed(
    models: Sequence[ModelToLoad],
    store: ModelStore,
    *,
    context: ssl.SSLContext | None = None,
) -> list[tuple[Path, BlindAIError]]:
    """Load models into a store; names that are taken by the same file are left alone.

    Args:
        models: Which.
        store: That gets them.
        context: Decides which hosts are who they say; default: the machine's authorities.

    Returns:
        Those that could not be loaded, by the names of their settings (`load.0`), for what models
        are called is in no log; each with the error that says why.
    """
    failed: list[tuple[Path, BlindAIError]] = []
    for position, model in enumerate(models):
        try:
            _load(model, store, context)
        except BlindAIError as error:
            failed.append((Path(f"load.{position}"), error))
    return failed


def _load(model: ModelToLoad, store: ModelStore, context: ssl.SSLContext | None) -> None:
    with store.begin_upload(model.name, options=parse_options(model.options)) as upload:
        chunks = _read(model.path) if model.path is not None else _fetch(model.url or "", context)
        for chunk in chunks:
            upload.write(chunk)
        upload.commit(expected_sha256=model.sha256)


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise InvalidModel(msg) from error


def _fetch(url: str, context: ssl.SSLContext | None) -> Iterator[bytes]:
    """Yield what is at an address, as it comes."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        msg = "url: expected https, a host, and nobody's password"
        raise ConfigurationError(msg)
    ends = time.monotonic() + _MAX_SECONDS
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPSConnection(
        parts.hostname,
        parts.port,
        timeout=_IDLE_SECONDS,
        context=context or ssl.create_default_context(),
    )
    try:
        connection.request("GET", target, headers={"User-Agent": "blindai"})
        with connection.getresponse() as response:
            if response.status != _OK:
                msg = f"{parts.hostname}: expected HTTP 200, came {response.status}"
                raise ConnectionFailed(msg)
            while chunk := response.read1(_CHUNK):
                if time.monotonic() > ends:
                    msg = f"{parts.hostname}: expected a model within {_MAX_SECONDS:g} seconds"
                    raise ConnectionFailed(msg)
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        msg = f"{parts.hostname}: no model ({type(error).__name__})"
        raise ConnectionFailed(msg) from error
    finally:
        connection.close()
