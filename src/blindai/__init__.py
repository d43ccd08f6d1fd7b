"""BlindAI: confidential inference. Private data in, prediction out, through an enclave.

>>> import blindai
>>> with blindai.connect("localhost:50051", policy="policy.toml") as client:
...     result = client.run_model("minilm", {"input_ids": ids})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blindai.attestation.model import AttestationResult, Platform
from blindai.attestation.policy import Policy
from blindai.client.client import Client, connect
from blindai.client.results import ModelInfo, Result
from blindai.errors import (
    AccessDenied,
    AppraisalError,
    AttestationError,
    BindingError,
    BlindAIError,
    ConfigurationError,
    ConnectionFailed,
    DeadlineExceeded,
    EndorsementError,
    EvidenceError,
    InferenceError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    ModelConflict,
    ModelNotFound,
    NotPermitted,
    Overloaded,
    PolicyError,
    RateLimited,
    SealedDataError,
    SecurityWarning,
    SignatureError,
    SimulationWarning,
)

# The function takes the module's place as an attribute of the package: `blindai.verify(…)`
# verifies, and `from blindai.verify import verify` is the same function.
from blindai.verify import verify

if TYPE_CHECKING:
    from blindai.client.aio import AsyncClient
    from blindai.receipt import verify_receipt

    __version__: str

__all__ = [
    "AccessDenied",
    "AppraisalError",
    "AsyncClient",
    "AttestationError",
    "AttestationResult",
    "BindingError",
    "BlindAIError",
    "Client",
    "ConfigurationError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "EndorsementError",
    "EvidenceError",
    "InferenceError",
    "InvalidInput",
    "InvalidModel",
    "LimitExceeded",
    "ModelConflict",
    "ModelInfo",
    "ModelNotFound",
    "NotPermitted",
    "Overloaded",
    "Platform",
    "Policy",
    "PolicyError",
    "RateLimited",
    "Result",
    "SealedDataError",
    "SecurityWarning",
    "SignatureError",
    "SimulationWarning",
    "__version__",
    "connect",
    "verify",
    "verify_receipt",
]


def __getattr__(name: str) -> Any:
    # Slow to import, or seldom asked for: asyncio, receipts, and the packages' metadata.
    if name == "AsyncClient":
        from blindai.client.aio import AsyncClient  # noqa: PLC0415

        return AsyncClient
    if name == "verify_receipt":
        from blindai.receipt import verify_receipt  # noqa: PLC0415

        return verify_receipt
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("blindai")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
