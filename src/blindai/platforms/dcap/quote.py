"""Read SGX and TDX quotes: bytes → dataclasses, no judgement.

What is returned accounts for every byte of the quote: whatever is not a field here is
refused, except zeros behind its end, with which drivers fill their buffers. Vendor fields
keep the vendor's names.

References: Intel SGX ECDSA QuoteLib API, Appendix A.3 (version 4, also TDX) and A.4
(version 3); Intel TDX DCAP Quoting Library API, Appendix A.3 (versions 4 and 5); Intel SDM
volume 3D §38.15 (REPORT); Intel TDX Module Base Architecture Specification (TDREPORT).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

MAX_QUOTE_BYTES: Final = 32 << 10
HEADER_SIZE: Final = 48
SGX_REPORT_SIZE: Final = 384
TD_REPORT_10_SIZE: Final = 584
TD_REPORT_15_SIZE: Final = 648

KEY_TYPE_ECDSA_P256: Final = 2
CERTIFICATION_PCK_CHAIN: Final = 5
CERTIFICATION_QE_REPORT: Final = 6
_MAX_AUTH_DATA: Final = 1024

# Version 5 names the kind of the body; versions 3 and 4 leave it to the TEE type.
_BODY_SGX: Final = 1
_BODY_TD_10: Final = 2
_BODY_TD_15: Final = 3
_BODY_SIZES: Final = {
    _BODY_SGX: SGX_REPORT_SIZE,
    _BODY_TD_10: TD_REPORT_10_SIZE,
    _BODY_TD_15: TD_REPORT_15_SIZE,
}


class Tee(IntEnum):
    """The kind of hardware, as the quote's header names it."""

    SGX = 0x00
    TDX = 0x81


@dataclass(frozen=True, slots=True)
class SgxReport:
    """The body of an enclave's report; 384 bytes.

    Attributes:
        cpusvn: Security versions of the processor, 16 bytes.
        miscselect: Extended exception information in use, 4 bytes.
        isv_ext_prod_id: Only with key separation and sharing (KSS), 16 bytes.
        attributes: Flags of the enclave, 8 bytes.
        xfrm: Extended processor features in use, 8 bytes.
        mrenclave: Measurement of the enclave, 32 bytes.
        mrsigner: SHA-256 of the key that signed the enclave, 32 bytes.
        config_id: Only with KSS, 64 bytes.
        isv_prod_id: The signer's number of the product, 2 bytes, little-endian.
        isv_svn: The signer's security version.
        config_svn: Only with KSS.
        isv_family_id: Only with KSS, 16 bytes.
        report_data: The enclave's own bytes, 64 of them.
    """

    cpusvn: bytes
    miscselect: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    xfrm: bytes
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: bytes
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TdReport:
    """What a TDX quote says of a trust domain: 584 bytes, or 648 of a 1.5 module.

    Attributes:
        tee_tcb_svn: Security versions of the TDX module, 16 bytes.
        mrseam: Measurement of the TDX module, 48 bytes.
        mrsignerseam: Signer of the module, 48 bytes; zero for Intel's.
        seam_attributes: Attributes of the module, 8 bytes.
        td_attributes: Flags of the domain, 8 bytes.
        xfam: Extended processor features in use, 8 bytes.
        mrtd: Measurement of the domain as it was built, 48 bytes.
        mrconfigid: Configuration, chosen by whoever built the domain, 48 bytes.
        mrowner: Its owner, likewise.
        mrownerconfig: The owner's configuration, likewise.
        rtmrs: Four registers that the domain extends while it runs, 48 bytes each.
        report_data: The domain's own bytes, 64 of them.
        mrservicetd: Service domains bound to this one, 48 bytes; `None` before 1.5.
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    mrservicetd: bytes | None = None


@dataclass(frozen=True, slots=True)
class SignatureData:
    """What makes a quote authentic, beside Intel's certificates.

    Attributes:
        signature: Of the attestation key over header and body; r then s, 64 bytes.
        attestation_key: Point on P-256; x then y, 64 bytes.
        qe_report: Report of the quoting enclave, 384 bytes.
        qe_report_signature: Of the PCK key over `qe_report`; r then s, 64 bytes.
        qe_auth_data: Bytes that the quoting enclave binds along with the key.
        certification_type: How the PCK key is named; 5 is a chain of certificates.
        certification_data: By type 5: PCK certificate, its issuer, the root; in PEM.
    """

    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote.

    Attributes:
        version: 3, 4 or 5.
        tee: Whether it is of SGX or TDX.
        report: What it says of the enclave or domain.
        signed: Header and body, which the attestation key signs.
        signature_data: The rest.
    """

    version: int
    tee: Tee
    report: SgxReport | TdReport
    signed: bytes
    signature_data: SignatureData


