"""Evidence of a TPM: a quote over PCRs, with all that `blindai.platforms.tpm` verifies it by.

Always true here: the PCR values that are attached are those that the quote is a digest of, and
the quote carries what it was asked for; where a PCR changed in between, both are read again.

Attachments: "signature", "ak_public", "pcrs"; "event_log" where the firmware's log can be
read; "ak_certificates" where the attestation key was certified at enrolment.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.attesters.kernel_files import read_bounded, refused
from blindai.attesters.tpm.counter import TpmCounter
from blindai.attesters.tpm.device import INSTALL, Selection, TpmConnection, TpmDevice, select
from blindai.attesters.tpm.enrolment import Challenge, Enrolment
from blindai.attesters.tpm.handover import open_handover, seal_for
from blindai.attesters.tpm.keys import (
    ATTESTATION_KEY,
    activate,
    derive_sealing_key,
    open_attestation_key,
    open_endorsement_key,
)
from blindai.errors import BlindAIError, EvidenceError, Overloaded
from blindai.platforms.tpm.eventlog import MAX_LOG_BYTES
from blindai.platforms.tpm.keys import parse_signature
from blindai.platforms.tpm.quote import Quote, Registers, dump_registers, parse_quote

if TYPE_CHECKING:
    from collections.abc import Mapping

# Firmware and boot loader (0 to 9), unified kernel image (11), its options (12), and the keys
# that shim allows (14). Not 10, 13 and 15: the running system extends them.
PCRS: Final[Selection] = {"sha256": (*range(10), 11, 12, 14)}
# All room beside the log, within the 4 MiB of a bundle.
_MAX_LOG: Final = min(MAX_LOG_BYTES, 2 << 20)
_MAX_CERTIFICATES: Final = 64 << 10
_ROUNDS: Final = 5
# TPM_PT (Part 2 §6.13)
_MANUFACTURER, _FIRMWARE_1, _FIRMWARE_2 = 0x105, 0x10B, 0x10C
_ADVICE: Final = (
    "give the machine a TPM 2.0: enable it in the firmware (PTT, fTPM), or a virtual one in the "
    "hypervisor or cloud (vTPM, NitroTPM); the kernel needs CONFIG_TCG_TPM"
)


class TpmAttester:
    """Makes evidence with a TPM 2.0.

    Args:
        machine: Where the TPM and its event log are, and the AK's certificates.
        pcrs: What is quoted, and what sealing depends on.
        handle: Where the attestation key is kept in the TPM.
        device: The TPM itself, instead of the machine's.
    """

    platform: Final = Platform.TPM

    def __init__(
        self,
        machine: Machine | None = None,
        *,
        pcrs: Selection | None = None,
        handle: int = ATTESTATION_KEY,
        device: TpmDevice | None = None,
    ) -> None:
        self._machine = machine or Machine()
        self._device = device or TpmDevice(self._machine.tcti)
        self._pcrs = pcrs or PCRS
        self._handle = handle

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote that carries the 32 bytes of `report_data` as qualifying data.

        Raises:
            ConfigurationError: If the TPM cannot be reached, or refuses.
            Overloaded: If it has no room, was reset, or its PCRs keep changing.
        """
        check_binding(report_data)

        def make(connection: TpmConnection) -> tuple[bytes, dict[str, bytes]]:
            key, public = open_attestation_key(connection, self._handle)
            body, attachments = quote(connection, key, self._pcrs, report_data)
            return body, {**attachments, "ak_public": public}

        body, attachments = self._device.run(make)
        if (log := read_event_log(self._machine.event_log)) is not None:
            attachments["event_log"] = log
        if self._machine.ak_certificates is not None:
            attachments["ak_certificates"] = _read_certificates(self._machine.ak_certificates)
        return Evidence(self.platform, body, attachments)

    def rollback_counter(self) -> TpmCounter:
        """Return a counter in the TPM; it is made where there is none yet.

        Raises:
            ConfigurationError: If the TPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return TpmCounter(self._device)

    def sealing_key(self) -> bytes | None:
        """Return a key that this TPM gives out while its PCRs are as they are now.

        Raises:
            ConfigurationError: If the TPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(lambda connection: derive_sealing_key(connection, self._pcrs))

    def seal_for_successor(self, secret: bytes, measurements: Mapping[str, bytes]) -> bytes:
        """Return `secret` in a form that only other code on this TPM opens.

        Args:
            secret: At most 64 bytes.
            measurements: "pcr9" → value, of the PCRs that are others when that code runs.

        Raises:
            ConfigurationError: A PCR that is not quoted, or the TPM refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(
            lambda connection: seal_for(connection, self._pcrs, measurements, secret)
        )

    def open_from_predecessor(self, blob: bytes) -> bytes:
        """Return the secret that the code before sealed for the code that runs now.

        Raises:
            SealedDataError: It was sealed for other code, or is of another TPM.
            ConfigurationError: If the TPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(lambda connection: open_handover(connection, self._pcrs, blob))

    def enrolment(self) -> Enrolment:
        """Return what whoever enrols this TPM has to see; make the AK if there is none."""

        def show(connection: TpmConnection) -> Enrolment:
            _, ak_public = open_attestation_key(connection, self._handle)
            _, ek_public, certificate = open_endorsement_key(connection)
            return Enrolment(certificate, ek_public, ak_public)

        return self._device.run(show)

    def answer(self, challenge: Challenge) -> bytes:
        """Return the secret in a challenge that was made for this TPM and its AK.

        Raises:
            ConfigurationError: If it was made for another TPM or AK.
        """
        return self._device.run(
            lambda connection: activate(
                connection, self._handle, challenge.credential, challenge.encrypted_secret
            )
        )


