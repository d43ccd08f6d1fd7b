"""Put a server together, run it, and end it in order.

Always true: all ports are taken before anything slow begins; nothing is served but evidence
and health until the models are loaded; after a signal nothing new is accepted, and what runs
may end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import uvloop

from blindai.attestation.model import Platform
from blindai.attesters.nvidia_gpu import NvidiaAttester
from blindai.channel.tls import server_context
from blindai.errors import BlindAIError, ConfigurationError, Overloaded
from blindai.server.attested import attested_app
from blindai.server.audit import AuditLog
from blindai.server.events import log_event
from blindai.server.grpc.listener import GrpcListener
from blindai.server.grpc.methods import all_methods
from blindai.server.identity import EvidenceDesk, Identity
from blindai.server.limits import ByteBudget
from blindai.server.listener import Listener, bind
from blindai.server.load_history import LoadHistory
from blindai.server.opening import load_models, open_service, open_sink
from blindai.server.public import About, public_app, service_report
from blindai.server.sealing import IN_MEMORY_ONLY
from blindai.server.service import Service, State
from blindai.server.statistics import operator_statistics
from blindai.server.store_folder import store_folder
from blindai.server.telemetry import Telemetry
from blindai.server.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta
    from pathlib import Path

    from blindai.attesters import Attester
    from blindai.inference.sandbox import Sandbox
    from blindai.inference.store import ModelStore
    from blindai.server.access import Access, AccessRules
    from blindai.server.config import ServerConfig
    from blindai.server.grpc.connection import Connection
    from blindai.server.protocol import BoundedProtocol

_HOUR: Final = 3600.0
# Models, libraries, devices; connections that are not through TLS's handshake.
_OTHER_FILES: Final = 1024
_STOP_SECONDS: Final = 2.0
# For threads to end after the last answer.
_LAST_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that serves.

    Attributes:
        address: Host and port, attested.
        public_address: Host and port, unattested.
        grpc_address: Host and port, attested; `None`: no gRPC.
        store: Its models.
        failed: Models that could not be loaded, each with its error.
        caveats: What is to be said of models and restarts.
    """

    address: tuple[str, int]
    public_address: tuple[str, int]
    grpc_address: tuple[str, int] | None
    store: ModelStore
    failed: Sequence[tuple[Path, BlindAIError]]
    caveats: Sequence[str] = ()


