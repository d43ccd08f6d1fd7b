"""The nouns of attestation, in the words of RATS (RFC 9334).

Evidence is what an Attester sent: untrusted bytes. Claims are what genuine hardware said
in it. An Attestation Result is that a policy accepted those claims. Each is made only by
the step before it: `Claims` by a platform's verifier, `AttestationResult` by
`blindai.verify.verify`.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from blindai.attestation.steps import Step


class Platform(StrEnum):
    """What produced the evidence."""

    SIMULATION = "simulation"
    SGX = "sgx"
    TDX = "tdx"
    SEV_SNP = "sev-snp"
    NITRO = "nitro"
    TPM = "tpm"
    AZURE_VTPM = "azure-vtpm"
    NVIDIA_GPU = "nvidia-gpu"


# Attached to a machine, and never the machine: such hardware signs any nonce that anybody
# hands to it, so alone it says nothing about where a server's keys live.
DEVICE_PLATFORMS: Final = frozenset({Platform.NVIDIA_GPU})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an Attester sent. Nothing in it is to be believed yet.

    Attributes:
        platform: What the sender says it is; decides which verifier looks at it.
        body: The signed structure, byte for byte as the hardware made it.
        attachments: What verification needs beside it, by name: certificates, collateral,
            event logs. Each platform's module documents its names.
    """

    platform: Platform
    body: bytes
    attachments: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """All that a server shows about itself in answer to one nonce.

    Attributes:
        evidence: Of the machine or enclave that the server runs in.
        keyset: Deterministic CBOR of the server's public keys (`blindai.channel.keyset`).
        certificate: DER of the TLS certificate; binds nothing, lets a client pin it.
        devices: Evidence of attached devices (GPUs), bound through `blindai.attestation.binding`.
    """

    evidence: Evidence
    keyset: bytes
    certificate: bytes
    devices: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Claims:
    """What genuine hardware says. Made by a platform's verifier, from authentic bytes only.

    Attributes:
        platform: Which verifier made them.
        measurements: Name → bytes, by the vendor's names: what code and configuration run,
            and, as `chip_id`, on which chip.
        versions: Name → security version number: "at least" makes sense for each.
        weaknesses: Everything that a careful reader would want to know before trusting this
            machine: "debug", "smt", "tcb-out-of-date", an advisory such as "INTEL-SA-00615".
            A policy refuses each one that it does not tolerate by name.
        report_data: The caller's bytes that the hardware signed along, in full (64 bytes
            for SGX, TDX and SEV-SNP; qualifying data for a TPM; `user_data` for Nitro).
        issued_at: When the hardware signed, where it says so.
        not_after: Until when the endorsements used hold, where they say so.
    """

    platform: Platform
    measurements: Mapping[str, bytes]
    versions: Mapping[str, int]
    weaknesses: frozenset[str]
    report_data: bytes
    issued_at: datetime | None = None
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endorsed:
    """Where the endorsements of a bundle came from, and when they were current.

    Said by the caller of `blindai.verify.verify`, who attached them
    (`blindai.endorsements`). Without it all are verified at the present.

    Attributes:
        sources: Attachment → "stapled", "fetched", "cached", "cached-stale" and so on;
            those of a device as "devices[0].ocsp".
        at: A past moment at which the endorsements of the machine were current; `None`:
            they are verified at the present. Shows as the weakness "stale-endorsements".
        devices_at: The same of each device, in the order of the bundle; missing ones: `None`.
        device_attachments: What was attached to each device's evidence, in the order of the
            bundle. It stands beside the bundle, because the machine's evidence names that
            of its devices as they sent it.
        grace: How long ago such a moment may be, this excluded.
        failures: Why newer ones could not be had, in words.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    at: datetime | None = None
    devices_at: tuple[datetime | None, ...] = ()
    device_attachments: tuple[Mapping[str, bytes], ...] = ()
    grace: timedelta = timedelta(0)
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One rule of a policy that the claims do not meet.

    Attributes:
        rule: Where the rule stands, such as "accept[0].minimum.microcode".
        expected: What the policy accepts, in words.
        found: What the hardware said, in words.
    """

    rule: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: expected {self.expected}, found {self.found}"


# Handed over by `verify` alone: a result that anything else constructs raises.
_VERIFIED: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """A server that a policy accepted. Only `blindai.verify.verify` makes one.

    Attributes:
        platform: Where the server runs.
        claims: What its hardware said.
        devices: What the hardware of its devices said, in the order of the evidence.
        tolerated: Weaknesses that the claims carry and the policy tolerates by name.
        policy_digest: SHA-256 of the policy's canonical form.
        models: Name → SHA-256 of the weights that the policy accepts; empty: any.
        evidence_digest: SHA-256 of the canonical bundle.
        keyset_digest: SHA-256 of the keyset.
        tls_public_key: DER SubjectPublicKeyInfo of the only TLS key to talk to.
        certificate: DER certificate with that key.
        verified_at: The `now` that was passed to `verify`.
        not_after: From then on the result no longer holds.
        nonce: The caller's nonce that the evidence answers; `None` for stored evidence,
            which says nothing about freshness.
        steps: Every step that led here.
        endorsements: Attachment → where what the vendors say came from, such as "stapled",
            "fetched" or "cached-stale"; empty where nobody said.
    """

    platform: Platform
    claims: Claims
    devices: tuple[Claims, ...]
    tolerated: frozenset[str]
    policy_digest: bytes
    models: Mapping[str, frozenset[bytes]]
    evidence_digest: bytes
    keyset_digest: bytes
    tls_public_key: bytes
    certificate: bytes
    verified_at: datetime
    not_after: datetime
    nonce: bytes | None
    steps: tuple[Step, ...]
    endorsements: Mapping[str, str] = field(default_factory=dict)
    # Not stored, so `dataclasses.replace` has nothing to hand on.
    _verified: InitVar[object]

    def __post_init__(self, _verified: object) -> None:
        if _verified is not _VERIFIED:
            msg = "an AttestationResult is made by blindai.verify(), never by hand"
            raise TypeError(msg)

    def __reduce__(self) -> NoReturn:
        # Neither pickle nor `copy`: both would make a result without any verification.
        msg = "an AttestationResult is neither pickled nor copied: keep the evidence, verify again"
        raise TypeError(msg)

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind this result."""
        return "simulated" in self.claims.weaknesses

    def holds_at(self, now: datetime) -> bool:
        """Return whether the result still holds at `now`."""
        return now < self.not_after

    def __str__(self) -> str:
        head = "SIMULATED, not protected by hardware" if self.simulated else "verified"
        lines = [
            f"{head} ({self.platform})",
            f"  verified at {self.verified_at:%Y-%m-%d %H:%M:%S}Z",
            f"  holds until {self.not_after:%Y-%m-%d %H:%M:%S}Z",
            f"  policy      {self.policy_digest.hex()}",
            f"  keyset      {self.keyset_digest.hex()}",
        ]
        lines += [f"  {name:<11} {value.hex()}" for name, value in self.claims.measurements.items()]
        if self.endorsements:
            named = (f"{name} {source}" for name, source in self.endorsements.items())
            lines.append(f"  endorsed    {', '.join(named)}")
        if self.tolerated:
            lines.append(f"  tolerated   {', '.join(sorted(self.tolerated))}")
        return "\n".join(lines)