def quote(
    connection: TpmConnection, key: Any, pcrs: Selection, report_data: bytes
) -> tuple[bytes, dict[str, bytes]]:
    """Return a quote, and its attachments "signature" and "pcrs".

    Args:
        connection: To the TPM.
        key: Handle of an attestation key in it.
        pcrs: What to quote.
        report_data: Its qualifying data.

    Raises:
        EvidenceError: If the TPM's answer is no such quote.
        Overloaded: If PCRs change faster than they can be read.
    """
    selection = select(connection.tss, pcrs)
    for _ in range(_ROUNDS):
        registers = connection.read_registers(pcrs)
        attested, signed = connection.esapi.quote(key, selection, report_data)
        body, signature = bytes(attested), signed.marshal()
        parsed = parse_quote(body)
        if parsed.extra_data != report_data:
            msg = "TPM quote: it carries other data than was asked for"
            raise EvidenceError(msg)
        if _covers(parsed, registers, parse_signature(signature).hash_name):
            return body, {"signature": signature, "pcrs": dump_registers(registers)}
    msg = "the TPM's PCRs keep changing while they are quoted"
    raise Overloaded(msg)


def read_event_log(path: Path) -> bytes | None:
    """Return the firmware's event log; `None` where there is none, or it may not be read.

    Raises:
        EvidenceError: If it is larger than anybody accepts.
    """
    try:
        return read_bounded(path, at_most=_MAX_LOG) or None
    except OSError:
        # Without it there are no named events, which whoever looks at the evidence sees.
        return None


def find_tpm(platform: Platform, machine: Machine, advice: str) -> Finding | dict[str, str]:
    """Return the properties of the TPM, or why it cannot be used.

    Args:
        platform: That the TPM is looked for.
        machine: Where it is.
        advice: How to get one.
    """
    found = ""
    name, _, path = machine.tcti.partition(":")
    if name == "device" and not Path(path).exists():
        found = "no such device"
    elif name == "device" and not os.access(path, os.R_OK | os.W_OK):
        found, advice = "no permission to use it", "run as root, or as a member of the group tss"
    else:
        try:
            return TpmDevice(machine.tcti).run(_describe)
        except BlindAIError as error:
            found = str(error)
            advice = INSTALL if INSTALL in found else advice
    return Finding(platform, available=False, looked_for=machine.tcti, found=found, advice=advice)


def probe(machine: Machine) -> Finding:
    """Look for a TPM that answers."""
    properties = find_tpm(Platform.TPM, machine, _ADVICE)
    if isinstance(properties, Finding):
        return properties
    log = "attached" if os.access(machine.event_log, os.R_OK) else "cannot be read"
    return Finding(
        Platform.TPM,
        available=True,
        looked_for=machine.tcti,
        found="a TPM 2.0",
        details={**properties, "event log": f"{machine.event_log}: {log}"},
    )


def _covers(parsed: Quote, registers: Registers, hash_name: str) -> bool:
    digest = hashlib.new(hash_name)
    for selection in parsed.selections:
        for index in selection.indexes:
            digest.update(registers.get(selection.bank, {}).get(index, b""))
    return digest.digest() == parsed.pcr_digest


def _read_certificates(path: Path) -> bytes:
    try:
        return read_bounded(path, at_most=_MAX_CERTIFICATES)
    except OSError as error:
        what = f"certificates of the TPM's attestation key, {path}"
        raise refused(what, error) from error


def _describe(connection: TpmConnection) -> dict[str, str]:
    properties = connection.properties()
    maker = properties.get(_MANUFACTURER, 0).to_bytes(4).rstrip(b"\0").decode("ascii", "replace")
    firmware = properties.get(_FIRMWARE_1, 0) << 32 | properties.get(_FIRMWARE_2, 0)
    return {"manufacturer": maker, "firmware": f"{firmware:#x}"}
