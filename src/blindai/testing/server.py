"""A real server on free ports, in a thread: for the tests of whoever uses BlindAI.

It is the server of `blindai serve`, with TLS, evidence and limits; only its hardware is
simulated, unless another attester is passed.

>>> with start_server(models={"m": "model.onnx"}) as server:
...     client = blindai.connect(server.address, simulation=True)
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from blindai.attestation.model import Platform
from blindai.attesters import create_attester
from blindai.errors import ConfigurationError, ConnectionFailed
from blindai.server.access import Access, generate_token
from blindai.server.config import Limits, ServerConfig
from blindai.server.run import Ready, serve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from blindai.attesters import Attester

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 60.0


class RunningServer:
    """A server in a thread. Made by `start_server`.

    Attributes:
        address: "host:port" of the attested port.
        public_address: "host:port" of the unattested port.
        grpc_address: "host:port" of the attested port for gRPC.
        token: Needed to upload and delete models.
    """

    def __init__(
        self,
        config: ServerConfig,
        attester: Attester,
        token: str,
        models: Mapping[str, str | Path | bytes],
    ) -> None:
        self.token = token
        self._config = config
        self._attester = attester
        self._models = models
        self._thread: threading.Thread | None = None
        self._start()

    @property
    def port(self) -> int:
        """The attested port."""
        return self._config.port

    @property
    def public_port(self) -> int:
        """The unattested port."""
        return self._config.public_port

    @property
    def address(self) -> str:
        """Host and port, attested."""
        return f"{self._config.host}:{self.port}"

    @property
    def public_address(self) -> str:
        """Host and port, unattested."""
        return f"{self._config.host}:{self.public_port}"

    @property
    def grpc_address(self) -> str:
        """Host and port of gRPC, attested.

        Raises:
            ConfigurationError: The configuration has no such port.
        """
        if self._config.grpc_port is None:
            msg = "expected a server with grpc_port, came one without"
            raise ConfigurationError(msg)
        return f"{self._config.host}:{self._config.grpc_port}"

    def restart(self) -> None:
        """Stop, and start on the same ports with new keys; uploaded models are gone."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """Stop as after SIGTERM, and wait for the end; does nothing the second time.

        Raises:
            ConnectionFailed: It does not end.
        """
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            msg = f"the server did not stop within {_STOP_SECONDS} seconds"
            raise ConnectionFailed(msg)
        self._thread = None

    def _start(self) -> None:
        self._changed = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="blindai-server", daemon=True)
        self._thread.start()
        if not self._changed.wait(_START_SECONDS):
            msg = f"the server did not start within {_START_SECONDS} seconds"
            raise ConnectionFailed(msg)
        for error in self._errors:
            self._thread.join()
            self._thread = None
            raise error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again where the server was started
            self._errors.append(error)
        finally:
            self._changed.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        with Access(self.token, self._config.access) as access:
            await serve(
                self._config,
                self._attester,
                access=access,
                on_ready=self._on_ready,
                stop=self._stop,
            )

    def _on_ready(self, ready: Ready) -> None:
        self._config = replace(
            self._config,
            port=ready.address[1],
            public_port=ready.public_address[1],
            grpc_port=None if ready.grpc_address is None else ready.grpc_address[1],
        )
        for name, model in self._models.items():
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            with ready.store.begin_upload(name) as upload:
                upload.write(content)
                upload.commit()
        self._changed.set()


@contextmanager
def start_server(
    *,
    attester: Attester | None = None,
    platform: str = Platform.SIMULATION,
    token: str | None = None,
    models: Mapping[str, str | Path | bytes] | None = None,
    config: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Iterator[RunningServer]:
    """Run a server on free ports of this machine until the end of the block.

    Args:
        attester: Makes evidence; instead of the platform's own.
        platform: Where none is passed, whose.
        token: For uploads; instead of a random one.
        models: Name → path or content of an ONNX file; there from the start.
        config: Further fields of `blindai.server.config.ServerConfig`.
        limits: Fields of `blindai.server.config.Limits`.

    Yields:
        The server, serving.

    Raises:
        ConfigurationError: A setting cannot be used.
        InvalidModel: One of the models cannot be loaded.
    """
    attester = attester or create_attester(platform)
    settings: dict[str, Any] = {"port": 0, "public_port": 0, "grpc_port": 0, **(config or {})}
    server = RunningServer(
        ServerConfig(platform=attester.platform, limits=Limits(**limits), **settings),
        attester,
        token or generate_token(),
        models or {},
    )
    try:
        yield server
    finally:
        server.stop()
