"""SEV-SNP and TDX through a stand-in for the kernel's configfs-tsm, verified to the end."""

import errno
from contextlib import contextmanager
from dataclasses import replace

import pytest

from blindai.attestation import wire
from blindai.attestation.certs import parse_certificates
from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attestation.steps import Steps
from blindai.attesters import Machine, create_attester
from blindai.attesters.tsm import TsmAttester, probe
from blindai.errors import AppraisalError, ConfigurationError, EvidenceError, Overloaded
from blindai.platforms import VERIFIERS
from blindai.server.config import ServerConfig
from blindai.server.identity import Identity
from blindai.testing.fake_dcap import FakeIntelTDX
from blindai.testing.fake_sev_snp import FakeAMD, pack_certificate_table
from blindai.verify import verify
from tests.attesters import tsmfs

BINDING = bytes(range(32))
NONCE = b"\x42" * 32

pytestmark = pytest.mark.skipif(
    bool(tsmfs.missing()), reason=f"no FUSE: {tsmfs.missing()} is missing"
)


class SnpKernel(tsmfs.FakeTsm):
    """A kernel in an SEV-SNP guest of a fake AMD."""

    def __init__(self, *, table=True, floor=0):
        super().__init__("sev_guest", self.report, floor)
        self.vendor = FakeAMD()
        leaf = self.vendor.certify()
        chain = [leaf, *self._issuers()]
        self.table = pack_certificate_table(chain) if table else bytes(24)
        self.leaf = leaf

    def _issuers(self):
        return parse_certificates(self.vendor.attest(bytes(64)).attachments["certificates"])[1:]

    def report(self, inblob, level):
        fields = {0x30: level.to_bytes(4, "little")}
        return self.vendor.attest(inblob, fields=fields, leaf=self.leaf).body, self.table


class TdxKernel(tsmfs.FakeTsm):
    """A kernel in a TDX domain of a fake Intel."""

    def __init__(self):
        super().__init__("tdx_guest", self.report, None)
        self.vendor = FakeIntelTDX()

    def report(self, inblob, level):
        evidence = self.vendor.attest(inblob)
        self.collateral = evidence.attachments["collateral"]
        return evidence.body, b""


@contextmanager
def booted(kernel, tmp_path):
    """Mount the kernel's files below `tmp_path`."""
    machine = Machine(root=tmp_path)
    with tsmfs.mounted(kernel, machine.tsm):
        yield machine


def claims_of(evidence, vendor):
    module = VERIFIERS[evidence.platform]
    return module.verify(
        evidence, anchors=vendor.anchors, now=vendor.now, steps=Steps(module.STEPS)
    )


def attester_of(machine, platform=Platform.SEV_SNP, **more):
    return TsmAttester(platform, machine, sleep=lambda _: None, **more)


def test_snp_end_to_end(tmp_path):
    """A server in an SEV-SNP guest is accepted by the client's verify, and by nonce."""
    kernel = SnpKernel()
    with booted(kernel, tmp_path) as machine:
        attester = create_attester("sev-snp", machine)
        config = ServerConfig(platform=Platform.SEV_SNP)
        identity = Identity.create(attester, config, now=kernel.vendor.now)
        bundle = wire.parse_bundle(wire.dump_bundle(identity.attest(NONCE)))
    anchors = {Platform.SEV_SNP: kernel.vendor.anchors}
    measurement = {"measurement": (Pattern(b"\x5a" * 48),)}
    block = Acceptance(Platform.SEV_SNP, measurement, tolerate=frozenset({"no-revocation-list"}))
    result = verify(
        bundle, Policy(accept=(block,)), nonce=NONCE, now=kernel.vendor.now, anchors=anchors
    )
    assert result.platform is Platform.SEV_SNP
    assert not result.simulated
    other = replace(block, measurements={"measurement": (Pattern(b"\x5b" * 48),)})
    with pytest.raises(AppraisalError, match=r"measurements\.measurement"):
        verify(bundle, Policy(accept=(other,)), nonce=NONCE, now=kernel.vendor.now, anchors=anchors)


