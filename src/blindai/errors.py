"""Every exception that a user of BlindAI can see.

This module imports nothing of the package, so every other module may use it::

    BlindAIError
    ├── ConfigurationError          your settings                              exit 2
    │   └── PolicyError             a policy that cannot be used
    ├── AttestationError            do not trust this server                   exit 3
    │   ├── EvidenceError           malformed or unsupported
    │   ├── SignatureError          not genuine
    │   ├── EndorsementError        collateral missing, stale or revoked
    │   ├── BindingError            genuine, but of another key or nonce
    │   └── AppraisalError          genuine, not accepted by the policy
    ├── InferenceError              the request cannot be served               exit 4
    │   ├── ModelNotFound           no model of this name or SHA-256
    │   ├── ModelConflict           the name is taken by other weights
    │   ├── InvalidModel            the uploaded file cannot be served
    │   ├── InvalidInput            inputs that do not fit the model
    │   ├── SealedDataError         models at rest that cannot be opened here
    │   ├── LimitExceeded           larger than the server accepts
    │   ├── Overloaded              come back later
    │   │   └── RateLimited         too much of yours at once, or too often
    │   └── DeadlineExceeded        took longer than was allowed
    ├── AccessDenied                no right to do this                        exit 4
    │   └── NotPermitted            known, but without this right
    └── ConnectionFailed            network; may be retried                    exit 5

Two warnings exist for what is legal but must not go unseen:
`SecurityWarning`, and its child `SimulationWarning`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class StepRecord(Protocol):
        """The part of `blindai.attestation.steps.Step` that errors rely on."""

        @property
        def name(self) -> str: ...
        @property
        def status(self) -> str: ...
        @property
        def detail(self) -> str: ...


__all__ = [
    "AccessDenied",
    "AppraisalError",
    "AttestationError",
    "BindingError",
    "BlindAIError",
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
    "ModelNotFound",
    "NotPermitted",
    "Overloaded",
    "PolicyError",
    "RateLimited",
    "SealedDataError",
    "SecurityWarning",
    "SignatureError",
    "SimulationWarning",
]


class BlindAIError(Exception):
    """Base of every error that BlindAI raises on purpose."""


class ConfigurationError(BlindAIError):
    """A setting or an argument that cannot be used as it is."""


class PolicyError(ConfigurationError):
    """A policy that is malformed, accepts nothing, or pins no code identity."""


class AttestationError(BlindAIError):
    """The server could not be verified: send it nothing.

    Attributes:
        steps: Every step of the verification with its status, in order: what
            passed before what failed, and what was therefore never looked at.
    """

    steps: Sequence[StepRecord] = ()

    def explain(self) -> str:
        """Return the error and one line for each step of the verification."""
        lines = [f"{type(self).__name__}: {self}"]
        lines += [
            f"  {step.status:>7}  {step.name}" + (f": {step.detail}" if step.detail else "")
            for step in self.steps
        ]
        return "\n".join(lines)


class EvidenceError(AttestationError):
    """The evidence is malformed, of an unknown version, or of an unsupported platform."""


class SignatureError(AttestationError):
    """A signature or a certificate chain does not lead to the hardware vendor."""


class EndorsementError(AttestationError):
    """What the vendor says about the hardware is missing, out of date, or says revoked."""


class BindingError(AttestationError):
    """The evidence is genuine, but speaks of another key, nonce or device."""


class AppraisalError(AttestationError):
    """The evidence is genuine, but the policy does not accept what it says.

    Attributes:
        mismatches: Every rule that was not met, as `blindai.attestation.model.Mismatch`.
    """

    def __init__(self, message: str, mismatches: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.mismatches = tuple(mismatches)


class InferenceError(BlindAIError):
    """The server is trusted, but the request could not be served."""


class ModelNotFound(InferenceError):
    """The server has no model of this name or SHA-256."""


class ModelConflict(InferenceError):
    """The name belongs to a model with other weights."""


class InvalidModel(InferenceError):
    """The uploaded file is no model that this server can load."""


class InvalidInput(InferenceError):
    """The inputs, or the request around them, do not fit the model."""


class SealedDataError(InferenceError):
    """Models at rest are of another machine or other code, or are not as they were sealed."""


class LimitExceeded(InferenceError):
    """The request is larger than this server accepts."""


class Overloaded(InferenceError):
    """The server has no room for this request now.

    Attributes:
        retry_after: Seconds after which a retry makes sense.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Overloaded):
    """The caller, not the server, has too much under way, or asks too often."""


class DeadlineExceeded(InferenceError):
    """The request took longer than its deadline, and was stopped."""


class AccessDenied(BlindAIError):
    """The caller has no right to do this."""


class NotPermitted(AccessDenied):
    """It is clear who the caller is, and they have no right to do this."""


class ConnectionFailed(BlindAIError):
    """The server could not be reached, or went away; nothing says it is untrusted."""


class SecurityWarning(UserWarning):
    """Something was accepted that weakens security, because the caller asked for it."""


class SimulationWarning(SecurityWarning):
    """The server runs in simulation: no hardware protects the data that is sent to it."""
