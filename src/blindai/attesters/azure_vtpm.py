"""Azure confidential VMs: a quote by the vTPM that lives in the paravisor, and what certifies it.

The paravisor had the hardware sign its runtime data, which names the vTPM's attestation key, at
boot; that report lies in the vTPM. It is read once, as nothing in it is of a single request.

Evidence is as `blindai.platforms.azure` documents it: "hcl_report", "signature", "pcrs",
"event_log" where it can be read; on TDX "td_quote", which the host's quoting service makes
of the report, at an address that only this machine can reach.

Specification: Microsoft, Azure confidential VMs, "Guest attestation": NV index 0x01400001,
persistent handle 0x81000003, and `/acc/tdquote` of the instance metadata service.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Evidence, Platform
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.attesters.tpm.attester import PCRS, find_tpm, quote, read_event_log
from blindai.attesters.tpm.counter import TpmCounter
from blindai.attesters.tpm.device import Selection, TpmConnection, TpmDevice
from blindai.attesters.tpm.handover import open_handover, seal_for
from blindai.attesters.tpm.keys import derive_sealing_key
from blindai.errors import BlindAIError, ConfigurationError, EvidenceError, Overloaded
from blindai.platforms.azure import TDX_REPORT, HclReport, parse_hcl_report
from blindai.platforms.dcap.quote import MAX_QUOTE_BYTES, parse_quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HCL_REPORT: Final = 0x01400001
ATTESTATION_KEY: Final = 0x81000003
TD_REPORT_SIZE: Final = 1024
_METADATA_HOST: Final = "169.254.169.254"
_METADATA_TIMEOUT: Final = 10.0
_OK: Final = 200
_ADVICE: Final = "create the VM with the security type Confidential (DCas, DCes, ECas, ECes series)"


class AzureAttester:
    """Makes evidence of an Azure confidential VM.

    Args:
        machine: Where the vTPM and its event log are.
        pcrs: What is quoted, and what sealing depends on.
        device: The vTPM itself, instead of the machine's.
        fetch_quote: Returns the TDX quote over a TDREPORT of 1024 bytes.
    """

    platform: Final = Platform.AZURE_VTPM

    def __init__(
        self,
        machine: Machine | None = None,
        *,
        pcrs: Selection | None = None,
        device: TpmDevice | None = None,
        fetch_quote: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._machine = machine or Machine()
        self._device = device or TpmDevice(self._machine.tcti)
        self._pcrs = pcrs or PCRS
        self._fetch_quote = fetch_quote or fetch_td_quote
        self._lock = threading.Lock()
        self._hardware: dict[str, bytes] | None = None

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote that carries the 32 bytes of `report_data` as qualifying data.

        Raises:
            ConfigurationError: If this is no Azure confidential VM.
            EvidenceError: If its report is malformed.
            Overloaded: If the vTPM or the quoting service is busy.
        """
        check_binding(report_data)
        hardware = self._prove_hardware()

        def make(connection: TpmConnection) -> tuple[bytes, dict[str, bytes]]:
            key = connection.find(ATTESTATION_KEY)
            if key is None:
                msg = f"the vTPM has no attestation key at {ATTESTATION_KEY:#x}; {_ADVICE}"
                raise ConfigurationError(msg)
            return quote(connection, key, self._pcrs, report_data)

        body, attachments = self._device.run(make)
        if (log := read_event_log(self._machine.event_log)) is not None:
            attachments["event_log"] = log
        return Evidence(self.platform, body, attachments | hardware)

    def rollback_counter(self) -> TpmCounter:
        """Return a counter in the TPM; it is made where there is none yet.

        Raises:
            ConfigurationError: If the TPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return TpmCounter(self._device)

    def sealing_key(self) -> bytes | None:
        """Return a key that this vTPM gives out while its PCRs are as they are now.

        Raises:
            ConfigurationError: If the vTPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(lambda connection: derive_sealing_key(connection, self._pcrs))

    def seal_for_successor(self, secret: bytes, measurements: Mapping[str, bytes]) -> bytes:
        """Return `secret` in a form that only other code on this vTPM opens.

        Args:
            secret: At most 64 bytes.
            measurements: "pcr9" → value, of the PCRs that are others when that code runs.

        Raises:
            ConfigurationError: A PCR that is not quoted, or the vTPM refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(
            lambda connection: seal_for(connection, self._pcrs, measurements, secret)
        )

    def open_from_predecessor(self, blob: bytes) -> bytes:
        """Return the secret that the code before sealed for the code that runs now.

        Raises:
            SealedDataError: It was sealed for other code, or is of another vTPM.
            ConfigurationError: If the vTPM cannot be reached, or refuses.
            Overloaded: If it has no room, or was reset.
        """
        return self._device.run(lambda connection: open_handover(connection, self._pcrs, blob))

    def _prove_hardware(self) -> dict[str, bytes]:
        with self._lock:
            if self._hardware is None:
                content = self._device.run(_read_hcl_report)
                found = parse_hcl_report(content)
                self._hardware = {"hcl_report": content, **self._prove_tdx(found)}
            return dict(self._hardware)

    def _prove_tdx(self, report: HclReport) -> dict[str, bytes]:
        if report.kind != TDX_REPORT:
            return {}
        fetched = self._fetch_quote(report.hardware_report[:TD_REPORT_SIZE])
        parse_quote(fetched)
        return {"td_quote": fetched}


def fetch_td_quote(td_report: bytes, *, host: str = _METADATA_HOST) -> bytes:
    """Return the quote over a TDREPORT, from the metadata service of the host.

    Args:
        td_report: 1024 bytes.
        host: Address, with a port where it is not 80; a parameter for tests.

    Raises:
        Overloaded: If the service does not answer, or refuses.
        EvidenceError: If its answer has no quote.
    """
    question = json.dumps({"report": base64.urlsafe_b64encode(td_report).decode()})
    connection = http.client.HTTPConnection(host, timeout=_METADATA_TIMEOUT)
    try:
        connection.request(
            "POST",
            "/acc/tdquote",
            question,
            {"Content-Type": "application/json", "Metadata": "true"},
        )
        response = connection.getresponse()
        answer = response.read(2 * MAX_QUOTE_BYTES)
    except (OSError, http.client.HTTPException) as error:
        msg = f"the host's TDX quoting service at {host} does not answer: {error}"
        raise Overloaded(msg) from error
    finally:
        connection.close()
    if response.status != _OK:
        msg = f"the host's TDX quoting service answered with status {response.status}"
        raise Overloaded(msg)
    try:
        text = json.loads(answer)["quote"]
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        msg = "the host's TDX quoting service answered without a quote"
        raise EvidenceError(msg) from error


def probe(machine: Machine) -> Finding:
    """Look for a TPM that holds a paravisor's report."""
    looked_for = f"{machine.tcti} with NV index {HCL_REPORT:#x}"
    properties = find_tpm(Platform.AZURE_VTPM, machine, _ADVICE)
    if isinstance(properties, Finding):
        return Finding(
            Platform.AZURE_VTPM,
            available=False,
            looked_for=looked_for,
            found=properties.found,
            advice=properties.advice,
        )
    try:
        report = parse_hcl_report(TpmDevice(machine.tcti).run(_read_hcl_report))
    except BlindAIError as error:
        found = str(error)
        return Finding(
            Platform.AZURE_VTPM, available=False, looked_for=looked_for, found=found, advice=_ADVICE
        )
    protection = "TDX" if report.kind == TDX_REPORT else "SEV-SNP"
    return Finding(
        Platform.AZURE_VTPM,
        available=True,
        looked_for=looked_for,
        found=f"a paravisor's report, protected by {protection}",
        details=properties,
    )


def _read_hcl_report(connection: TpmConnection) -> bytes:
    content = connection.read_nv(HCL_REPORT, by_owner=True)
    if content is None:
        msg = f"the TPM has no NV index {HCL_REPORT:#x}: this is no Azure confidential VM"
        raise ConfigurationError(msg)
    return content