def run(
    config: ServerConfig,
    attester: Attester,
    *,
    access: Access,
    on_ready: Callable[[Ready], None],
    sandbox: Sandbox | None = None,
    telemetry: Telemetry | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; for a process that does nothing else.

    Args:
        config: How.
        attester: Makes evidence.
        access: Who may do what.
        on_ready: Called once, when everything is served.
        sandbox: Tries each model before it is loaded here.
        telemetry: Sends reports; `None`: nothing does.

    Raises:
        ConfigurationError: A port, a folder or the attester cannot be used.
    """
    # A core dump would put keys and data on the operator's disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow_files(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            serve(
                config,
                attester,
                access=access,
                on_ready=on_ready,
                sandbox=sandbox,
                telemetry=telemetry,
                alone=True,
            )
        )


def _allow_files(config: ServerConfig) -> None:
    """Let this process have the files that its connections are, as far as the operator allows."""
    needed = 3 * config.limits.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def serve(
    config: ServerConfig,
    attester: Attester,
    *,
    access: Access,
    on_ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
    reload: asyncio.Event | None = None,
    sandbox: Sandbox | None = None,
    telemetry: Telemetry | None = None,
    alone: bool = False,
) -> None:
    """Serve until `stop` is set; in the main thread also until SIGTERM or SIGINT.

    Args:
        config: How.
        attester: Makes evidence; of the platform that the configuration names.
        access: Who may do what.
        on_ready: Called once, when everything is served.
        stop: Ends the server.
        reload: Has it read again what proofs are checked with; in the main thread SIGHUP, too.
        sandbox: Tries each model before it is loaded here.
        telemetry: Sends reports; `None`: nothing does.
        alone: The process does nothing else: it ends even if a run does not.

    Raises:
        ConfigurationError: A port, a folder or the attester cannot be used.
    """
    if attester.platform is not config.platform:
        msg = f"expected an attester for {config.platform}, came one for {attester.platform}"
        raise ConfigurationError(msg)
    stop, reload = stop or asyncio.Event(), reload or asyncio.Event()
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(bind(config.host, config.port, "port")),
            stack.enter_context(bind(config.host, config.public_port, "public_port")),
        ]
        if config.grpc_port is not None:
            sockets.append(stack.enter_context(bind(config.host, config.grpc_port, "grpc_port")))
        folder = stack.enter_context(store_folder(config))
        audit = None
        if config.audit_log is not None:
            audit = AuditLog(config.audit_log)
            stack.callback(audit.close)
        tracing = None
        if config.otlp_endpoint is not None:
            sink = open_sink(config.otlp_endpoint)
            stack.callback(sink.close)
            tracing = Tracing(sink, config.trace_ratio)
        service = open_service(config, folder, sandbox, audit, tracing)
        bodies = ByteBudget(
            config.limits.max_bodies_bytes, service.memory, make_room=service.make_room
        )
        stack.callback(_end_in_time if alone else Service.close, service)
        stack.enter_context(_signals(stop, reload))
        attesting = stack.enter_context(ThreadPoolExecutor(1, "blindai-attest"))
        attested, public = (Listener(each, config.limits) for each in sockets[:2])
        grpc = None
        if config.grpc_port is not None:
            grpc = GrpcListener(sockets[2], config.limits, service, bodies)
        server = _Server(
            config, attester, access, service, attesting, bodies, attested, public, grpc
        )
        server.telemetry = telemetry or server.telemetry
        await server.run(on_ready, stop, reload)


class _Server:
    """The parts of a running server.

    Attributes:
        telemetry: Sends reports, or nothing. Set before it runs.
    """

    def __init__(
        self,
        config: ServerConfig,
        attester: Attester,
        access: Access,
        service: Service,
        attesting: ThreadPoolExecutor,
        bodies: ByteBudget,
        attested: Listener,
        public: Listener,
        grpc: GrpcListener | None,
    ) -> None:
        self._config = config
        self._attester = attester
        self._access = access
        self._service = service
        self._attesting = attesting
        self._attested = attested
        self._public = public
        self._grpc = grpc
        self._bodies = bodies
        self.telemetry = Telemetry.off()
        self._load = LoadHistory(partial(operator_statistics, service))
        self._taking = asyncio.Lock()

    async def run(
        self, on_ready: Callable[[Ready], None], stop: asyncio.Event, reload: asyncio.Event
    ) -> None:
        """Serve from the first key to the last answer."""
        always: list[asyncio.Task[None]] = []
        try:
            await self._take_identity()
            failed = await self._load_models()
            self._service.state = State.READY
            always.append(asyncio.create_task(self._renew()))
            always.append(asyncio.create_task(self._load.record_for_ever()))
            if self.telemetry.choice.endpoint is not None:
                report = partial(service_report, self._service, self._config.platform)
                always.append(asyncio.create_task(self.telemetry.send_for_ever(report)))
            always.append(asyncio.create_task(self._reload(reload)))
            if self._config.prune_after is not None:
                always.append(asyncio.create_task(self._prune(self._config.prune_after)))
            log_event(
                "ready",
                platform=self._config.platform,
                simulated=self._config.platform is Platform.SIMULATION,
                address="{}:{}".format(*self._attested.address),
                public_address="{}:{}".format(*self._public.address),
                models=len(self._service.store.records()),
            )
            on_ready(
                Ready(
                    self._attested.address,
                    self._public.address,
                    None if self._grpc is None else self._grpc.address,
                    self._service.store,
                    failed,
                    self._caveats(),
                )
            )
            await _first(asyncio.create_task(stop.wait()), *always)
        finally:
            for task in always:
                task.cancel()
            await self._shut_down()

    def _caveats(self) -> tuple[str, ...]:
        """Return what is to be said of models and restarts."""
        sealed = [shelf.sealed for shelf in self._service.shelves if shelf.sealed is not None]
        if not sealed:
            return (IN_MEMORY_ONLY,)
        return tuple(dict.fromkeys(caveat for each in sealed for caveat in each.caveats))

    async def _take_identity(self) -> None:
        """Make keys, and serve with them from now on; one at a time."""
        async with self._taking:
            await self._take_keys()

    async def _take_keys(self) -> None:
        devices = NvidiaAttester() if self._config.gpus else None
        identity = Identity.create(
            self._attester, self._config, now=datetime.now(UTC), devices=devices
        )
        limits = self._config.limits
        desk = EvidenceDesk(identity, self._attesting, limits)
        # Fails here and now where the hardware does not answer, and not at the first client.
        evidence = await desk.cached()
        if self._service.audit is not None:
            await self._sign_with(identity, evidence, self._service.audit)
        # What callers left inside was for the keys that they had verified.
        self._service.stepping.close()
        app = attested_app(self._service, desk, self._access, limits, self._bodies)
        await self._attested.serve(app, identity.context)
        if self._grpc is not None:
            rules = self._config.access
            context = server_context(
                identity.keys.tls,
                identity.certificate,
                protocols=["h2"],
                client_ca=rules.client_ca,
                client_crl=rules.client_crl,
            )
            await self._grpc.serve(all_methods(self._service, desk, self._access), context)
        # Of its own, so that nobody there can use up what clients need.
        public_desk = EvidenceDesk(identity, self._attesting, limits)
        about = About(
            port=self._attested.address[1],
            grpc_port=None if self._grpc is None else self._grpc.address[1],
            confinement=self._config.confinement,
            listed=self._config.access.listed,
            load=self._load,
            telemetry=self.telemetry,
        )
        app = public_app(self._service, public_desk, self._bodies, about)
        await self._public.serve(app, None)
        not_after = identity.keys.public.not_after
        log_event("new_keys", not_after=not_after.isoformat())

    async def _sign_with(self, identity: Identity, evidence: bytes, audit: AuditLog) -> None:
        """Let the audit log be signed with new keys; where it cannot say so, with the old ones."""
        try:
            await asyncio.to_thread(audit.begin, identity.keys.receipt, evidence)
            if self._service.state is State.STARTING:
                self._access.tell_changes(
                    lambda count, sha256: audit.note("access", count=count, sha256=sha256)
                )
        except Overloaded as error:
            if self._service.state is State.STARTING:
                raise ConfigurationError(str(error)) from error

    async def _renew(self) -> None:
        """Make new keys after half of the old ones' life; end what holds expired ones."""
        old = self._connections()
        while True:
            await asyncio.sleep(self._config.key_lifetime.total_seconds() / 2)
            for connection in old:
                connection.shutdown()
            old = self._connections()
            await self._take_identity()

    async def _reload(self, told: asyncio.Event) -> None:
        """Read again, each time when told, what proofs are checked with."""
        while True:
            await told.wait()
            told.clear()
            try:
                await self._adopt(await asyncio.to_thread(self._access.read_again))
            except BlindAIError as error:
                log_event("not_reloaded", level="error", error=type(error).__name__)
            else:
                log_event("reloaded")

    async def _adopt(self, rules: AccessRules) -> None:
        """Go by these rules; with new keys where clients see them in what is attested."""
        if rules == self._config.access:
            return
        before = self._config
        old = self._connections()
        self._config = replace(before, access=rules)
        try:
            await self._take_identity()
        except BaseException:
            self._config = before
            raise
        self._access.adopt(rules)
        # Who was let in by an authority that is gone, or verified other rules, comes again.
        for connection in old:
            connection.shutdown()

    async def _prune(self, unused_for: timedelta) -> None:
        """Delete, hour by hour, what nobody runs any more."""
        while True:
            try:
                gone = await asyncio.to_thread(self._service.prune, unused_for, self._config.spared)
            except BlindAIError as error:
                log_event("pruning_failed", level="error", error=type(error).__name__)
            else:
                for sha256 in gone:
                    log_event("model_pruned", sha256=sha256)
            await asyncio.sleep(_HOUR)

    def _connections(self) -> list[BoundedProtocol | Connection]:
        """Return those that hold the present keys, or older ones."""
        grpc = [] if self._grpc is None else self._grpc.connections()
        return [*self._attested.connections(), *grpc]

    async def _load_models(self) -> list[tuple[Path, BlindAIError]]:
        failed = await asyncio.to_thread(load_models, self._service, self._config, self._attester)
        for path, error in failed:
            log_event("model_refused", level="error", file=path.name, error=type(error).__name__)
        return failed

    async def _shut_down(self) -> None:
        self._service.state = State.STOPPING
        log_event("stopping", running=self._service.running)
        listeners: list[Listener | GrpcListener] = [self._attested, self._public]
        if self._grpc is not None:
            listeners.append(self._grpc)
        for listener in listeners:
            listener.stop_accepting()
        attested = [listener for listener in listeners if listener is not self._public]
        if not await _finish(attested, self._config.limits.shutdown_grace):
            self._service.stop_runs()
            await _finish(attested, _STOP_SECONDS)
        for listener in listeners:
            await listener.close()
        log_event("stopped")


def _end_in_time(service: Service) -> None:
    """Close the service; end the process if an operator of a model does not let go of a thread.

    Everybody was answered by now, and what is sealed is whole at any time.
    """

    def leave() -> None:
        try:
            log_event("run_does_not_end", level="error", running=service.running)
        finally:
            os._exit(0)

    patience = threading.Timer(_LAST_SECONDS, leave)
    patience.daemon = True
    patience.start()
    try:
        service.close()
    finally:
        patience.cancel()


async def _finish(listeners: Sequence[Listener | GrpcListener], seconds: float) -> bool:
    """Wait for what runs; return whether all of it ended in time."""
    return all(await asyncio.gather(*(listener.finish(seconds) for listener in listeners)))


async def _first(*tasks: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Wait for the first to end, cancel the others, and raise what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


@contextlib.contextmanager
def _signals(stop: asyncio.Event, reload: asyncio.Event) -> Iterator[None]:
    """Let signals set events, where this is the thread that gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    events = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    for number, event in events.items():
        loop.add_signal_handler(number, event.set)
    try:
        yield
    finally:
        for number in events:
            loop.remove_signal_handler(number)
