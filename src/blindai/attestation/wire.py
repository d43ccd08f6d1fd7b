"""Evidence as bytes: deterministic CBOR (RFC 8949 §4.2), one version, bounded.

Reading is strict: whatever is accepted is the one encoding that writing gives, so the digest
of a bundle names it. Anything else is `EvidenceError`, and nothing else is ever raised.
"""

from __future__ import annotations

import io
from typing import Any, Final

import cbor2

from blindai.attestation.model import Evidence, EvidenceBundle, Platform
from blindai.errors import EvidenceError

WIRE_VERSION: Final = 1
MEDIA_TYPE: Final = "application/vnd.blindai.evidence+cbor"
# The largest real part is a TPM event log (some 100 KiB) beside certificates and collateral.
MAX_BUNDLE_BYTES: Final = 4 << 20
MAX_DEVICES: Final = 32
MAX_ATTACHMENTS: Final = 32
_MAX_DEPTH: Final = 8


def dump_bundle(bundle: EvidenceBundle) -> bytes:
    """Return the canonical bytes of `bundle`."""
    return cbor2.dumps(
        {
            "version": WIRE_VERSION,
            "evidence": _evidence_to_data(bundle.evidence),
            "keyset": bundle.keyset,
            "certificate": bundle.certificate,
            "devices": [_evidence_to_data(device) for device in bundle.devices],
        },
        canonical=True,
    )


def dump_evidence(evidence: Evidence) -> bytes:
    """Return the canonical bytes of one piece of evidence: what a device digest covers."""
    return cbor2.dumps(_evidence_to_data(evidence), canonical=True)


def parse_bundle(data: bytes) -> EvidenceBundle:
    """Read a bundle.

    Args:
        data: At most 4 MiB from an untrusted source.

    Raises:
        EvidenceError: If it is anything but the canonical encoding of a version 1 bundle.
    """
    document = load_cbor(data, "evidence bundle", at_most=MAX_BUNDLE_BYTES)
    fields = _fields(
        document, "evidence bundle", {"version", "evidence", "keyset", "certificate", "devices"}
    )
    if fields["version"] != WIRE_VERSION:
        msg = f"evidence bundle: expected version {WIRE_VERSION}, found {fields['version']!r}"
        raise EvidenceError(msg)
    devices = fields["devices"]
    if not isinstance(devices, list) or len(devices) > MAX_DEVICES:
        msg = f"evidence bundle: expected at most {MAX_DEVICES} devices"
        raise EvidenceError(msg)
    bundle = EvidenceBundle(
        evidence=_parse_evidence(fields["evidence"], "evidence"),
        keyset=_bytes(fields["keyset"], "keyset"),
        certificate=_bytes(fields["certificate"], "certificate"),
        devices=tuple(_parse_evidence(d, f"devices[{i}]") for i, d in enumerate(devices)),
    )
    if dump_bundle(bundle) != data:
        msg = "evidence bundle: not in canonical form"
        raise EvidenceError(msg)
    return bundle


def load_cbor(data: bytes, name: str, *, at_most: int) -> object:
    """Decode exactly one plain CBOR item of bounded size and depth; no tags, no sharing.

    Raises:
        EvidenceError: If `data` is anything else.
    """
    if len(data) > at_most:
        msg = f"{name}: {len(data)} bytes, at most {at_most} are accepted"
        raise EvidenceError(msg)
    stream = io.BytesIO(data)
    try:
        item = cbor2.CBORDecoder(stream).decode()
        trailing = stream.tell() != len(data) and bool(stream.read(1))
    except (cbor2.CBORDecodeError, ValueError, RecursionError, OverflowError, TypeError) as error:
        msg = f"{name}: not CBOR ({type(error).__name__})"
        raise EvidenceError(msg) from error
    if trailing:
        msg = f"{name}: unexpected bytes after its end"
        raise EvidenceError(msg)
    _check_plain(item, name, _MAX_DEPTH)
    return item


def _check_plain(item: object, name: str, depth: int) -> None:
    if depth == 0:
        msg = f"{name}: nested too deeply"
        raise EvidenceError(msg)
    if isinstance(item, dict):
        for key, value in item.items():
            _check_plain(key, name, depth - 1)
            _check_plain(value, name, depth - 1)
    elif isinstance(item, list | tuple):
        for value in item:
            _check_plain(value, name, depth - 1)
    elif not (item is None or isinstance(item, bytes | str | bool | int)):
        msg = f"{name}: unexpected CBOR type {type(item).__name__}"
        raise EvidenceError(msg)


def _evidence_to_data(evidence: Evidence) -> dict[str, object]:
    return {
        "platform": str(evidence.platform),
        "body": evidence.body,
        "attachments": dict(evidence.attachments),
    }


def _parse_evidence(data: object, name: str) -> Evidence:
    fields = _fields(data, name, {"platform", "body", "attachments"})
    try:
        platform = Platform(fields["platform"])
    except ValueError as error:
        msg = f"{name}: unsupported platform {str(fields['platform'])[:64]!r}"
        raise EvidenceError(msg) from error
    attachments = fields["attachments"]
    if not isinstance(attachments, dict) or len(attachments) > MAX_ATTACHMENTS:
        msg = f"{name}: expected at most {MAX_ATTACHMENTS} attachments"
        raise EvidenceError(msg)
    if not all(isinstance(key, str) for key in attachments):
        msg = f"{name}: an attachment's name must be text"
        raise EvidenceError(msg)
    return Evidence(
        platform=platform,
        body=_bytes(fields["body"], f"{name}.body"),
        attachments={
            key: _bytes(value, f"{name}.attachments") for key, value in attachments.items()
        },
    )


def _fields(data: object, name: str, expected: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != expected:
        msg = f"{name}: expected a map of exactly {', '.join(sorted(expected))}"
        raise EvidenceError(msg)
    return data


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, bytes):
        msg = f"{name}: expected bytes, found {type(value).__name__}"
        raise EvidenceError(msg)
    return value
