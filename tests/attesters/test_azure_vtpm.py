"""The Azure attester: a software TPM that holds what a paravisor would put there."""

import base64
import hashlib
import json
import struct
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.steps import Steps
from blindai.attesters import Machine, create_attester
from blindai.attesters.azure_vtpm import (
    ATTESTATION_KEY,
    HCL_REPORT,
    AzureAttester,
    fetch_td_quote,
    probe,
)
from blindai.errors import ConfigurationError, EvidenceError, Overloaded
from blindai.platforms import azure
from blindai.platforms.azure import SNP_REPORT, TDX_REPORT
from blindai.testing.fake_dcap import FakeIntelTDX
from blindai.testing.fake_sev_snp import FakeAMD
from tests.attesters.swtpm import tss

BINDING = bytes(range(32))


def make_key(tpm):
    """Make the attestation key that the paravisor makes, and return its runtime data."""
    attributes = tss.TPMA_OBJECT
    with tpm.esapi() as esapi:
        key, public, *_ = esapi.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(),
            tss.TPM2B_PUBLIC.parse(
                "rsa2048:rsassa-sha256:null",
                objectAttributes=attributes.FIXEDTPM
                | attributes.FIXEDPARENT
                | attributes.SENSITIVEDATAORIGIN
                | attributes.USERWITHAUTH
                | attributes.RESTRICTED
                | attributes.SIGN_ENCRYPT,
            ),
        )
        esapi.evict_control(tss.ESYS_TR.OWNER, key, ATTESTATION_KEY)
        esapi.flush_context(key)
    modulus = base64.urlsafe_b64encode(bytes(public.publicArea.unique.rsa)).decode().rstrip("=")
    return json.dumps(
        {"keys": [{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": modulus}]}
    ).encode()


def store(tpm, kind, hardware_report, runtime_data):
    """Write an HCL report to the NV index, with zeros behind it."""
    hardware_report = hardware_report.ljust(1184, b"\0")
    runtime = struct.pack("<IIIII", 20 + len(runtime_data), 1, kind, 1, len(runtime_data))
    size = 32 + len(hardware_report) + len(runtime) + len(runtime_data)
    report = struct.pack("<4sIIIIIQ", b"HCLA", 2, size, 2, 0, 0, 0)
    report += hardware_report + runtime + runtime_data
    report = report.ljust(2000, b"\0")
    public = tss.TPM2B_NV_PUBLIC(
        nvPublic=tss.TPMS_NV_PUBLIC(
            nvIndex=HCL_REPORT,
            nameAlg=tss.TPM2_ALG.SHA256,
            attributes=tss.TPMA_NV.OWNERWRITE | tss.TPMA_NV.OWNERREAD,
            dataSize=len(report),
        )
    )
    with tpm.esapi() as esapi:
        index = esapi.nv_define_space(b"", public)
        for start in range(0, len(report), 1000):
            part = report[start : start + 1000]
            esapi.nv_write(index, part, start, auth_handle=tss.ESYS_TR.OWNER)


@pytest.fixture
def amd(tpm):
    """Make the TPM one of an Azure VM that SEV-SNP protects, and return AMD."""
    vendor = FakeAMD()
    runtime_data = make_key(tpm)
    body = vendor.attest(hashlib.sha256(runtime_data).digest()).body
    store(tpm, SNP_REPORT, body, runtime_data)
    return vendor


def machine_of(tpm, tmp_path):
    return Machine(root=tmp_path, tpm=tpm.tcti)


def claims_of(evidence, vendor):
    return azure.verify(evidence, anchors=vendor.anchors, now=vendor.now, steps=Steps(azure.STEPS))


def test_attest_on_snp(tpm, amd, tmp_path):
    """With AMD's certificates beside it the evidence verifies, from the chip to the binding."""
    evidence = create_attester("azure-vtpm", machine_of(tpm, tmp_path)).attest(BINDING)
    endorsed = replace(
        evidence, attachments={**evidence.attachments, **amd.attest(bytes(32)).attachments}
    )
    claims = claims_of(endorsed, amd)
    assert claims.platform is Platform.AZURE_VTPM
    assert claims.report_data == BINDING
    assert claims.measurements["measurement"] == b"\x5a" * 48
    assert "pcr9" in claims.measurements
    assert claims.weaknesses == frozenset()


def test_attest_on_tdx(tpm, tmp_path):
    """The TDREPORT is exchanged for a quote once, and the evidence verifies."""
    vendor = FakeIntelTDX()
    runtime_data = make_key(tpm)
    td_report = bytes(range(256)) * 4
    store(tpm, TDX_REPORT, td_report, runtime_data)
    genuine = vendor.attest(hashlib.sha256(runtime_data).digest())
    asked = []

    def fetch(report):
        asked.append(report)
        return genuine.body

    attester = AzureAttester(machine_of(tpm, tmp_path), fetch_quote=fetch)
    attester.attest(bytes(32))
    evidence = attester.attest(BINDING)
    assert asked == [td_report]
    endorsed = replace(evidence, attachments={**evidence.attachments, **genuine.attachments})
    assert claims_of(endorsed, vendor).report_data == BINDING


def test_quoting_service_that_returns_no_quote(tpm, tmp_path):
    """Garbage for a TDX quote is refused, and asked for again the next time."""
    store(tpm, TDX_REPORT, bytes(1024), make_key(tpm))
    asked = []

    def fetch(report):
        asked.append(report)
        return b"garbage"

    attester = AzureAttester(machine_of(tpm, tmp_path), fetch_quote=fetch)
    for _ in range(2):
        with pytest.raises(EvidenceError, match="quote"):
            attester.attest(BINDING)
    assert len(asked) == 2


def test_plain_tpm(tpm, tmp_path):
    """A TPM without a paravisor's report is no Azure confidential VM."""
    with pytest.raises(ConfigurationError, match="no NV index 0x1400001"):
        AzureAttester(machine_of(tpm, tmp_path)).attest(BINDING)
    finding = probe(machine_of(tpm, tmp_path))
    assert not finding.available
    assert "no Azure confidential VM" in finding.found


def test_no_attestation_key(tpm, tmp_path):
    """A report without the key that it names is said to be so."""
    store(tpm, SNP_REPORT, FakeAMD().attest(bytes(32)).body, b"{}")
    with pytest.raises(ConfigurationError, match="no attestation key at 0x81000003"):
        AzureAttester(machine_of(tpm, tmp_path)).attest(BINDING)


def test_probe(tpm, amd, tmp_path):
    """A paravisor's report is found, and what protects it."""
    finding = probe(machine_of(tpm, tmp_path))
    assert finding.available
    assert "SEV-SNP" in finding.found
    absent = probe(Machine(root=tmp_path))
    assert not absent.available
    assert absent.found == "no such device"


def test_sealing_key(tpm, amd, tmp_path):
    """The vTPM derives a key from its PCRs."""
    attester = AzureAttester(machine_of(tpm, tmp_path))
    key = attester.sealing_key()
    tpm.extend(4)
    assert len(key) == 32
    assert attester.sealing_key() != key


@pytest.fixture
def service():
    """A quoting service on a free port; a test sets its answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.asked.append((self.path, json.loads(body)))
            status, answer = self.server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_fetch_td_quote(service):
    """The report goes out, and the quote comes back, in URL-safe Base64, padded or not."""
    host = f"127.0.0.1:{service.server_port}"
    quote = b"\xfb\xff" * 50
    for padding in ("", "="):
        text = base64.urlsafe_b64encode(quote).decode()
        text = text.rstrip("=") if not padding else text
        service.answer = (200, json.dumps({"quote": text}).encode())
        assert fetch_td_quote(b"\xfb" * 1024, host=host) == quote
    path, question = service.asked[0]
    assert path == "/acc/tdquote"
    assert base64.urlsafe_b64decode(question["report"]) == b"\xfb" * 1024


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (500, b"{}", Overloaded),
        (404, b"", Overloaded),
        (200, b"", EvidenceError),
        (200, b"[]", EvidenceError),
        (200, b'{"quote": 1}', EvidenceError),
        (200, b'{"quote": "\xc3\xa9"}', EvidenceError),
        (200, b"[" * 60000, EvidenceError),
        (200, b"x" * (1 << 20), EvidenceError),
    ],
)
def test_quoting_service_out_of_order(service, status, answer, error):
    """Whatever the service answers but a quote is a clear error, read with a bound."""
    service.answer = (status, answer)
    with pytest.raises(error, match="quoting service"):
        fetch_td_quote(bytes(1024), host=f"127.0.0.1:{service.server_port}")


def test_no_quoting_service():
    """A service that cannot be reached may be there later."""
    with pytest.raises(Overloaded, match="does not answer"):
        fetch_td_quote(bytes(1024), host="127.0.0.1:1")
