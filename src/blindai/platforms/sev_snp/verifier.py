"""AMD SEV-SNP: attestation reports of Milan, Genoa and Turin, signed by a VCEK or a VLEK.

The body is the report, 0x4A0 bytes. A claim is made only once its signature leads to a
pinned ARK, and only of the report's own signed fields or of the certificate that signed it.
Every byte of the body counts: the fields that the signature does not cover have to be zero.

Attachments, none of which is trusted:

- `certificates`: the VCEK or VLEK, its ASK or ASVK, and the ARK; a PEM bundle, or DER one
  after the other; in any order.
- `certificate_table`: the same, as the host hands it out beside an extended report
  (configfs-tsm: `auxblob`). One of the two has to be there; both may.
- `crl`: AMD's revocation list, DER or PEM. Without one (here or in the table) the claims
  carry the weakness "no-revocation-list". It can revoke an ASK or ASVK only: every VCEK and
  VLEK has serial number 0. Against a stolen chip key a policy names chips or minimum versions.

What the claims mean:

- `versions` are the parts of REPORTED_TCB, the TCB that the signing key is derived from, and
  `guest_svn`; `abi_major` and `abi_minor` are the least firmware interface that the guest's
  policy allows it to run on.
- `chip_id` is CHIP_ID; where the operator masks it, what the VCEK certifies instead, so that
  an allow-list of chips works there too. A VLEK names no chip, but as `csp_id` its provider.
- `id_key_digest` and `author_key_digest` are missing where no such key was used: they would
  be zero, and zero pins nothing.
- A report carries no time: freshness is the nonce in its report data.

Specifications: AMD 56860 (firmware ABI), 57230 (VCEK, KDS), 58369 (VLEK), 24593 (APM 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from blindai.attestation import certs
from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.errors import EndorsementError, EvidenceError, SignatureError
from blindai.platforms.sev_snp import kds
from blindai.platforms.sev_snp.report import (
    ECDSA_P384_SHA384,
    PLATFORM_ALIAS_CHECK_COMPLETE,
    PLATFORM_SMT_EN,
    POLICY_DEBUG,
    POLICY_MIGRATE_MA,
    POLICY_SMT,
    PRODUCTS,
    VCEK,
    VLEK,
    Product,
    Report,
    parse_report,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509

    from blindai.attestation.steps import Step
    from blindai.attestation.trust import Anchor

STEPS: Final = (
    StepName("format", "The report has AMD's form and a known version", "AMD 56860 §7.3"),
    StepName("certificates", "The report comes with the certificate of its key", "AMD 57230 §3.1"),
    StepName("chain", "The certificate leads to a pinned AMD root key (ARK)", "AMD 57230 §2"),
    StepName("revocation", "AMD has not revoked the chain", "AMD 57230 §4.2; RFC 5280 §6.3"),
    StepName("product", "Root, certificate and CPUID name one product", "AMD 57230 §3.1"),
    StepName("key", "The certified key is ECDSA P-384", "AMD 57230 §3.1; 56860 §10"),
    StepName("signature", "The certified key signed the report", "AMD 56860 §7.3, §10"),
    StepName("tcb", "The certificate is for the TCB that the report names", "AMD 56860 §2.2"),
    StepName("chip", "The certificate is for the chip that the report names", "AMD 57230 §3.1"),
    StepName("firmware", "The firmware was up to date at launch and stays so", "AMD 56860 §3.3"),
    StepName("guest-policy", "The guest is closed to its host and to debuggers", "AMD 56860 §4.3"),
    StepName("platform", "How the platform is set up", "AMD 56860 §7.3; AMD-SB-3015"),
    StepName("privilege", "Which privilege level of the guest asked", "AMD 24593 §15.36.7"),
)
_ROOT_PREFIX: Final = "ARK-"
_PATH_LENGTH: Final = 3  # VCEK or VLEK, ASK or ASVK, ARK
_KIND_NAMES: Final = {VCEK: "VCEK", VLEK: "VLEK"}
_ISSUERS: Final = {VCEK: "SEV-", VLEK: "SEV-VLEK-"}
_LEAST_PRIVILEGED: Final = 3
_NO_AGENT: Final = b"\xff" * 32


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of an SEV-SNP report; see `blindai.platforms.base.Verifier`."""
    with steps.take("format") as step:
        report = _read_report(evidence.body, step)
    with steps.take("certificates") as step:
        leaf, others, crl = _read_certificates(evidence, report, step)
    with steps.take("chain") as step:
        path, product = _verify_chain(leaf, others, anchors, now, step)
    not_after = min(certificate.not_valid_after_utc for certificate in path)
    weaknesses: set[str] = set()
    if crl is None:
        steps.skip("revocation", "no revocation list came with the report")
        weaknesses.add("no-revocation-list")
    else:
        with steps.take("revocation") as step:
            not_after = min(not_after, _verify_revocation(path, crl, now, step))
    with steps.take("product") as step:
        _check_product(report, leaf, product, step)
    with steps.take("key"):
        key = _signing_key(leaf)
    with steps.take("signature") as step:
        _verify_signature(report, key, step)
    with steps.take("tcb") as step:
        _check_tcb(report, leaf, product, step)
    with steps.take("chip") as step:
        chip_id = _check_chip(report, leaf, product, step)
    with steps.take("firmware") as step:
        weaknesses |= _firmware_weaknesses(report, product, step)
    with steps.take("guest-policy") as step:
        weaknesses |= _policy_weaknesses(report, step)
    with steps.take("platform") as step:
        weaknesses |= _platform_weaknesses(report, product, step)
    with steps.take("privilege") as step:
        weaknesses |= _privilege_weaknesses(report, step)
    return Claims(
        platform=Platform.SEV_SNP,
        measurements=_measurements(report, leaf, product, chip_id),
        versions=_versions(report, product),
        weaknesses=frozenset(weaknesses),
        report_data=report.report_data,
        not_after=not_after,
    )


