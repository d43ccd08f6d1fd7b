"""Intel SGX: quotes of enclaves, of version 3 and, in the TDX form, 4 and 5.

The body is the quote. The attachment "collateral" is Intel's statements about the platform,
in the form of `blindai.platforms.dcap.collateral`. A debug enclave is refused outright, not
weak: whoever runs the machine can read its memory, and `dcap-qvl` evaluates no TCB for it.

Reference: Intel SDM volume 3D §38.7 (SECS, ATTRIBUTES) and §38.15 (REPORT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.errors import EvidenceError
from blindai.platforms.dcap.files import assemble_evidence
from blindai.platforms.dcap.quote import SgxReport, Tee
from blindai.platforms.dcap.verifier import (
    AUTHENTICITY_STEPS,
    TCB_STEP,
    evaluate_tcb,
    platform_measurements,
    verify_authentic,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.trust import Anchor

STEPS: Final = (
    *AUTHENTICITY_STEPS,
    StepName("attributes", "The enclave is initialised, and not in debug mode", "SDM 3D §38.7.1"),
    TCB_STEP,
)
_INIT: Final = 1 << 0
_DEBUG: Final = 1 << 1
_KSS: Final = 1 << 7


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of an SGX quote; see `blindai.platforms.base.Verifier`."""
    authentic = verify_authentic(evidence, tee=Tee.SGX, anchors=anchors, now=now, steps=steps)
    report = authentic.quote.report
    with steps.take("attributes") as step:
        if not isinstance(report, SgxReport):
            msg = "quote: expected the report of an enclave"
            raise EvidenceError(msg)
        flags = int.from_bytes(report.attributes, "little")
        if not step.compare("DEBUG", expected=0, found=int(bool(flags & _DEBUG))):
            msg = "debug enclave: genuine, but the machine's operator can read its memory"
            raise EvidenceError(msg)
        if not step.compare("INIT", expected=1, found=flags & _INIT):
            msg = "the enclave was never initialised"
            raise EvidenceError(msg)
    evaluation = evaluate_tcb(authentic, now=now, steps=steps)
    measurements = {
        "mrenclave": report.mrenclave,
        "mrsigner": report.mrsigner,
        "isv_prod_id": report.isv_prod_id,
        "attributes": report.attributes,
        "xfrm": report.xfrm,
        "miscselect": report.miscselect,
    }
    versions = {
        "isv_svn": report.isv_svn,
        "tcb_evaluation_data_number": evaluation.tcb_evaluation_data_number,
    }
    if flags & _KSS:
        # Without key separation and sharing these fields mean nothing.
        measurements["isv_family_id"] = report.isv_family_id
        measurements["isv_ext_prod_id"] = report.isv_ext_prod_id
        measurements["config_id"] = report.config_id
        versions["config_svn"] = report.config_svn
    return Claims(
        platform=Platform.SGX,
        measurements=measurements | platform_measurements(authentic.pck),
        versions=versions,
        weaknesses=evaluation.weaknesses,
        report_data=report.report_data,
        not_after=authentic.not_after,
    )


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Return evidence made of files, and the indexes of those it has no use for.

    Args:
        body: The quote, raw or in hex.
        extras: Collateral as JSON, in any order with anything else.

    Raises:
        EvidenceError: If the quote is malformed.
    """
    return assemble_evidence(Platform.SGX, body, extras)
