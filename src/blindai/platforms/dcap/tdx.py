"""Intel TDX: quotes of trust domains, of version 4 and 5, TD reports 1.0 and 1.5.

The body is the quote. The attachment "collateral" is Intel's statements about the platform,
in the form of `blindai.platforms.dcap.collateral`; the attachment "event_log", optional, is
the firmware's log (CCEL), whose events become claims where their register replays.

Refused outright, not weak, since `dcap-qvl` evaluates no TCB for them: a debug domain; one
that can be migrated; one whose host may remove its memory pages unseen (SEPT_VE_DISABLE off);
one bound to a service domain.

Reference: Intel TDX Module Base Architecture Specification, ATTRIBUTES and TDREPORT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Step, StepName, Steps
from blindai.errors import EvidenceError
from blindai.platforms.dcap.files import assemble_evidence
from blindai.platforms.dcap.quote import TdReport, Tee
from blindai.platforms.dcap.verifier import (
    AUTHENTICITY_STEPS,
    TCB_STEP,
    evaluate_tcb,
    platform_measurements,
    verify_authentic,
)
from blindai.platforms.tpm.boot import CCEL_LAYOUT, named_events
from blindai.platforms.tpm.eventlog import parse_event_log, replay_rtmrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.trust import Anchor

_ATTRIBUTES: Final = "Intel TDX Module Base Architecture Specification, ATTRIBUTES"

STEPS: Final = (
    *AUTHENTICITY_STEPS,
    StepName("debug", "The domain is under neither debugging nor profiling", _ATTRIBUTES),
    StepName(
        "sept-ve", "The domain gets no exception for missing pages (SEPT_VE_DISABLE)", _ATTRIBUTES
    ),
    StepName("migration", "The domain cannot be moved to another machine", _ATTRIBUTES),
    StepName(
        "service-td",
        "No service domain is bound to it",
        "Intel TDX Module Base Architecture Specification, TDINFO",
    ),
    TCB_STEP,
    StepName(
        "event-log",
        "The event log replays to the runtime registers",
        "UEFI 2.10 §38.4.1; TCG PC Client Platform Firmware Profile §10",
    ),
)
_UNDER_DEBUG: Final = 0xFF  # DEBUG, and seven more bits that let others look in
_SEPT_VE_DISABLE: Final = 1 << 28
_MIGRATABLE: Final = 1 << 29
_RTMRS: Final = 4


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of a TDX quote; see `blindai.platforms.base.Verifier`."""
    authentic = verify_authentic(evidence, tee=Tee.TDX, anchors=anchors, now=now, steps=steps)
    report = authentic.quote.report
    if not isinstance(report, TdReport):
        msg = "quote: expected the report of a trust domain"
        raise EvidenceError(msg)
    _check_domain(report, steps)
    evaluation = evaluate_tcb(authentic, now=now, steps=steps)
    measurements = {
        "mrtd": report.mrtd,
        **{f"rtmr{index}": rtmr for index, rtmr in enumerate(report.rtmrs)},
        "mrconfigid": report.mrconfigid,
        "mrowner": report.mrowner,
        "mrownerconfig": report.mrownerconfig,
        "mrseam": report.mrseam,
        "mrsignerseam": report.mrsignerseam,
        "td_attributes": report.td_attributes,
        "xfam": report.xfam,
    }
    if report.mrservicetd is not None:
        measurements["mrservicetd"] = report.mrservicetd
    measurements |= _named_events(evidence, report, steps)
    return Claims(
        platform=Platform.TDX,
        measurements=measurements | platform_measurements(authentic.pck),
        versions={
            "tee_tcb_svn_0": report.tee_tcb_svn[0],
            "tee_tcb_svn_1": report.tee_tcb_svn[1],
            "tcb_evaluation_data_number": evaluation.tcb_evaluation_data_number,
        },
        weaknesses=evaluation.weaknesses,
        report_data=report.report_data,
        not_after=authentic.not_after,
    )


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Return evidence made of files, and the indexes of those it has no use for.

    Args:
        body: The quote, raw or in hex.
        extras: Collateral as JSON, an event log, in any order with anything else.

    Raises:
        EvidenceError: If the quote is malformed.
    """
    evidence, unused = assemble_evidence(Platform.TDX, body, extras)
    log = next((index for index in unused if _is_event_log(extras[index])), None)
    if log is None:
        return evidence, unused
    attachments = {**evidence.attachments, "event_log": extras[log]}
    return replace(evidence, attachments=attachments), [i for i in unused if i != log]


def _named_events(evidence: Evidence, report: TdReport, steps: Steps) -> dict[str, bytes]:
    """Return the named events of the log, from the registers that it replays to.

    A register that it does not explain is no failure: software extends RTMR2 and RTMR3 long
    after the firmware's log has ended. Nothing is claimed of it.
    """
    data = evidence.attachments.get("event_log")
    if data is None:
        steps.skip("event-log", "there is no event log: no named events are claimed")
        return {}
    with steps.take("event-log") as step:
        log = parse_event_log(data)
        authentic = [
            register + 1
            for register, held in sorted(replay_rtmrs(log).items())
            if register < _RTMRS
            and step.compare(f"RTMR{register}", expected=report.rtmrs[register], found=held)
        ]
        if not authentic:
            msg = "the event log replays to none of the runtime registers"
            raise EvidenceError(msg)
        step.note("explains " + ", ".join(f"RTMR{register - 1}" for register in authentic))
        return named_events(log, "sha384", authentic=authentic, layout=CCEL_LAYOUT)


def _is_event_log(data: bytes) -> bool:
    # A TPM's log has other registers, and seldom the hash of the RTMRs.
    try:
        registers = replay_rtmrs(parse_event_log(data))
    except EvidenceError:
        return False
    return bool(registers) and max(registers) < _RTMRS


def _check_domain(report: TdReport, steps: Steps) -> None:
    flags = int.from_bytes(report.td_attributes, "little")
    with steps.take("debug") as step:
        _require(
            step,
            ("TUD", 0, flags & _UNDER_DEBUG),
            "debug domain: genuine, but the machine's operator can read its memory",
        )
    with steps.take("sept-ve") as step:
        _require(
            step,
            ("SEPT_VE_DISABLE", 1, int(bool(flags & _SEPT_VE_DISABLE))),
            "SEPT_VE_DISABLE is off: genuine, but the host can remove and replace memory pages "
            "without the domain's notice",
        )
    with steps.take("migration") as step:
        _require(
            step,
            ("MIGRATABLE", 0, int(bool(flags & _MIGRATABLE))),
            "migratable domain: genuine, but it can be moved to another machine",
        )
    if report.mrservicetd is None:
        steps.skip("service-td", "TD report 1.0 does not say")
        return
    with steps.take("service-td") as step:
        _require(
            step,
            ("MRSERVICETD", bytes(48), report.mrservicetd),
            "MRSERVICETD is not zero: genuine, but a service domain is bound to it",
        )


def _require(step: Step, compared: tuple[str, int | bytes, int | bytes], problem: str) -> None:
    what, expected, found = compared
    if not step.compare(what, expected=expected, found=found):
        raise EvidenceError(problem)