def _read_report(body: bytes, step: Step) -> Report:
    report = parse_report(body)
    step.note(f"version {report.version}")
    algorithm = report.signature_algorithm
    if not step.compare("SIGNATURE_ALGO", expected=ECDSA_P384_SHA384, found=algorithm):
        msg = f"SNP report: expected signature algorithm 1, found {algorithm}"
        raise EvidenceError(msg)
    if report.signing_key not in _KIND_NAMES:
        msg = f"SNP report: signed by no key that has a certificate ({report.signing_key})"
        raise EvidenceError(msg)
    if report.r == 0 or report.s == 0:
        why = "the operator has it masked" if report.chip_key_masked else "it is zero"
        msg = f"SNP report: expected a signature, but {why}"
        raise SignatureError(msg)
    return report


def _read_certificates(
    evidence: Evidence, report: Report, step: Step
) -> tuple[kds.Leaf, list[x509.Certificate], x509.CertificateRevocationList | None]:
    found: list[x509.Certificate] = []
    crl = None
    if table := evidence.attachments.get("certificate_table"):
        parsed = kds.parse_certificate_table(table)
        found, crl = [*parsed.certificates], parsed.crl
    if attached := evidence.attachments.get("certificates"):
        found += kds.parse_certificates(attached, "certificates")
    if listed := evidence.attachments.get("crl"):
        crl = kds.parse_crl(listed)
    kind = report.signing_key
    leaves = [kds.parse_leaf(c) for c in found if kds.leaf_kind(c) == kind]
    if not leaves:
        msg = f"the report is signed by a {_KIND_NAMES[kind]}, but no certificate of one is here"
        raise EndorsementError(msg)
    # A host may hand out those of older firmware, too: take the one that was meant.
    leaf = next((one for one in leaves if one.fits(report)), leaves[0])
    step.note(f"{_KIND_NAMES[kind]} for {leaf.product}, {len(found)} certificates in all")
    return leaf, [c for c in found if c != leaf.certificate], crl


