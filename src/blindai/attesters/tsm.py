"""AMD SEV-SNP and Intel TDX through configfs-tsm, the one interface that Linux has for both.

Always true here: a report counts only if nobody else wrote to its entry meanwhile, which the
kernel's `generation` tells; every entry that is made is removed again.

Evidence on SEV-SNP: the report, with the host's certificates, where it hands out any, as the
attachment "certificate_table". On TDX: the quote, without attachments. What else verification
needs is fetched from the vendor, by the server or by the client.

Specification: Linux, Documentation/ABI/testing/configfs-tsm-report (6.7 and later).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.attestation.binding import BINDING_SIZE
from blindai.attestation.model import Evidence, Platform
from blindai.attesters import sev_guest
from blindai.attesters.base import Finding, Machine, check_binding
from blindai.attesters.kernel_files import read_bounded, refused, write_once
from blindai.errors import BlindAIError, ConfigurationError, EvidenceError, Overloaded
from blindai.platforms.dcap.quote import TdReport, parse_quote
from blindai.platforms.sev_snp.report import parse_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROVIDERS: Final = {Platform.SEV_SNP: "sev_guest", Platform.TDX: "tdx_guest"}
REPORT_DATA_SIZE: Final = 64
MAX_OUTBLOB: Final = 32 << 10
MAX_AUXBLOB: Final = 64 << 10

_MAX_LINE: Final = 256
# Seconds before each attempt.
_ATTEMPTS: Final = (0.0, 0.05, 0.2, 0.5)
# The host limits how often it lets a guest ask; other writers remove entries, or keep them busy.
_TEMPORARY: Final = frozenset(
    {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENOENT}
)
_ADVICE: Final = {
    Platform.SEV_SNP: (
        "start the machine as an SEV-SNP guest (on AMD EPYC 7003 or later), with Linux 6.7 or "
        "later and CONFIG_TSM_REPORTS; then: modprobe sev-guest"
    ),
    Platform.TDX: (
        "start the machine as a TDX guest (on Intel Xeon of the 5th generation or later), with "
        "Linux 6.7 or later and CONFIG_TSM_REPORTS; then: modprobe tdx-guest"
    ),
}


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What one entry answered.

    Attributes:
        outblob: The report or quote.
        auxblob: Certificates from the host; empty where there are none.
    """

    outblob: bytes
    auxblob: bytes


