"""The GPU attester, over a library object that behaves as NVIDIA documents NVML."""
# ruff: noqa: N802 - NVIDIA's names

import ctypes

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.steps import Steps
from blindai.attesters import Machine
from blindai.attesters.nvidia_gpu import AttestationReport, GpuCertificate, NvidiaAttester, probe
from blindai.errors import ConfigurationError, EvidenceError, Overloaded
from blindai.platforms import nvidia
from blindai.testing.fake_nvidia import FakeNVIDIA

NONCE = bytes(range(32))


class FakeNvml:
    """NVML with some GPUs of a fake NVIDIA."""

    def __init__(self, gpus, **errors):
        self.gpus = gpus
        self.errors = errors
        self.open = 0
        self.nonce = None
        self.chain = None
        self.size = None

    def nvmlInit_v2(self):
        self.open += 1
        return self.errors.get("init", 0)

    def nvmlShutdown(self):
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, number):
        number._obj.value = len(self.gpus)
        return self.errors.get("count", 0)

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        if index.value >= len(self.gpus):
            return 2
        device._obj.value = 0x1000 + index.value
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = b"570.124.06"
        return 0

    def nvmlDeviceGetConfComputeGpuCertificate(self, device, certificate):
        chain = self.gpus[device.value - 0x1000].attest(NONCE).attachments["chain"]
        chain = chain if self.chain is None else self.chain
        certificate._obj.attestationCertChain[: len(chain)] = chain
        certificate._obj.attestationCertChainSize = len(chain)
        return self.errors.get("certificate", 0)

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device, report):
        gpu = self.gpus[device.value - 0x1000]
        body = gpu.attest(self.nonce or bytes(report._obj.nonce)).body
        report._obj.attestationReport[: len(body)] = body
        report._obj.attestationReportSize = len(body) if self.size is None else self.size
        return self.errors.get("report", 0)


def claims_of(evidence, vendor):
    return nvidia.verify(
        evidence, anchors=vendor.anchors, now=vendor.now, steps=Steps(nvidia.STEPS)
    )


def test_sizes_of_the_structures():
    """The structures are as large as those of the library."""
    assert ctypes.sizeof(AttestationReport) == 3 * 4 + 0x20 + 0x2000 + 0x1000
    assert ctypes.sizeof(GpuCertificate) == 2 * 4 + 0x1000 + 0x1400


def test_attest_device():
    """The report verifies, carries the nonce, and the library is closed again."""
    vendor = FakeNVIDIA()
    library = FakeNvml([vendor])
    evidence = NvidiaAttester(lambda: library).attest_device(NONCE)
    assert evidence.platform is Platform.NVIDIA_GPU
    claims = claims_of(evidence, vendor)
    assert claims.report_data == NONCE
    assert "no-revocation-check" in claims.weaknesses
    assert library.open == 0


def test_several_gpus():
    """Each GPU attests for itself, in the order of the driver."""
    vendor = FakeNVIDIA()
    library = FakeNvml([vendor, vendor.another_chip()])
    first, second = NvidiaAttester(lambda: library).attest_devices(NONCE)
    chips = [claims_of(one, vendor).measurements["chip_id"] for one in (first, second)]
    assert chips[0] != chips[1]


def test_another_nonce():
    """A report with another nonce than was asked for is not passed on."""
    library = FakeNvml([FakeNVIDIA()])
    library.nonce = b"\1" * 32
    with pytest.raises(EvidenceError, match="another nonce"):
        NvidiaAttester(lambda: library).attest_device(NONCE)


@pytest.mark.parametrize("size", [0, 0x2001, 0xFFFFFFFF])
def test_sizes_that_lie(size):
    """A size beyond the buffer is refused before anything is read."""
    library = FakeNvml([FakeNVIDIA()])
    library.size = size
    with pytest.raises(EvidenceError, match="its buffer holds 8192"):
        NvidiaAttester(lambda: library).attest_device(NONCE)


def test_garbage():
    """A cut report, and a chain that is none, are refused."""
    library = FakeNvml([FakeNVIDIA()])
    library.size = 100
    with pytest.raises(EvidenceError, match="NVIDIA report"):
        NvidiaAttester(lambda: library).attest_device(NONCE)
    library.size, library.chain = None, b"garbage"
    with pytest.raises(EvidenceError, match="no certificates"):
        NvidiaAttester(lambda: library).attest_device(NONCE)


@pytest.mark.parametrize(
    ("where", "code", "error", "message"),
    [
        ("init", 9, ConfigurationError, "NVML: refused .NVML error 9"),
        ("report", 3, ConfigurationError, "not in confidential computing mode"),
        ("certificate", 4, ConfigurationError, "no permission"),
        ("report", 19, Overloaded, "the driver is busy"),
        ("report", 999, ConfigurationError, "refused .NVML error 999"),
    ],
)
def test_errors_of_the_library(where, code, error, message):
    """Each error of the library says what was asked, and why it may have failed."""
    library = FakeNvml([FakeNVIDIA()], **{where: code})
    with pytest.raises(error, match=message):
        NvidiaAttester(lambda: library).attest_device(NONCE)


def test_no_such_gpu():
    """An index beyond the last GPU is refused."""
    with pytest.raises(ConfigurationError, match="GPU 0: refused"):
        NvidiaAttester(lambda: FakeNvml([])).attest_device(NONCE)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        NvidiaAttester(lambda: FakeNvml([])).attest_device(bytes(size))


def test_probe():
    """A GPU that attests is found, with the driver's version; one that does not is not."""
    finding = probe(Machine(), lambda: FakeNvml([FakeNVIDIA()]))
    assert finding.available
    assert finding.details == {"driver": "570.124.06", "GPUs": "1"}
    for library in (FakeNvml([]), FakeNvml([FakeNVIDIA()], report=3)):
        finding = probe(Machine(), lambda library=library: library)
        assert not finding.available
        assert "conf-compute" in finding.advice