def _verify_chain(
    leaf: kds.Leaf,
    others: Sequence[x509.Certificate],
    anchors: Sequence[Anchor],
    now: datetime,
    step: Step,
) -> tuple[list[x509.Certificate], Product]:
    roots = [a for a in anchors if a.name.removeprefix(_ROOT_PREFIX) in PRODUCTS]
    path = certs.verify_chain(leaf.certificate, others, anchors=roots, now=now)
    if len(path) != _PATH_LENGTH:
        msg = f"AMD's chains have {_PATH_LENGTH} certificates, this one has {len(path)}"
        raise SignatureError(msg)
    root = next(a for a in roots if a.sha256 == certs.fingerprint(path[-1]))
    step.compare(f"SHA-256 of {root.name}", expected=root.sha256, found=certs.fingerprint(path[-1]))
    step.note(" ← ".join(kds.common_name(certificate.subject) for certificate in path))
    return path, PRODUCTS[root.name.removeprefix(_ROOT_PREFIX)]


def _verify_revocation(
    path: Sequence[x509.Certificate],
    crl: x509.CertificateRevocationList,
    now: datetime,
    step: Step,
) -> datetime:
    expected, issuer = kds.common_name(path[-1].subject), kds.common_name(crl.issuer)
    step.compare("issuer of the list", expected=expected, found=issuer)
    if crl.issuer != path[-1].subject:
        msg = f"revocation list: expected one of {expected}, found one of {issuer}"
        raise EndorsementError(msg)
    # AMD gives every leaf the serial number 0, so a list says nothing about leaves.
    certs.verify_revocation(path[1:], [crl], now=now)
    if crl.next_update_utc is None:  # verify_revocation refuses it
        msg = "revocation list: says not when the next one comes"
        raise EndorsementError(msg)
    step.note(f"{kds.common_name(path[1].subject)} is not on the list")
    return crl.next_update_utc


def _check_product(report: Report, leaf: kds.Leaf, product: Product, step: Step) -> None:
    step.compare("product name in the certificate", expected=product.name, found=leaf.product)
    if not leaf.speaks_for(product.name):
        msg = f"the root is for {product.name}, the certificate for {leaf.product}"
        raise SignatureError(msg)
    issuer = kds.common_name(leaf.certificate.issuer)
    expected = f"{_ISSUERS[leaf.kind]}{product.name}"
    if not step.compare("issuer of the certificate", expected=expected, found=issuer):
        msg = f"a {_KIND_NAMES[leaf.kind]} is issued by {expected}, this one by {issuer}"
        raise SignatureError(msg)
    if report.cpuid is None:
        step.note("the report's version names no CPUID")
        return
    named = ", ".join(candidate.name for candidate in kds.candidates(report))
    if not step.compare("product of the CPUID", expected=product.name, found=named):
        msg = f"the root is for {product.name}, but the report is of {named}"
        raise SignatureError(msg)


def _signing_key(leaf: kds.Leaf) -> ec.EllipticCurvePublicKey:
    key = leaf.certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = f"{certs.name_of(leaf.certificate)}: expected a key on P-384, found another"
        raise SignatureError(msg)
    return key


def _verify_signature(report: Report, key: ec.EllipticCurvePublicKey, step: Step) -> None:
    signature = encode_dss_signature(report.r, report.s)
    try:
        key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        msg = "the report is not signed by the key of its certificate"
        raise SignatureError(msg) from error
    step.note(f"ECDSA P-384 with SHA-384 over {len(report.signed)} bytes")


def _check_tcb(report: Report, leaf: kds.Leaf, product: Product, step: Step) -> None:
    for part in product.tcb:
        name = part.name or f"reserved part {part.offset}"
        certified, found = leaf.tcb.get(part.oid), report.reported_tcb[part.offset]
        if certified is None:
            msg = f"the certificate says nothing about {name} ({part.oid})"
            raise SignatureError(msg)
        if not step.compare(name, expected=certified, found=found):
            msg = f"{name}: the certificate is for {certified}, the report says {found}"
            raise SignatureError(msg)