def test_tdx_end_to_end(tmp_path):
    """A server in a TDX domain is accepted once Intel's statements are beside its quote."""
    kernel = TdxKernel()
    with booted(kernel, tmp_path) as machine:
        attester = create_attester("tdx", machine)
        identity = Identity.create(
            attester, ServerConfig(platform=Platform.TDX), now=kernel.vendor.now
        )
        bundle = identity.attest(NONCE)
    assert bundle.evidence.attachments == {}
    claims = claims_of(
        replace(bundle.evidence, attachments={"collateral": kernel.collateral}), kernel.vendor
    )
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrseam")
    block = Acceptance(
        Platform.TDX,
        {name: (Pattern(claims.measurements[name]),) for name in names},
        tolerate=claims.weaknesses,
    )
    evidence = replace(bundle.evidence, attachments={"collateral": kernel.collateral})
    result = verify(
        replace(bundle, evidence=evidence),
        Policy(accept=(block,)),
        nonce=NONCE,
        now=kernel.vendor.now,
        anchors={Platform.TDX: kernel.vendor.anchors},
    )
    assert result.platform is Platform.TDX


def test_entries_are_removed(tmp_path):
    """However an attempt ends, no entry stays."""
    kernel = SnpKernel()
    with booted(kernel, tmp_path) as machine:
        attester_of(machine).attest(BINDING)
        kernel.fail = {"outblob": [errno.EIO]}
        with pytest.raises(ConfigurationError, match="sev-snp report: Input/output error"):
            attester_of(machine).attest(BINDING)
        assert kernel.made == 2
        assert kernel.entries == {}


def test_report_without_certificates(tmp_path):
    """A host that hands out no certificates leaves an empty table, which is not attached."""
    kernel = SnpKernel(table=False)
    with booted(kernel, tmp_path) as machine:
        assert attester_of(machine).attest(BINDING).attachments == {}


@pytest.mark.parametrize(("level", "found"), [(None, 1), (1, 1), (3, 3)])
def test_privilege_level(tmp_path, level, found):
    """A report is of the level that was asked for, else of the most privileged allowed."""
    kernel = SnpKernel(floor=1)
    with booted(kernel, tmp_path) as machine:
        evidence = attester_of(machine, privilege_level=level).attest(BINDING)
    assert int.from_bytes(evidence.body[0x30:0x34], "little") == found


def test_privilege_level_beyond_the_kernels(tmp_path):
    """A level that the kernel may not ask for is refused."""
    kernel = SnpKernel(floor=2)
    with (
        booted(kernel, tmp_path) as machine,
        pytest.raises(ConfigurationError, match="Invalid argument"),
    ):
        attester_of(machine, privilege_level=0).attest(BINDING)


def test_interfering_writer(tmp_path):
    """A report is thrown away if somebody else wrote to the entry, and asked for again."""
    kernel = SnpKernel()
    left = [1, 1]

    def interfere(entry):
        if left:
            entry["inblob"] = b"\xee" * 64
            entry["generation"] += left.pop()

    kernel.before_report = interfere
    with booted(kernel, tmp_path) as machine:
        evidence = attester_of(machine).attest(BINDING)
        assert claims_of(evidence, kernel.vendor).report_data == BINDING + bytes(32)
        assert kernel.made == 3
        assert kernel.entries == {}


def test_writer_that_never_stops(tmp_path):
    """Against a writer that always interferes the attempts are bounded."""
    kernel = SnpKernel()

    def interfere(entry):
        entry["generation"] += 1

    kernel.before_report = interfere
    with (
        booted(kernel, tmp_path) as machine,
        pytest.raises(Overloaded, match="4 attempts: another process writes"),
    ):
        attester_of(machine).attest(BINDING)
    assert kernel.made == 4
    assert kernel.entries == {}


