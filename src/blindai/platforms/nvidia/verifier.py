"""Verify an NVIDIA device report: chain, signature, firmware id, revocation, references.

Claims are made of the signed report and of certificates whose chain ends at NVIDIA's device
root only. The root of NVIDIA's reference measurements is another one: it never vouches for a
device, nor the device root for reference measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation import certs
from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.errors import EndorsementError, SignatureError
from blindai.platforms.nvidia.device import DeviceIdentity, parse_device_identity
from blindai.platforms.nvidia.ocsp import check_revocation, parse_responses
from blindai.platforms.nvidia.report import Report, parse_report
from blindai.platforms.nvidia.rim import ReferenceMeasurements, verify_ecdsa_p384, verify_rim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509

    from blindai.attestation.trust import Anchor

STEPS: Final = (
    StepName(
        "format",
        "The report is a complete SPDM exchange about all measurements",
        "DMTF DSP0274 1.1, GET_MEASUREMENTS and MEASUREMENTS",
    ),
    StepName(
        "chain",
        "The device's certificates lead to NVIDIA's pinned device root",
        "RFC 5280 §6; NVIDIA Device Identity CA",
    ),
    StepName(
        "signature",
        "Request and response are signed by the device's key",
        "DMTF DSP0274 1.1, MEASUREMENTS signature (ECDSA P-384, SHA-384)",
    ),
    StepName(
        "device",
        "The certificate says which chip it is, and in which mode it runs",
        "TCG DICE Attestation Architecture 1.1 §6.1.1",
    ),
    StepName(
        "fwid",
        "The firmware that the report names is the firmware that the certificate names",
        "TCG DICE Attestation Architecture 1.1 §6.1.1, fwids",
    ),
    StepName(
        "rim-driver",
        "NVIDIA signed reference measurements for the driver's version",
        "TCG Reference Integrity Manifest Information Model; XML-DSig 1.1",
    ),
    StepName(
        "rim-vbios",
        "NVIDIA signed reference measurements for the VBIOS version",
        "TCG Reference Integrity Manifest Information Model; XML-DSig 1.1",
    ),
    StepName(
        "measurements",
        "What the device measured is what NVIDIA released",
        "NVIDIA attestation guide, comparison with golden measurements",
    ),
    StepName(
        "revocation",
        "No certificate of the device or of the reference measurements is revoked",
        "RFC 6960",
    ),
)
RIM_ROOT_NAME: Final = "NVIDIA CoRIM signing Root CA"
NO_REFERENCE: Final = "no-reference-measurements"
NO_REVOCATION: Final = "no-revocation-check"
DIFFERENT: Final = "measurements-differ-from-reference"
# Means nothing while video decoder 0 is off.
_NVDEC0_INDEX: Final = 35
# RFC 5280 §4.1.2.5: the year of a certificate without a well-defined end.
_NO_END_YEAR: Final = 9999


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of an NVIDIA device; see `blindai.platforms.base.Verifier`."""
    with steps.take("format") as step:
        report = parse_report(evidence.body)
        step.note(f"{len(report.measurements)} measurements")
    path = _verify_chain(evidence, [a for a in anchors if a.name != RIM_ROOT_NAME], now, steps)
    with steps.take("signature"):
        verify_ecdsa_p384(path[0], report.signature, report.signed, "NVIDIA report")
    with steps.take("device") as step:
        device = parse_device_identity(path[0])
        step.note(", ".join(sorted(device.flags)) or "no debug, recovery or insecure mode")
    _check_fwid(report, device, steps)
    paths = [path]
    weaknesses = set(device.flags)
    weaknesses |= _verify_references(evidence, report, anchors, now, steps, paths)
    with_end = [c.not_valid_after_utc for p in paths for c in p]
    ends = [end for end in with_end if end.year < _NO_END_YEAR]
    weaknesses |= _check_revocation(evidence, paths, now, steps, ends)
    return Claims(
        platform=Platform.NVIDIA_GPU,
        measurements=_measurements(report, device, path[0]),
        versions={},
        weaknesses=frozenset(weaknesses),
        report_data=report.nonce,
        not_after=min(ends, default=None),
    )


def _verify_chain(
    evidence: Evidence, anchors: Sequence[Anchor], now: datetime, steps: Steps
) -> list[x509.Certificate]:
    with steps.take("chain") as step:
        if "chain" not in evidence.attachments:
            msg = "NVIDIA report: no certificate chain is attached"
            raise EndorsementError(msg)
        chain = certs.parse_certificates(evidence.attachments["chain"], "NVIDIA chain")
        path = certs.verify_chain(chain[0], chain[1:], anchors=anchors, now=now)
        if len(path) == 1:
            msg = "NVIDIA chain: a root certificate is no device"
            raise SignatureError(msg)
        found = certs.fingerprint(path[-1])
        for anchor in anchors:
            step.compare(anchor.name, expected=anchor.sha256, found=found)
    return path


