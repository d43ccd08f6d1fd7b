"""The vendors' services, answered by the fake vendors: what `get` is in these tests."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from blindai.attestation.certs import der
from blindai.attestation.draft import draft_policy
from blindai.attestation.steps import Steps
from blindai.endorsements import Answer
from blindai.errors import ConnectionFailed, EndorsementError
from blindai.platforms import VERIFIERS
from blindai.platforms.dcap.collateral import urls_for
from blindai.platforms.dcap.quote import parse_quote
from blindai.platforms.nvidia.ocsp import parse_responses
from blindai.platforms.sev_snp import kds
from blindai.platforms.sev_snp.report import VCEK, VLEK, parse_report


def bare(evidence, *, keep=()):
    """Return evidence with nothing attached but `keep`."""
    kept = {name: value for name, value in evidence.attachments.items() if name in keep}
    return replace(evidence, attachments=kept)


def policy_for(vendor, evidence, *, now=None, tolerate=frozenset(), beside=None):
    """Return the policy for exactly this evidence, some weaknesses, and what stands beside it."""
    verifier = VERIFIERS[evidence.platform]
    claims = verifier.verify(
        evidence, anchors=vendor.anchors, now=now or vendor.now, steps=Steps(verifier.STEPS)
    )
    shown = replace(claims, weaknesses=claims.weaknesses | tolerate)
    return draft_policy([shown] if beside is None else [beside, shown])


class Service:
    """Answers by address, and takes down what it was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.down = False

    def __call__(self, request):
        self.asked.append(request.url)
        if self.down:
            msg = f"{request.origin}: no answer"
            raise ConnectionFailed(msg)
        answer = self.answers.get(request.url)
        if callable(answer):
            answer = answer(request)
        if answer is None:
            msg = f"{request.origin}: expected HTTP 200, came 404"
            raise EndorsementError(msg)
        return answer


class AMD(Service):
    """AMD's Key Distribution Service for one chip."""

    def __init__(self, vendor, evidence, *, issued_at=None, leaf=None):
        super().__init__()
        report = parse_report(evidence.body)
        kind = VLEK if report.signing_key == VLEK else VCEK
        chain = [vendor._issuers[kind], vendor.root]
        place = next(p for p in kds.urls(report) if p.product == vendor._product.name)
        leaf = leaf or vendor.certify(issued_at=issued_at)
        self.answers = {
            place.leaf: Answer(der(leaf), {}),
            place.chain: Answer(b"".join(c.public_bytes(Encoding.PEM) for c in chain), {}),
            place.crl: Answer(vendor.revocation_list(issued_at=issued_at), {}),
        }
        self.leaf, self.chain, self.crl = place.leaf, place.chain, place.crl


class Intel(Service):
    """Intel's Provisioning Certification Service for the platform of some evidence."""

    def __init__(self, evidence, *, in_hex=False):
        super().__init__()
        self.urls = urls_for(parse_quote(evidence.body))
        self.answers = dict(
            zip(
                self.urls.values(),
                self.split(evidence.attachments["collateral"], in_hex).values(),
                strict=True,
            )
        )

    def split(self, collateral, in_hex):
        """Return the four answers in the collateral, by the names of `urls_for`."""
        held = json.loads(collateral)

        def signed(member, name):
            text = f'{{"{member}":{held[name]},"signature":"{held[f"{name}_signature"]}"}}'
            return text.encode()

        def chain(name):
            return quote(held[name])

        def crl(name):
            return held[name].encode() if in_hex else bytes.fromhex(held[name])

        return {
            "tcb_info": Answer(
                signed("tcbInfo", "tcb_info"),
                {"TCB-Info-Issuer-Chain": chain("tcb_info_issuer_chain")},
            ),
            "qe_identity": Answer(
                signed("enclaveIdentity", "qe_identity"),
                {"SGX-Enclave-Identity-Issuer-Chain": chain("qe_identity_issuer_chain")},
            ),
            "pck_crl": Answer(
                crl("pck_crl"), {"SGX-PCK-CRL-Issuer-Chain": chain("pck_crl_issuer_chain")}
            ),
            "root_ca_crl": Answer(crl("root_ca_crl"), {}),
        }


class NVIDIA(Service):
    """NVIDIA's services of reference measurements and of revocations."""

    RIM = "https://rim.attestation.nvidia.com/v1/rim"
    OCSP = "https://ocsp.ndis.nvidia.com"

    def __init__(self, evidence):
        super().__init__()
        held = evidence.attachments
        self._responses = {
            response.responses_serials: response.data for response in _split_ocsp(held["ocsp"])
        }
        driver = {"rim": base64.b64encode(held["rim_driver"]).decode()}
        self.driver = f"{self.RIM}/NV_GPU_DRIVER_GH100_550.90.07"
        self.answers = {
            self.driver: Answer(json.dumps(driver).encode(), {}),
            self.OCSP: self._respond,
        }

    def _respond(self, request):
        serial = ocsp.load_der_ocsp_request(request.body).serial_number
        found = self._responses.get(serial)
        return None if found is None else Answer(found, {})


class _Response:
    def __init__(self, response):
        self.responses_serials = response.serial_number
        self.data = response.public_bytes(Encoding.DER)


def _split_ocsp(data):
    return [_Response(response) for response in parse_responses(data)]