def parse_quote(data: bytes) -> Quote:
    """Read a quote of version 3, 4 or 5.

    Raises:
        EvidenceError: If it is malformed, too large, or of an unsupported kind.
    """
    if len(data) > MAX_QUOTE_BYTES:
        msg = f"quote: {len(data)} bytes, at most {MAX_QUOTE_BYTES} are accepted"
        raise EvidenceError(msg)
    reader = Reader(data, "quote")
    version, tee = _parse_header(reader)
    report = _parse_body(reader, version, tee)
    signed = data[: reader.position]
    signature_data = _parse_signature_data(
        reader.sized(4, "signature data", at_most=MAX_QUOTE_BYTES), version
    )
    # Nothing signs these bytes, so they may carry nothing.
    reader.zeros(reader.remaining, "what follows its end")
    return Quote(version, tee, report, signed, signature_data)


def parse_sgx_report(data: bytes, name: str = "SGX report") -> SgxReport:
    """Read the body of an enclave's report.

    Raises:
        EvidenceError: If it does not have 384 bytes.
    """
    reader = Reader(data, name)
    cpusvn = reader.take(16, "CPUSVN")
    miscselect = reader.take(4, "MISCSELECT")
    reader.skip(12, "reserved")
    isv_ext_prod_id = reader.take(16, "ISVEXTPRODID")
    attributes = reader.take(8, "ATTRIBUTES")
    xfrm = reader.take(8, "XFRM")
    mrenclave = reader.take(32, "MRENCLAVE")
    reader.skip(32, "reserved")
    mrsigner = reader.take(32, "MRSIGNER")
    reader.skip(32, "reserved")
    report = SgxReport(
        cpusvn=cpusvn,
        miscselect=miscselect,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        xfrm=xfrm,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=reader.take(64, "CONFIGID"),
        isv_prod_id=reader.take(2, "ISVPRODID"),
        isv_svn=reader.u16("ISVSVN"),
        config_svn=reader.u16("CONFIGSVN"),
        isv_family_id=reader.take(58, "reserved and ISVFAMILYID")[42:],
        report_data=reader.take(64, "REPORTDATA"),
    )
    reader.end()
    return report


def parse_td_report(data: bytes) -> TdReport:
    """Read the body of a TDX quote: 584 bytes, or 648 of a 1.5 module.

    Raises:
        EvidenceError: If it has another size.
    """
    reader = Reader(data, "TD report")
    tee_tcb_svn = reader.take(16, "TEE_TCB_SVN")
    mrseam = reader.take(48, "MRSEAM")
    mrsignerseam = reader.take(48, "MRSIGNERSEAM")
    seam_attributes = reader.take(8, "SEAMATTRIBUTES")
    td_attributes = reader.take(8, "TDATTRIBUTES")
    xfam = reader.take(8, "XFAM")
    mrtd = reader.take(48, "MRTD")
    mrconfigid = reader.take(48, "MRCONFIGID")
    mrowner = reader.take(48, "MROWNER")
    mrownerconfig = reader.take(48, "MROWNERCONFIG")
    rtmrs = (
        reader.take(48, "RTMR0"),
        reader.take(48, "RTMR1"),
        reader.take(48, "RTMR2"),
        reader.take(48, "RTMR3"),
    )
    report_data = reader.take(64, "REPORTDATA")
    mrservicetd = None
    if reader.remaining:
        reader.skip(16, "TEE_TCB_SVN_2")  # judged by dcap-qvl, beside TEE_TCB_SVN
        mrservicetd = reader.take(48, "MRSERVICETD")
    reader.end()
    return TdReport(
        tee_tcb_svn=tee_tcb_svn,
        mrseam=mrseam,
        mrsignerseam=mrsignerseam,
        seam_attributes=seam_attributes,
        td_attributes=td_attributes,
        xfam=xfam,
        mrtd=mrtd,
        mrconfigid=mrconfigid,
        mrowner=mrowner,
        mrownerconfig=mrownerconfig,
        rtmrs=rtmrs,
        report_data=report_data,
        mrservicetd=mrservicetd,
    )