def _check_chip(report: Report, leaf: kds.Leaf, product: Product, step: Step) -> bytes | None:
    if leaf.chip_id is None:
        step.note(f"a VLEK names no chip; it is leased to {leaf.csp_id}")
        return None if report.chip_id_masked else report.chip_id
    if len(leaf.chip_id) != product.chip_id_size:
        size = product.chip_id_size
        msg = f"{product.name} chips have ids of {size} bytes, this one of {len(leaf.chip_id)}"
        raise SignatureError(msg)
    certified = leaf.chip_id.ljust(len(report.chip_id), b"\0")
    if report.chip_id_masked:
        step.note("the operator masks the chip in reports; the certificate names it")
        return certified
    if not step.compare("CHIP_ID", expected=certified, found=report.chip_id):
        msg = f"the certificate is for chip {certified.hex()}, not for {report.chip_id.hex()}"
        raise SignatureError(msg)
    return report.chip_id


def _firmware_weaknesses(report: Report, product: Product, step: Step) -> set[str]:
    weaknesses = set()
    for part in product.tcb:
        name = part.name or f"reserved part {part.offset}"
        reported = report.reported_tcb[part.offset]
        if reported > report.committed_tcb[part.offset]:
            # The operator can go back to firmware older than the report promises.
            step.compare(
                f"{name} committed", expected=reported, found=report.committed_tcb[part.offset]
            )
            weaknesses.add("tcb-not-committed")
        if reported > report.launch_tcb[part.offset]:
            # Whoever broke the older firmware had this guest in hand before the update.
            step.compare(
                f"{name} at launch", expected=reported, found=report.launch_tcb[part.offset]
            )
            weaknesses.add("launched-on-older-tcb")
    return weaknesses


def _policy_weaknesses(report: Report, step: Step) -> set[str]:
    step.note(f"policy {report.policy:#x}")
    weaknesses = set()
    if report.policy & POLICY_DEBUG:
        weaknesses.add("debug")
    if report.policy & POLICY_SMT:
        weaknesses.add("smt")
    if report.policy & POLICY_MIGRATE_MA or report.report_id_ma != _NO_AGENT:
        weaknesses.add("migration-agent")
    return weaknesses


def _platform_weaknesses(report: Report, product: Product, step: Step) -> set[str]:
    step.note(f"PLATFORM_INFO {report.platform_info:#x}")
    weaknesses = set()
    if report.platform_info & PLATFORM_SMT_EN:
        weaknesses.add("smt")
    if not report.platform_info & PLATFORM_ALIAS_CHECK_COMPLETE:
        # BadRAM: memory modules that lie about their size alias encrypted pages.
        weaknesses.add("alias-check-incomplete")
    if product.name == "Milan":
        # arXiv 2605.12990: the VCEK of any Milan chip can be taken out of it, so a genuine
        # signature need not come from the firmware. Only an allow-list of chips helps.
        weaknesses.add("milan-vcek-extractable")
    return weaknesses


def _privilege_weaknesses(report: Report, step: Step) -> set[str]:
    if report.vmpl > _LEAST_PRIVILEGED:
        msg = f"SNP report: asked for by the host, not by a guest (VMPL {report.vmpl:#x})"
        raise EvidenceError(msg)
    if step.compare("VMPL", expected=0, found=report.vmpl):
        return set()
    step.note("software at VMPL 0, such as an SVSM or a paravisor, has power over this guest")
    return {"vmpl-not-zero"}


def _measurements(
    report: Report, leaf: kds.Leaf, product: Product, chip_id: bytes | None
) -> dict[str, bytes]:
    measurements = {
        "measurement": report.measurement,
        "host_data": report.host_data,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "report_id": report.report_id,
        "policy": report.policy_bytes,
        "product": product.name.encode(),
    }
    if any(report.id_key_digest):
        measurements["id_key_digest"] = report.id_key_digest
    if report.author_key_enabled and any(report.author_key_digest):
        measurements["author_key_digest"] = report.author_key_digest
    if chip_id is not None:
        measurements["chip_id"] = chip_id
    if leaf.csp_id is not None:
        measurements["csp_id"] = leaf.csp_id.encode()
    return measurements


def _versions(report: Report, product: Product) -> dict[str, int]:
    versions = {part.name: report.reported_tcb[part.offset] for part in product.tcb if part.name}
    versions["guest_svn"] = report.guest_svn
    versions["abi_minor"] = report.policy & 0xFF
    versions["abi_major"] = report.policy >> 8 & 0xFF
    return versions
