"""Makes what serves, out of a configuration, and loads the models; knows no port and no key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blindai.errors import ConfigurationError
from blindai.inference.engine import LoadOptions
from blindai.inference.engines import load_engine
from blindai.inference.memory import Memory
from blindai.inference.store import ModelStore
from blindai.server.access import OPERATOR
from blindai.server.listed import load_listed
from blindai.server.sealing import SealedModels, sealed_folder
from blindai.server.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from blindai.attesters import Attester
    from blindai.errors import BlindAIError
    from blindai.inference.sandbox import Sandbox
    from blindai.server.audit import AuditLog
    from blindai.server.config import ServerConfig
    from blindai.server.otlp import OtlpSink
    from blindai.server.tracing import Tracing


def open_sink(endpoint: str) -> OtlpSink:
    """Return what sends traces to a collector.

    Raises:
        ConfigurationError: An address that is none, or the library is not installed.
    """
    try:
        from blindai.server.otlp import OtlpSink  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        msg = f"traces need {error.name}; install it with: pip install 'blindai[otel]'"
        raise ConfigurationError(msg) from error
    return OtlpSink(endpoint)


def open_service(
    config: ServerConfig,
    folder: Path,
    sandbox: Sandbox | None,
    audit: AuditLog | None,
    tracing: Tracing | None,
) -> Service:
    """Return the service, with a store for the operator's models and one for each tenant's."""
    limits = config.limits
    engine = load_engine("onnx")
    memory = Memory(limits.max_memory_bytes)

    def open_store(folder: Path, max_models: int, max_bytes: int, max_uploads: int) -> ModelStore:
        return ModelStore(
            folder,
            engine=engine,
            options=LoadOptions(threads=config.threads),
            max_model_size=limits.max_model_bytes,
            max_models=max_models,
            max_total_bytes=max_bytes,
            max_uploads=max_uploads,
            memory=memory,
            try_first=None if sandbox is None else sandbox.check,
        )

    store = open_store(folder, limits.max_models, config.operator_bytes, limits.max_uploads)
    tenants = {
        name: open_store(folder / "tenants" / name, q.max_models, q.max_bytes, q.max_uploads)
        for name, q in config.access.tenants.items()
    }
    return Service(store, config, tenants, audit=audit, tracing=tracing, memory=memory)


def load_models(
    service: Service, config: ServerConfig, attester: Attester
) -> list[tuple[Path, BlindAIError]]:
    """Load what is sealed, then what the operator set. Slow.

    Returns:
        What could not be loaded, and why.

    Raises:
        ConfigurationError: The platform gives no sealing key, or a folder cannot be used.
    """
    store = service.store
    failed: list[tuple[Path, BlindAIError]] = []
    for tenant, shelf in service.shelves.items():
        if config.sealed is None:
            break
        shelf.sealed = SealedModels(
            sealed_folder(config.sealed, tenant),
            attester,
            shelf.store,
            take_over=config.take_over,
            counted=tenant == OPERATOR,
        )
        failed += shelf.sealed.restore()
    if config.models is not None:
        failed += store.load_folder(config.models)
    failed += load_listed(config.load, store)
    return failed
