"""What every protocol calls: run, upload, list, delete. Knows no HTTP and no bytes of it.

Always true: the event loop that calls never waits for a model, a disk or a lock that is held
longer than a moment; what is quickly decoded is decoded on it, the rest on a thread; a run takes
one hop to a worker of the scheduler, on which its protocol also encodes, unless the scheduler
knows that the hop would take longer than the run (`blindai.inference.sprints`); uploads and loads
have threads of their own, so that they never take one from a run; every queue is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from blindai.errors import (
    BlindAIError,
    InferenceError,
    InvalidInput,
    ModelNotFound,
    Overloaded,
)
from blindai.inference.memory import Memory
from blindai.inference.options import ModelOptions
from blindai.inference.resting import RestingModel
from blindai.inference.scheduler import Scheduler
from blindai.server.access.accounts import Parties
from blindai.server.access.principal import OPERATOR, Principal
from blindai.server.events import log_event
from blindai.server.pipe import PIPE_BYTES, Pipe, next_unless
from blindai.server.pruning import prune
from blindai.server.sealing import SealedModels
from blindai.server.shelves import Shelf, Shelves
from blindai.server.stepping import Stepping
from blindai.server.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from blindai.channel.audit import Event
    from blindai.inference.engine import RunHandle
    from blindai.inference.sequences import Step
    from blindai.inference.store import LoadedModel, ModelRecord, ModelStore, Upload
    from blindai.inference.tensors import Tensor
    from blindai.server.audit import AuditLog, Who
    from blindai.server.config import ServerConfig
    from blindai.server.stepping import Caller
    from blindai.server.tracing import Tracing

# Bytes to decode that take less time than the hop to a thread, or little more.
SMALL: Final = 4096


class Call(Protocol):
    """What a protocol makes of a request's bytes."""

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Of the model."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs that are wanted; empty: all."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds after which the caller no longer cares."""
        ...

    @property
    def priority(self) -> int:
        """Of the scheduler; 0 is the usual one."""
        ...

    @property
    def sequence(self) -> Step | None:
        """What it is a step of; `None`: it stands alone."""
        ...


CallT = TypeVar("CallT", bound=Call)
AnswerT = TypeVar("AnswerT")


class State(Enum):
    """Where in its life a server is."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Service:
    """Models, and threads to run them on. Its coroutines are for one event loop.

    Args:
        store: Holds the operator's models.
        config: How many runs, how many waiting, and which models are public.
        tenants: Hold the models of tenants, by their names.
        audit: Told of what changes what is served.
        tracing: Traces requests.
        memory: Counts what the stores hold; `None`: nobody does.

    Attributes:
        limits: What it accepts.
        state: Set by whoever runs the server.
        audit: Told of what changes what is served, before it does; `None`: nobody is.
        shelves: Whose models are where.
        memory: Counts what is held.
        scheduler: Runs the models; its statistics are for metrics.
        stepping: Keeps state between the steps of sequences.
        traffic: Counts what comes and goes.
        tracing: Traces requests; `None`: nothing does.
    """

    def __init__(
        self,
        store: ModelStore,
        config: ServerConfig,
        tenants: Mapping[str, ModelStore] | None = None,
        *,
        audit: AuditLog | None = None,
        tracing: Tracing | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.store = store
        self.memory = memory or Memory(config.limits.max_memory_bytes)
        self.shelves = Shelves(store, config.access, tenants or {})
        self.state = State.STARTING
        self.audit = audit
        self.tracing = tracing
        self.limits = config.limits
        self._max_batch = config.max_batch
        self.scheduler = Scheduler(
            workers=config.concurrency,
            max_queue=config.limits.max_queue,
            options_for=lambda record: record.options.scheduling(config.max_batch),
            load_again=self.shelves.load_again,
        )
        self.stepping = Stepping(config.limits)
        self.traffic = Traffic()
        self._decodes = ThreadPoolExecutor(config.concurrency, "blindai-decode")
        self._loads = ThreadPoolExecutor(config.limits.max_uploads, "blindai-load")
        # Of their own: an upload may take minutes, and whoever runs a model waits here.
        self._wakes = ThreadPoolExecutor(config.concurrency, "blindai-wake")
        self._capacity = config.concurrency + config.limits.max_queue
        self._running: set[RunHandle] = set()
        self._has_tenants = bool(config.access.tenants)
        self._parties = Parties(self._capacity)
        self._is_making_room = False
        self._uploading = 0

    @property
    def running(self) -> int:
        """Runs that are under way or wait for a thread."""
        return len(self._running)

    def get(self, key: str, who: Principal) -> LoadedModel:
        """Return a model by its name or SHA-256.

        Args:
            key: Of one of their tenant's models, or of one that is public.
            who: Asks.

        Raises:
            ModelNotFound: No such model, for them.
        """
        return self.shelves.get(key, who)

    def entries(self, who: Principal) -> list[tuple[str, LoadedModel]]:
        """Return the models that somebody can see, one entry for each name, in their order."""
        return self.shelves.entries(who)

    def make_room(self, count: int) -> None:
        """Let models rest, in the background, until there is memory for so many bytes."""
        if self._is_making_room:
            return
        self._is_making_room = True

        def work() -> None:
            try:
                self.memory.make_room(count)
            finally:
                self._is_making_room = False

        self._wakes.submit(work)

    async def infer(
        self,
        key: str,
        decode: Callable[[], CallT],
        encode: Callable[[CallT, ModelRecord, list[Tensor]], AnswerT],
        *,
        who: Principal,
        work: int,
        handle: RunHandle,
        caller: Callable[[], Caller],
    ) -> AnswerT:
        """Run a model once.

        Args:
            key: The model's name or SHA-256.
            decode: Makes the call of a request; runs on a thread if that is much work.
            encode: Makes the answer of a call and its outputs; runs on the run's thread.
            who: Asks.
            work: Bytes of the request that decoding has to look at one by one.
            handle: Stops the run from outside. Of this run alone.
            caller: Says who asks; called for a step of a sequence only.

        Raises:
            ModelNotFound: No such model.
            InvalidInput: Inputs that do not fit, or no such sequence.
            Overloaded: Too many runs wait, or there is no memory for this one.
            RateLimited: Too many of their tenant's.
            DeadlineExceeded: The caller's time, or the server's own, is over.
            InferenceError: The run was stopped, or failed.
        """
        model = self.get(key, who)
        if not self._has_tenants:
            return await self._infer(model, decode, encode, work, handle, caller)
        with self._parties.run(who.tenant) as behind, who.counted_run():
            return await self._infer(model, decode, encode, work, handle, caller, behind)

    async def _infer(
        self,
        model: LoadedModel,
        decode: Callable[[], CallT],
        encode: Callable[[CallT, ModelRecord, list[Tensor]], AnswerT],
        work: int,
        handle: RunHandle,
        caller: Callable[[], Caller],
        behind: int = 0,
    ) -> AnswerT:
        if len(self._running) >= self._capacity:
            msg = f"{len(self._running)} requests run or wait, which is the limit"
            raise Overloaded(msg)
        began = time.monotonic()
        self._running.add(handle)
        try:
            if isinstance(model.model, RestingModel) and model.model.is_resting:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._wakes, model.model.wake)
            if work <= SMALL:
                call = decode()
            else:
                loop = asyncio.get_running_loop()
                call = await loop.run_in_executor(self._decodes, decode)
            if call.sequence is None:
                run = self._submit(model, call, encode, began, handle, behind)
                return run.result() if run.done() else await asyncio.wrap_future(run)
            submit = partial(self._submit, began=began, handle=handle, behind=behind)
            return await self.stepping.step(caller(), call.sequence, model, call, encode, submit)
        except InferenceError as error:
            if handle.terminated and self.state is State.STOPPING:
                msg = "the server is stopping"
                raise Overloaded(msg) from error
            raise
        finally:
            # After a cancellation the thread may still be at it.
            handle.terminate()
            self._running.discard(handle)

    def _submit(
        self,
        model: LoadedModel,
        call: CallT,
        encode: Callable[[CallT, ModelRecord, list[Tensor]], AnswerT],
        began: float,
        handle: RunHandle,
        behind: int,
    ) -> Future[AnswerT]:
        longest = self.limits.max_run_time
        return self.scheduler.submit(
            model,
            call.inputs,
            call.outputs,
            deadline=began + (longest if call.timeout is None else min(call.timeout, longest)),
            priority=call.priority,
            behind=behind,
            may_wait=True,
            handle=handle,
            finish=partial(encode, call, model.record),
        )

    async def upload(
        self,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        who: Principal,
        size: int | None,
        sha256: str | None,
        replace: bool,
        options: ModelOptions | None = None,
    ) -> tuple[ModelRecord, bool]:
        """Receive a model and load it.

        Args:
            name: That it shall have.
            chunks: Its bytes. If it raises, nothing is kept.
            who: Asks; the model is their tenant's.
            size: In bytes, where it is known.
            sha256: In hexadecimal, where it is known.
            replace: Take the name from a model with other weights.
            options: How it is to run.

        Returns:
            The record, and whether the name is new to these bytes.

        Raises:
            InferenceError: One of its subclasses; see `blindai.inference.upload`.
        """
        with who.account.upload() if who.account is not None else contextlib.nullcontext():
            return await self._upload(
                name, chunks, who, size=size, sha256=sha256, replace=replace, options=options
            )

    async def _upload(
        self,
        name: str,
        chunks: AsyncIterator[bytes],
        who: Principal,
        *,
        size: int | None,
        sha256: str | None,
        replace: bool,
        options: ModelOptions | None,
    ) -> tuple[ModelRecord, bool]:
        options = options or ModelOptions()
        options.scheduling(self._max_batch)  # refuses what the operator does not allow
        if self._uploading >= self.limits.max_uploads:
            msg = f"{self._uploading} uploads are under way, which is the limit"
            raise Overloaded(msg, retry_after=10.0)
        buffered = PIPE_BYTES if size is None else min(size, PIPE_BYTES)
        if not self.memory.take(buffered):
            self.memory.refused += 1
            self.make_room(buffered)
            msg = "there is no memory for an upload now"
            raise Overloaded(msg)
        loop = asyncio.get_running_loop()
        pipe = Pipe(loop)
        shelf = self.shelves.of(who)
        begin = partial(shelf.store.begin_upload, name, expected_size=size, options=options)
        job = partial(self._receive, pipe, begin, shelf, who, sha256=sha256, replace=replace)
        self._uploading += 1
        worker = loop.run_in_executor(self._loads, job)
        worker.add_done_callback(partial(self._upload_ended, buffered))
        worker.add_done_callback(pipe.wake)
        try:
            while (chunk := await next_unless(chunks, worker)) is not None:
                await pipe.put(chunk)
        except BaseException:
            pipe.abort()
            # Whoever asked for it is told after its traces are gone, not before.
            await asyncio.wait([worker])
            raise
        pipe.end()
        return await asyncio.shield(worker)

    def _upload_ended(
        self, buffered: int, worker: asyncio.Future[tuple[ModelRecord, bool]]
    ) -> None:
        self._uploading -= 1
        self.memory.release(buffered)
        # Looked at, or asyncio complains of an exception that nobody was left to be told.
        if not worker.cancelled():
            worker.exception()

    def _receive(
        self,
        pipe: Pipe,
        begin: Callable[[], Upload],
        shelf: Shelf,
        who: Principal,
        *,
        sha256: str | None,
        replace: bool,
    ) -> tuple[ModelRecord, bool]:
        with begin() as upload:
            for chunk in pipe:
                upload.write(chunk)
            before = next((r.key for r in shelf.store.records() if upload.name in r.names), None)
            with self._audited("upload", who, model=upload.sha256, size=upload.size):
                record = upload.commit(expected_sha256=sha256, replace=replace)
                if shelf.sealed is not None:
                    shelf.sealed.keep(upload.name, shelf.store.get(record.key))
            # Unless it was deleted at once.
            with contextlib.suppress(ModelNotFound):
                self.scheduler.prepare(shelf.store.get(record.key))
        log_event("model_loaded", sha256=record.sha256, size=record.size)
        return record, before != record.key

    async def delete(self, name: str, who: Principal) -> None:
        """Take a name away, and with its last name the model.

        Args:
            name: Of one of their tenant's models.
            who: Asks.

        Raises:
            ModelNotFound: No model of theirs has this name.
        """
        shelf = self.shelves.of(who)
        await asyncio.to_thread(self._delete, name, shelf, who)
        log_event("model_deleted", models=len(shelf.store.records()))

    def prune(self, unused_for: timedelta, spared: AbstractSet[str]) -> list[str]:
        """Delete models that nobody used for long; see `blindai.server.pruning`. Slow.

        Args:
            unused_for: How long.
            spared: Names of the operator's models that stay.
        """
        gone: list[str] = []
        for tenant, shelf in self.shelves.items():
            pruning = Principal("server", "pruning", frozenset(), tenant)
            gone += prune(
                shelf.store,
                shelf.sealed,
                audited=partial(self._audited, "delete", pruning),
                last_run=self._last_run,
                unused_for=unused_for,
                spared=spared if tenant == OPERATOR else frozenset(),
                now=time.time(),
            )
        return gone

    def _last_run(self, entry: LoadedModel) -> float:
        found = self.scheduler.statistics_of(entry.model)
        return 0.0 if found is None else found.last_inference / 1000

    async def hand_over(self, measurements: Mapping[str, bytes], who: Principal) -> None:
        """Let other code open the sealed models; see `SealedModels.hand_over`.

        Args:
            measurements: Of that code.
            who: Asks.

        Raises:
            InvalidInput: Nothing is sealed here.
            ConfigurationError: The platform cannot.
            SealedDataError: The sealed models are shut.
        """
        said = {name: value.hex() for name, value in measurements.items()}
        audited = partial(self._audited, "handover", who, measurements=said)
        change = partial(_all, self._sealed(), lambda each: each.hand_over(measurements))
        await asyncio.to_thread(_within, audited, change)

    async def withdraw_handover(self, who: Principal) -> None:
        """Let no other code open the sealed models any more; see `SealedModels.withdraw`.

        Args:
            who: Asks.

        Raises:
            InvalidInput: Nothing is sealed here.
            SealedDataError: The sealed models are shut, or one of them is damaged.
            Overloaded: The disk has no room to seal them anew.
        """
        audited = partial(self._audited, "withdraw", who)
        change = partial(_all, self._sealed(), SealedModels.withdraw)
        await asyncio.to_thread(_within, audited, change)

    def _audited(self, event: Event, who: Who, **about: Any) -> AbstractContextManager[None]:
        """Return what an action has to happen in; see `AuditLog.action`."""
        if self.audit is None:
            return contextlib.nullcontext()
        return self.audit.action(event, who, **about)

    def _sealed(self) -> list[SealedModels]:
        sealed = [shelf.sealed for shelf in self.shelves if shelf.sealed is not None]
        if not sealed:
            msg = "this server seals no models: there is nothing to hand over"
            raise InvalidInput(msg)
        return sealed

    def _delete(self, name: str, shelf: Shelf, who: Principal) -> None:
        model = None
        with contextlib.suppress(ModelNotFound):
            model = shelf.store.get(name).record.sha256
        with self._audited("delete", who, model=model):
            (shelf.store if shelf.sealed is None else shelf.sealed).delete(name)

    def stop_runs(self) -> None:
        """Make all runs end soon, with an error."""
        for handle in list(self._running):
            handle.terminate()

    def close(self) -> None:
        """Stop all runs, wait for the threads, and let go of the models."""
        self.stop_runs()
        self.stepping.close()
        self._decodes.shutdown(cancel_futures=True)
        self.scheduler.close()
        self._wakes.shutdown(cancel_futures=True)
        self._loads.shutdown(cancel_futures=True)
        self.shelves.close()


def _within(
    audited: Callable[[], AbstractContextManager[None]], change: Callable[[], None]
) -> None:
    with audited():
        change()


def _all(sealed: Sequence[SealedModels], change: Callable[[SealedModels], None]) -> None:
    """Change each; one that cannot be keeps none of the others from it."""
    failed: list[BlindAIError] = []
    for each in sealed:
        try:
            change(each)
        except BlindAIError as error:
            failed.append(error)
    if failed:
        raise failed[0]
