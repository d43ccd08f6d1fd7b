"""The Nitro attester, over an ioctl that behaves as the kernel's driver does."""

import ctypes
import errno
import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Platform
from blindai.attestation.steps import Steps
from blindai.attesters import Machine, create_attester
from blindai.attesters.nitro import MAX_RESPONSE, NSM_IOCTL_RAW, NitroAttester, probe
from blindai.errors import ConfigurationError, EvidenceError
from blindai.platforms import nitro
from blindai.testing.fake_nitro import FakeNitro

BINDING = bytes(range(32))
DESCRIPTION = {
    "version_major": 1,
    "version_minor": 2,
    "version_patch": 3,
    "module_id": "i-1",
    "max_pcrs": 32,
    "locked_pcrs": [0, 1, 2],
    "digest": "SHA384",
}


class FakeNsm:
    """Answers requests as the driver does: reads and writes the process's own memory."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []

    def __call__(self, descriptor, number, message):
        assert number == 0xC0200A00
        request, size, response, room = struct.unpack("=QQQQ", message)
        assert room == MAX_RESPONSE
        self.requests.append(cbor2.loads(ctypes.string_at(request, size)))
        content = self.answer(self.requests[-1])
        ctypes.memmove(response, content[:room], min(len(content), room))
        message[24:32] = struct.pack("=Q", len(content))
        return 0


def hypervisor(vendor):
    def answer(request):
        if request == "DescribeNSM":
            return cbor2.dumps({"DescribeNSM": DESCRIPTION})
        body = vendor.attest(request["Attestation"]["user_data"]).body
        return cbor2.dumps({"Attestation": {"document": body}})

    return answer


@pytest.fixture
def machine(tmp_path):
    """A machine with a device file."""
    found = Machine(root=tmp_path)
    found.nsm.parent.mkdir()
    found.nsm.touch()
    return found


def test_number_of_the_ioctl():
    """The number is what the kernel's macro gives: direction, size, magic, number."""
    assert NSM_IOCTL_RAW == 0xC0200A00


def test_attest(machine):
    """The document verifies, and carries the binding as its user data."""
    vendor = FakeNitro()
    nsm = FakeNsm(hypervisor(vendor))
    evidence = NitroAttester(machine, ioctl=nsm).attest(BINDING)
    claims = nitro.verify(
        evidence, anchors=vendor.anchors, now=vendor.now, steps=Steps(nitro.STEPS)
    )
    assert claims.report_data == BINDING
    assert nsm.requests == [
        {"Attestation": {"user_data": BINDING, "nonce": None, "public_key": None}}
    ]


def test_no_sealing_key(machine):
    """The module derives no keys."""
    assert NitroAttester(machine).sealing_key() is None


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        NitroAttester().attest(bytes(size))


def test_another_binding(machine):
    """A document with other data than was asked for is not passed on."""
    body = FakeNitro().attest(bytes(32)).body
    nsm = FakeNsm(lambda _: cbor2.dumps({"Attestation": {"document": body}}))
    with pytest.raises(EvidenceError, match="other data than was asked for"):
        NitroAttester(machine, ioctl=nsm).attest(BINDING)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "ends early"),
        (b"\xff" * 100, "NSM response"),
        (b"\xa1" + b"\x00" * 20, "NSM response"),
        (b"x" * (MAX_RESPONSE + 1), f"says {MAX_RESPONSE + 1} bytes"),
        (cbor2.dumps({"Error": "InvalidArgument"}), "refuses Attestation: InvalidArgument"),
        (cbor2.dumps({"Error": "x" * 5000}), "refuses Attestation: x{64}$"),
        (cbor2.dumps({"DescribeNSM": {}}), "expected an answer to Attestation"),
        (cbor2.dumps(["Attestation"]), "expected an answer to Attestation"),
        (cbor2.dumps({"Attestation": 1}), "expected an answer to Attestation"),
        (cbor2.dumps({"Attestation": {}}), "no document"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "no document"),
        (cbor2.dumps({"Attestation": {"document": b"garbage"}}), "Nitro document"),
    ],
)
def test_garbage(machine, answer, message):
    """Whatever the module returns but a document is a clear error."""
    with pytest.raises(EvidenceError, match=message):
        NitroAttester(machine, ioctl=FakeNsm(lambda _: answer)).attest(BINDING)


@given(answer=st.binary(max_size=200))
def test_any_answer(answer, tmp_path_factory):
    """No answer at all makes anything else than an EvidenceError."""
    found = Machine(root=tmp_path_factory.mktemp("nsm"))
    found.nsm.parent.mkdir()
    found.nsm.touch()
    with pytest.raises(EvidenceError):
        NitroAttester(found, ioctl=FakeNsm(lambda _: answer)).attest(BINDING)


def test_no_device(tmp_path):
    """Outside of an enclave there is no device."""
    with pytest.raises(ConfigurationError, match="dev/nsm: No such file or directory"):
        create_attester("nitro", Machine(root=tmp_path)).attest(BINDING)


def test_no_permission(machine):
    """The ioctl needs a capability; the error names the device and the user."""

    def denied(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with pytest.raises(ConfigurationError, match=r"dev/nsm: Operation not permitted \(this"):
        NitroAttester(machine, ioctl=denied).attest(BINDING)


def test_describe(machine):
    """The module says its version."""
    attester = NitroAttester(machine, ioctl=FakeNsm(hypervisor(FakeNitro())))
    assert attester.describe() == {"NSM version": "1.2.3", "module id": "i-1"}


def test_probe(machine, tmp_path):
    """A file that is no Nitro device does not count as one."""
    finding = probe(machine)
    assert (finding.platform, finding.available) == (Platform.NITRO, False)
    assert "Inappropriate ioctl" in finding.found
    machine.nsm.unlink()
    assert probe(machine).found == "no such device"