def _parse_header(reader: Reader) -> tuple[int, Tee]:
    version = reader.u16("version")
    if version not in (3, 4, 5):
        msg = f"quote: expected version 3, 4 or 5, found {version}"
        raise EvidenceError(msg)
    key_type = reader.u16("attestation key type")
    if key_type != KEY_TYPE_ECDSA_P256:
        msg = f"quote: expected attestation key type 2 (ECDSA on P-256), found {key_type}"
        raise EvidenceError(msg)
    tee_type = reader.u32("TEE type")
    try:
        tee = Tee(tee_type)
    except ValueError as error:
        msg = f"quote: expected TEE type 0 (SGX) or 0x81 (TDX), found {tee_type:#x}"
        raise EvidenceError(msg) from error
    # QE SVN, PCE SVN, QE vendor and user data: signed along, and no claim depends on them.
    reader.skip(HEADER_SIZE - reader.position, "header")
    return version, tee


def _parse_body(reader: Reader, version: int, tee: Tee) -> SgxReport | TdReport:
    kind = _BODY_SGX if tee is Tee.SGX else _BODY_TD_10
    if version == 3 and tee is not Tee.SGX:  # noqa: PLR2004 - the number is the version
        msg = "quote: version 3 is of SGX only"
        raise EvidenceError(msg)
    if version == 5:  # noqa: PLR2004
        kind = reader.u16("body type")
        size = reader.u32("body size")
        if kind not in _BODY_SIZES or (kind == _BODY_SGX) != (tee is Tee.SGX):
            msg = f"quote: unsupported body type {kind} for {tee.name}"
            raise EvidenceError(msg)
        if size != _BODY_SIZES[kind]:
            msg = f"quote: expected {_BODY_SIZES[kind]} bytes of body type {kind}, found {size}"
            raise EvidenceError(msg)
    body = reader.take(_BODY_SIZES[kind], "body")
    return parse_sgx_report(body) if kind == _BODY_SGX else parse_td_report(body)


def _parse_signature_data(data: bytes, version: int) -> SignatureData:
    reader = Reader(data, "signature data")
    signature = reader.take(64, "signature")
    attestation_key = reader.take(64, "attestation key")
    if version > 3:  # noqa: PLR2004
        # From version 4 on, what certifies the key lies in an envelope of its own.
        kind = reader.u16("certification type")
        if kind != CERTIFICATION_QE_REPORT:
            msg = f"signature data: expected certification type 6, found {kind}"
            raise EvidenceError(msg)
        inner = reader.sized(4, "certification data", at_most=MAX_QUOTE_BYTES)
        reader.end()
        reader = Reader(inner, "certification data")
    parsed = SignatureData(
        signature=signature,
        attestation_key=attestation_key,
        qe_report=reader.take(SGX_REPORT_SIZE, "QE report"),
        qe_report_signature=reader.take(64, "QE report signature"),
        qe_auth_data=reader.sized(2, "QE authentication data", at_most=_MAX_AUTH_DATA),
        certification_type=reader.u16("certification type"),
        certification_data=reader.sized(4, "certificates", at_most=MAX_QUOTE_BYTES),
    )
    reader.end()
    return parsed
