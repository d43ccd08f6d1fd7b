"""What a server was told: fixed before it starts, never read from the environment here.

`ServerConfig.digest()` goes into the keyset, so evidence also says how the server was
configured where that matters to a client.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import cbor2

from blindai.errors import ConfigurationError
from blindai.inference.engines import ENGINES
from blindai.inference.memory import default_budget
from blindai.server.access.rules import AccessRules
from blindai.server.limits import check_positive
from blindai.server.tracing import traces_address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from blindai.attestation.model import Platform

CONFIGURATION_VERSION: Final = 2
MAX_PORT: Final = 65_535
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server accepts. Sizes in bytes, times in seconds; all greater than zero.

    Attributes:
        max_model_bytes: One uploaded model. 2 GiB, because protobuf, and so a single ONNX
            file, cannot be larger.
        max_store_bytes: All models together.
        max_models: Names of models.
        max_uploads: Uploads under way.
        max_body_bytes: One request's body, uploads excepted.
        max_bodies_bytes: The bodies of all requests that are being received or run.
        max_memory_bytes: All that is held: models, uploads under way, bodies. By default three
            quarters of what the machine, or the control group, has; the rest is for runs.
        max_header_bytes: Request line and headers of one request.
        max_connections: On each port.
        max_queue: Requests that wait for a thread to run on; more are refused.
        max_run_time: One run, where the request names no shorter time.
        header_timeout: To send a request's headers; also for the TLS handshake.
        body_timeout: The span over which `min_body_rate` is measured, in both directions.
        min_body_rate: Bytes per second; slower peers are cut off.
        idle_timeout: Between two requests of one connection.
        evidence_rate: Fresh evidence per second, on each port.
        evidence_burst: Fresh evidence that may come at once.
        shutdown_grace: For running requests to end after a signal.
        max_sequences: Whose state is kept between steps, and answers that are streamed.
        max_sequences_per_caller: Of them, for one token, or one address without a token.
        max_sequence_bytes: State of one of them.
        max_state_bytes: State of all of them.
        sequence_timeout: Between two steps of a sequence.
        max_stream_steps: Of one streamed answer.
        max_stream_time: One streamed answer.
    """

    max_model_bytes: int = 2 << 30
    max_store_bytes: int = 8 << 30
    max_models: int = 64
    max_uploads: int = 4
    max_body_bytes: int = 256 << 20
    max_bodies_bytes: int = 1 << 30
    max_memory_bytes: int = field(default_factory=default_budget)
    max_header_bytes: int = 32 << 10
    max_connections: int = 1024
    max_queue: int = 256
    max_run_time: float = 300.0
    header_timeout: float = 10.0
    body_timeout: float = 20.0
    min_body_rate: int = 1024
    idle_timeout: float = 75.0
    evidence_rate: float = 10.0
    evidence_burst: int = 50
    shutdown_grace: float = 30.0
    max_sequences: int = 256
    max_sequences_per_caller: int = 64
    max_sequence_bytes: int = 256 << 20
    max_state_bytes: int = 1 << 30
    sequence_timeout: float = 60.0
    max_stream_steps: int = 100_000
    max_stream_time: float = 900.0

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelToLoad:
    """A model that is served from the start.

    Attributes:
        name: That it gets.
        path: Of its file; or
        url: where it is fetched from, by https.
        sha256: That it has to have, in hexadecimal; needed with `url`.
        options: As at an upload: `precision`, `engine` and so on.
    """

    name: str
    path: Path | None = None
    url: str | None = None
    sha256: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.url is None):
            msg = f"load {self.name!r}: expected either path or url"
            raise ConfigurationError(msg)
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            msg = f"load {self.name!r}: expected sha256 as 64 hexadecimal digits in lower case"
            raise ConfigurationError(msg)
        if self.url is not None and (self.sha256 is None or not self.url.startswith("https://")):
            msg = f"load {self.name!r}: expected an https address, and sha256 beside it"
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server is to run.

    Attributes:
        platform: The trusted hardware to attest with; it has to be named.
        host: Address to listen on, of both ports.
        port: The attested port; 0 picks a free one.
        public_port: The unattested port; 0 picks a free one.
        grpc_port: The attested port for gRPC; 0 picks a free one; `None`: no gRPC.
        names: Host names and addresses for the certificate, beside `host`; clients pin its
            key and need none.
        models: A folder whose `*.onnx` are served from the start.
        sealed: A folder where uploaded models are kept, sealed, over restarts; `None`: they live
            in memory only.
        prune_after: Models that nobody ran for so long are deleted, except those that are
            served from the start; `None`: none is.
        gpus: Show evidence of the machine's NVIDIA GPUs beside its own.
        otlp_endpoint: Where traces are sent to, by HTTP; `None`: nothing is traced.
        trace_ratio: Share of the requests without a traceparent that is traced.
        audit_log: A file that is told who changes what is served, before they do; `None`: none is.
        take_over: Open sealed models with the key that the code before left for this one, where
            this code's own does not open them. Clients see it: whoever controls the machine
            could leave models of their own there.
        store: Where the models' files are kept while the server runs. Memory, or storage
            that the TEE encrypts. `None`: a folder in memory, removed at the end.
        key_lifetime: Keys are renewed after half of it.
        threads: Threads that one run uses; 0: one for each core.
        runs: Runs at the same time; 0: one for each core.
        max_batch: Rows of different requests that may go through a model together, where it
            keeps them apart and gains by it; 1: none. More than 1 is for callers who trust
            whoever made the model: one made for it can show a row to its neighbours. Clients
            see it in the keyset.
        confinement: What the process has given up, by name (`blindai.server.hardening`); set by
            who confines it, never by the operator. Clients see it.
        access: Who may do what. Clients see it.
        load: Single models that are served from the start, beside the folder's. Clients see
            those with a SHA-256.
        limits: What the server accepts.
    """

    platform: Platform
    host: str = "127.0.0.1"
    port: int = 50051
    public_port: int = 50052
    grpc_port: int | None = 50053
    names: tuple[str, ...] = ("localhost",)
    models: Path | None = None
    sealed: Path | None = None
    take_over: bool = False
    prune_after: timedelta | None = None
    audit_log: Path | None = None
    otlp_endpoint: str | None = None
    trace_ratio: float = 0.01
    gpus: bool = False
    store: Path | None = None
    key_lifetime: timedelta = timedelta(days=7)
    threads: int = 0
    runs: int = 0
    max_batch: int = 1
    confinement: tuple[str, ...] = ()
    access: AccessRules = field(default_factory=AccessRules)
    load: tuple[ModelToLoad, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._check_ports()
        if self.threads < 0 or self.runs < 0:
            msg = f"expected threads and runs from 0 up, came {self.threads} and {self.runs}"
            raise ConfigurationError(msg)
        if self.otlp_endpoint is not None:
            traces_address(self.otlp_endpoint)
        if not 0 <= self.trace_ratio <= 1:
            msg = f"trace_ratio: expected 0 to 1, came {self.trace_ratio}"
            raise ConfigurationError(msg)
        if self.max_batch < 1:
            msg = f"max_batch: expected 1 or more, came {self.max_batch}"
            raise ConfigurationError(msg)
        if self.prune_after is not None and self.prune_after < timedelta(days=1):
            msg = f"prune_after: expected a day or more, came {self.prune_after}"
            raise ConfigurationError(msg)
        if self.key_lifetime < timedelta(seconds=2):
            msg = f"key_lifetime: expected 2 seconds or more, came {self.key_lifetime}"
            raise ConfigurationError(msg)
        names = [model.name for model in self.load]
        if len(set(names)) < len(names):
            msg = "load: expected each name once, came one twice"
            raise ConfigurationError(msg)
        if self.operator_bytes <= 0:
            msg = (
                f"access.tenants: expected quotas of less than {self.limits.max_store_bytes} bytes "
                "together (limits.max_store_bytes), so that room is left for the operator's models"
            )
            raise ConfigurationError(msg)

    def _check_ports(self) -> None:
        ports = {"port": self.port, "public_port": self.public_port, "grpc_port": self.grpc_port}
        taken: set[int] = set()
        for name, port in ports.items():
            if port is None:
                continue
            if not 0 <= port <= MAX_PORT:
                msg = f"{name}: expected 0 to {MAX_PORT}, came {port}"
                raise ConfigurationError(msg)
            if port in taken:
                msg = f"expected different ports, came {port} twice"
                raise ConfigurationError(msg)
            taken |= {port} - {0}

    @property
    def operator_bytes(self) -> int:
        """What the operator's own models may have: what no tenant was promised."""
        promised = sum(quota.max_bytes for quota in self.access.tenants.values())
        return self.limits.max_store_bytes - promised

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders that are read while the server runs."""
        files = [] if self.models is None else [self.models]
        files += [model.path for model in self.load if model.path is not None]
        reread = [] if self.access.api_keys is None else [self.access.api_keys]
        # A file that is replaced is another; its folder stays.
        files += [path.parent for path in (*reread, *self.access.files)]
        return tuple(files)

    @property
    def fetches(self) -> bool:
        """Whether it asks others over https: for models, or for the keys of JWTs."""
        urls = [model.url for model in self.load]
        urls += [issuer.jwks_url for issuer in self.access.issuers]
        return any(url is not None for url in urls)

    @property
    def spared(self) -> frozenset[str]:
        """Names of the models that are served from the start."""
        files = () if self.models is None else self.models.glob("*.onnx")
        return frozenset((*(file.stem for file in files), *(each.name for each in self.load)))

    @property
    def concurrency(self) -> int:
        """Runs at the same time."""
        return self.runs or len(os.sched_getaffinity(0))

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """What the certificate's subjectAltName holds."""
        own = () if self.host in {"0.0.0.0", "::", ""} else (self.host,)  # noqa: S104 - compared
        return tuple(dict.fromkeys((*own, *self.names)))

    def digest(self) -> bytes:
        """Return SHA-256 of what a client may want to know of this configuration.

        Addresses, sizes and times protect the server, not the client's data: left out.
        """
        statement = {
            "version": CONFIGURATION_VERSION,
            "platform": str(self.platform),
            "key_lifetime": int(self.key_lifetime.total_seconds()),
            "access": self.access.statement(),
            "load": sorted([model.name, model.sha256 or ""] for model in self.load),
            # Those that an uploader may choose from, where they are installed.
            "engines": sorted(ENGINES),
            "max_batch": self.max_batch,
            "sealed": self.sealed is not None,
            "take_over": self.take_over,
            "audited": self.audit_log is not None,
            "traced": self.otlp_endpoint is not None,
            "confinement": list(self.confinement),
        }
        return hashlib.sha256(cbor2.dumps(statement, canonical=True)).digest()