class TsmAttester:
    """Makes evidence of an SEV-SNP guest or a TDX domain.

    Args:
        platform: `Platform.SEV_SNP` or `Platform.TDX`.
        machine: Where the kernel's files are.
        privilege_level: VMPL that an SEV-SNP report is asked for; default: the most
            privileged that the kernel may ask for.
        sleep: Waits some seconds between two attempts; a parameter for tests.
    """

    def __init__(
        self,
        platform: Platform,
        machine: Machine | None = None,
        *,
        privilege_level: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.platform: Final = platform
        self._machine = machine or Machine()
        self._privilege_level = privilege_level
        self._sleep = sleep

    def attest(self, report_data: bytes) -> Evidence:
        """Return a report or quote that carries the 32 bytes of `report_data`, then zeros.

        Raises:
            ConfigurationError: If there is no such TEE, or it may not be used.
            Overloaded: If the host is busy, or other writers kept interfering.
        """
        check_binding(report_data)
        reason = ""
        for seconds in _ATTEMPTS:
            if seconds:
                self._sleep(seconds)
            try:
                with _entry(self._machine.tsm) as entry:
                    report = self._ask(entry, report_data.ljust(REPORT_DATA_SIZE, b"\0"))
            except OSError as error:
                if error.errno not in _TEMPORARY:
                    what = f"{self.platform} report"
                    raise refused(what, error) from error
                reason = error.strerror or str(error)
            else:
                if report is not None:
                    return self._evidence(report)
                reason = "another process writes to the entry"
        msg = f"no {self.platform} report after {len(_ATTEMPTS)} attempts: {reason}"
        raise Overloaded(msg)

    def sealing_key(self) -> bytes | None:
        """Return a key that the chip derives for this measurement and policy; SEV-SNP only.

        `None` on TDX, which has no such key, and where the kernel has no /dev/sev-guest.

        Raises:
            ConfigurationError: If the device may not be used, or the firmware refuses.
        """
        if self.platform is not Platform.SEV_SNP or not self._machine.sev_guest.exists():
            return None
        return sev_guest.derive_key(self._machine.sev_guest, vmpl=self._privilege_level or 0)

    def rollback_counter(self) -> None:
        """Return `None`: the firmware counts nothing that guests can use."""
        return

    def _ask(self, entry: Path, report_data: bytes) -> TsmReport | None:
        """Return what the entry answers; `None` if somebody else wrote to it."""
        _check_provider(entry, self.platform)
        before = _read_number(entry / "generation")
        writes = 0
        level = self._level(entry)
        if level is not None:
            write_once(entry / "privlevel", b"%d" % level)
            writes += 1
        write_once(entry / "inblob", report_data)
        writes += 1
        outblob = read_bounded(entry / "outblob", at_most=MAX_OUTBLOB)
        auxblob = b""
        # TDX has none, and a host need not hand out certificates.
        with contextlib.suppress(FileNotFoundError):
            auxblob = read_bounded(entry / "auxblob", at_most=MAX_AUXBLOB)
        if _read_number(entry / "generation") != before + writes:
            return None
        return TsmReport(outblob, auxblob)

    def _level(self, entry: Path) -> int | None:
        if self.platform is not Platform.SEV_SNP:
            return None
        if self._privilege_level is not None:
            return self._privilege_level
        try:
            return _read_number(entry / "privlevel_floor")
        except FileNotFoundError:
            return None

    def _evidence(self, report: TsmReport) -> Evidence:
        if not report.outblob:
            msg = f"{self.platform} report: the kernel returned an empty one"
            raise EvidenceError(msg)
        # An empty table is all zero.
        attachments = {"certificate_table": report.auxblob} if any(report.auxblob) else {}
        return Evidence(self.platform, report.outblob, attachments)


def probe(platform: Platform, machine: Machine) -> Finding:
    """Look for configfs-tsm with the provider of `platform`."""
    looked_for = f"{machine.tsm} with the provider {PROVIDERS[platform]}"
    if not machine.tsm.is_dir():
        return Finding(
            platform,
            available=False,
            looked_for=looked_for,
            found="no such folder",
            advice=_ADVICE[platform],
        )
    try:
        # Bound to nothing: a report of zeros proves no key.
        evidence = TsmAttester(platform, machine).attest(bytes(BINDING_SIZE))
    except BlindAIError as error:
        return Finding(
            platform,
            available=False,
            looked_for=looked_for,
            found=str(error),
            advice=_ADVICE[platform],
        )
    return Finding(
        platform,
        available=True,
        looked_for=looked_for,
        found=f"provider {PROVIDERS[platform]}",
        details=_describe(evidence),
    )


@contextlib.contextmanager
def _entry(folder: Path) -> Iterator[Path]:
    """Make a report entry of one's own, and remove it at the end."""
    path = folder / f"blindai-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        if error.errno == errno.ENXIO:
            msg = f"{folder}: no TEE: the kernel has no provider of reports"
            raise ConfigurationError(msg) from error
        raise refused(str(folder), error) from error
    try:
        yield path
    finally:
        # Whoever interferes may have removed it already.
        with contextlib.suppress(OSError):
            path.rmdir()


def _check_provider(entry: Path, platform: Platform) -> None:
    try:
        provider = read_bounded(entry / "provider", at_most=_MAX_LINE).decode("ascii").strip()
    except FileNotFoundError as error:
        if not entry.exists():
            raise
        msg = f"{entry.parent}: it is no configfs-tsm: its entries have no provider"
        raise ConfigurationError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{entry.parent}: the name of its provider is not ASCII"
        raise EvidenceError(msg) from error
    if provider != PROVIDERS[platform]:
        msg = f"{entry.parent}: expected the provider {PROVIDERS[platform]}, found {provider!r}"
        raise ConfigurationError(msg)


def _read_number(path: Path) -> int:
    text = read_bounded(path, at_most=_MAX_LINE).strip()
    if not text.isdigit():
        msg = f"{path.name} of configfs-tsm: expected a number"
        raise EvidenceError(msg)
    return int(text)


def _describe(evidence: Evidence) -> dict[str, str]:
    try:
        if evidence.platform is Platform.SEV_SNP:
            report = parse_report(evidence.body)
            return {
                "report version": str(report.version),
                "reported TCB": report.reported_tcb.hex(),
                "certificates from the host": str("certificate_table" in evidence.attachments),
            }
        body = parse_quote(evidence.body).report
        return {"TDX module TCB": body.tee_tcb_svn.hex()} if isinstance(body, TdReport) else {}
    except EvidenceError as error:
        return {"unreadable": str(error)}