def _check_fwid(report: Report, device: DeviceIdentity, steps: Steps) -> None:
    if report.fwid is None:
        steps.skip("fwid", "the report does not repeat the firmware id")
        return
    with steps.take("fwid") as step:
        if not step.compare("FWID", expected=device.fwid or "none", found=report.fwid):
            msg = (
                "the firmware id of the report is not the one of the device's certificate: "
                f"expected {device.fwid.hex() if device.fwid else 'one in the certificate'}, "
                f"found {report.fwid.hex()}"
            )
            raise SignatureError(msg)


def _verify_references(
    evidence: Evidence,
    report: Report,
    anchors: Sequence[Anchor],
    now: datetime,
    steps: Steps,
    paths: list[list[x509.Certificate]],
) -> set[str]:
    """Return the weaknesses that the comparison with reference measurements shows."""
    references: list[ReferenceMeasurements] = []
    complete = report.driver_version is not None or report.vbios_version is not None
    for name, version in (("driver", report.driver_version), ("vbios", report.vbios_version)):
        data = evidence.attachments.get(f"rim_{name}")
        if version is None:
            steps.skip(f"rim-{name}", "the report names no such version")
            continue
        if data is None:
            steps.skip(f"rim-{name}", "no reference measurements are attached")
            complete = False
            continue
        with steps.take(f"rim-{name}") as step:
            roots = [a for a in anchors if a.name == RIM_ROOT_NAME]
            reference, path = verify_rim(data, anchors=roots, now=now)
            paths.append(path)
            if not step.compare(
                "version", expected=version.lower(), found=reference.version.lower()
            ):
                msg = f"reference measurements of {reference.version[:64]}, expected {version}"
                raise EndorsementError(msg)
            references.append(reference)
    if not references:
        steps.skip("measurements", "no reference measurements are attached")
        return {NO_REFERENCE}
    differing = _compare_measurements(report, references, steps)
    return ({DIFFERENT} if differing else set()) | (set() if complete else {NO_REFERENCE})


def _compare_measurements(
    report: Report, references: Sequence[ReferenceMeasurements], steps: Steps
) -> list[int]:
    with steps.take("measurements") as step:
        expected: dict[int, frozenset[bytes]] = {}
        for reference in references:
            if both := sorted(expected.keys() & reference.values.keys()):
                msg = f"driver and VBIOS references both speak of measurements {both}"
                raise EndorsementError(msg)
            expected |= reference.values
        if report.nvdec0_disabled:
            expected.pop(_NVDEC0_INDEX, None)
        differing = []
        for index in sorted(expected):
            # NVIDIA counts references from 0, SPDM counts measurements from 1.
            found = report.measurements.get(index + 1, b"")
            if found not in expected[index]:
                right = " or ".join(sorted(value.hex() for value in expected[index]))
                step.compare(f"measurement {index}", expected=right, found=found)
                differing.append(index)
        step.note(f"{len(expected) - len(differing)} of {len(expected)} are as released")
    return differing


def _check_revocation(
    evidence: Evidence,
    paths: Sequence[Sequence[x509.Certificate]],
    now: datetime,
    steps: Steps,
    ends: list[datetime],
) -> set[str]:
    """Return whether revocation is unknown for a certificate; add to `ends` till when it holds."""
    if "ocsp" not in evidence.attachments:
        steps.skip("revocation", "no OCSP responses are attached")
        return {NO_REVOCATION}
    with steps.take("revocation") as step:
        responses = parse_responses(evidence.attachments["ocsp"])
        unspoken: list[str] = []
        for number, path in enumerate(paths):
            result = check_revocation(path, responses, now=now)
            if result.not_after is not None:
                ends.append(result.not_after)
            # NVIDIA's responder knows no device leaf: the chip's boot ROM issues it anew for
            # each firmware. The boot ROM's own certificate, one above, stands for the chip.
            own_leaf = path[0] if number == 0 else None
            unspoken += [certs.name_of(c) for c in result.unspoken if c is not own_leaf]
        step.note(f"not spoken about: {'; '.join(unspoken)}" if unspoken else "")
    return {NO_REVOCATION} if unspoken else set()


def _measurements(
    report: Report, device: DeviceIdentity, leaf: x509.Certificate
) -> dict[str, bytes]:
    serial = leaf.serial_number
    ueid = serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big")
    found: dict[str, bytes | None] = {
        "driver_version": _encode(report.driver_version),
        "vbios_version": _encode(report.vbios_version),
        "fwid": device.fwid,
        "model": _encode(report.chip_info or device.model),
        "chip_id": device.serial or ueid,
        "ueid": ueid,
    }
    return {name: value for name, value in found.items() if value is not None}


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("ascii")