def test_entry_removed_by_another(tmp_path):
    """An entry that vanishes in between is made again."""
    kernel = SnpKernel()
    left = [1]

    def remove(_):
        if left:
            left.pop()
            kernel.entries.clear()

    kernel.before_report = remove
    with booted(kernel, tmp_path) as machine:
        evidence = attester_of(machine).attest(BINDING)
    assert claims_of(evidence, kernel.vendor).report_data[:32] == BINDING
    assert kernel.made == 2


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ETIMEDOUT, errno.EAGAIN])
def test_busy_host(tmp_path, number):
    """A host that is busy is asked again; the waits between the attempts grow."""
    kernel = SnpKernel()
    slept = []
    with booted(kernel, tmp_path) as machine:
        attester = TsmAttester(Platform.SEV_SNP, machine, sleep=slept.append)
        kernel.fail = {"outblob": [number] * 3}
        attester.attest(BINDING)
        assert slept == sorted(slept)
        assert len(slept) == 3
        kernel.fail = {"outblob": [number] * 4}
        with pytest.raises(Overloaded, match="no sev-snp report"):
            attester.attest(BINDING)


def test_no_tee(tmp_path):
    """A kernel that has the interface but no provider answers ENXIO: no TEE."""
    kernel = SnpKernel()
    kernel.fail = {"mkdir": [errno.ENXIO] * 2}
    with booted(kernel, tmp_path) as machine:
        with pytest.raises(ConfigurationError, match="no TEE"):
            attester_of(machine).attest(BINDING)
        finding = probe(Platform.SEV_SNP, machine)
    assert not finding.available
    assert "no TEE" in finding.found


def test_another_tee(tmp_path):
    """In a TDX domain no SEV-SNP report is to be had, and the error names both."""
    with (
        booted(TdxKernel(), tmp_path) as machine,
        pytest.raises(ConfigurationError, match="provider sev_guest, found 'tdx_guest'"),
    ):
        attester_of(machine).attest(BINDING)


def test_plain_folder(tmp_path):
    """A folder that is no configfs-tsm, and no folder at all, are told apart from a TEE."""
    machine = Machine(root=tmp_path)
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        attester_of(machine).attest(BINDING)
    machine.tsm.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="no configfs-tsm"):
        attester_of(machine).attest(BINDING)
    assert list(machine.tsm.iterdir()) == []


@pytest.mark.parametrize(
    ("outblob", "message"), [(b"", "empty"), (b"x" * (32 << 10) + b"x", "more than the 32768")]
)
def test_strange_report(tmp_path, outblob, message):
    """An empty report, and one beyond all bounds, are refused."""
    kernel = tsmfs.FakeTsm("sev_guest", lambda *_: (outblob, b""))
    with booted(kernel, tmp_path) as machine, pytest.raises(EvidenceError, match=message):
        attester_of(machine).attest(BINDING)
    assert kernel.entries == {}


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        TsmAttester(Platform.TDX).attest(bytes(size))


def test_sealing_keys(tmp_path):
    """TDX has no sealing key; SEV-SNP has none without the device that derives it."""
    machine = Machine(root=tmp_path)
    assert TsmAttester(Platform.TDX, machine).sealing_key() is None
    assert TsmAttester(Platform.SEV_SNP, machine).sealing_key() is None


@pytest.mark.parametrize("kernel", [SnpKernel, TdxKernel])
def test_probe(tmp_path, kernel):
    """A look at the interface finds the TEE, and its firmware's version."""
    running = kernel()
    platform = running.vendor.platform
    with booted(running, tmp_path) as machine:
        finding = probe(platform, machine)
    assert finding.available
    assert finding.found == f"provider {running.provider}"
    name = "reported TCB" if platform is Platform.SEV_SNP else "TDX module TCB"
    assert bytes.fromhex(finding.details[name])
