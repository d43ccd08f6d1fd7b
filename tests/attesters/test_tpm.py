"""The TPM attester, with a real TPM in software, and the verifier that reads what it makes."""

import struct
import threading
from datetime import UTC, datetime

import pytest

from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.attestation.steps import Steps
from blindai.attesters import Machine, create_attester
from blindai.attesters.tpm import TpmAttester, probe
from blindai.attesters.tpm.attester import PCRS
from blindai.attesters.tpm.device import TpmDevice
from blindai.attesters.tpm.enrolment import Challenge, Enrolment, create_challenge
from blindai.attesters.tpm.keys import ATTESTATION_KEY
from blindai.errors import (
    AppraisalError,
    ConfigurationError,
    EvidenceError,
    Overloaded,
    SignatureError,
)
from blindai.platforms import tpm as verifier
from blindai.platforms.tpm.keys import parse_key
from blindai.server.config import ServerConfig
from blindai.server.identity import Identity
from blindai.testing.fake_tpm import boot_events, make_event_log
from blindai.verify import verify as verify_server
from tests.attesters.swtpm import STARTUP_CLEAR, tss

BINDING = bytes(range(32))
CC_QUOTE, CC_EVICT = 0x158, 0x120


def machine_of(tpm, tmp_path, **more):
    return Machine(root=tmp_path, tpm=tpm.tcti, **more)


def verify(evidence, anchors=()):
    return verifier.verify(
        evidence, anchors=anchors, now=datetime.now(UTC), steps=Steps(verifier.STEPS)
    )


def no_sleep(_):
    return None


def count_loaded(tpm):
    """Return the numbers of transient objects and of loaded sessions."""
    with tpm.esapi() as esapi:
        counts = []
        for first in (0x80000000, 0x02000000):
            _, found = esapi.get_capability(tss.TPM2_CAP.HANDLES, first, 16)
            counts.append(len(found.data.handles))
        return tuple(counts)


def test_attest(tpm, tmp_path):
    """The quote verifies, carries the binding, and claims every PCR; the key is not certified."""
    attester = create_attester("tpm", machine_of(tpm, tmp_path))
    assert attester.platform is Platform.TPM
    claims = verify(attester.attest(BINDING))
    assert claims.report_data == BINDING
    assert {f"pcr{i}" for i in PCRS["sha256"]} < set(claims.measurements)
    assert claims.weaknesses == {"memory-not-encrypted", "ak-not-certified"}


def test_policy_over_registers(tpm, tmp_path):
    """A policy of PCRs accepts the server, and refuses it by the PCR that was extended."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    now = datetime.now(UTC)
    identity = Identity.create(attester, ServerConfig(platform=Platform.TPM), now=now)
    tpm.extend(4, b"boot loader")
    tpm.extend(9, b"kernel")
    measured = verify(attester.attest(BINDING)).measurements
    block = Acceptance(
        Platform.TPM,
        {name: (Pattern(measured[name]),) for name in ("pcr4", "pcr9", "ak")},
        tolerate=frozenset({"memory-not-encrypted", "ak-not-certified"}),
    )
    policy = Policy(accept=(block,))
    result = verify_server(identity.attest(BINDING), policy, nonce=BINDING, now=now)
    assert result.platform is Platform.TPM
    tpm.extend(9)
    with pytest.raises(AppraisalError) as caught:
        verify_server(identity.attest(BINDING), policy, nonce=BINDING, now=now)
    assert [one.rule for one in caught.value.mismatches] == ["accept[0].measurements.pcr9"]


def test_attest_twice_with_one_key(tpm, tmp_path):
    """The attestation key stays in the TPM, also over a restart of server and TPM."""
    first = verify(TpmAttester(machine_of(tpm, tmp_path)).attest(BINDING))
    tpm.stop()
    tpm.start()
    second = verify(TpmAttester(machine_of(tpm, tmp_path)).attest(bytes(32)))
    assert first.measurements["ak"] == second.measurements["ak"]
    assert second.report_data == bytes(32)


def test_extended_pcr_is_another_measurement(tpm, tmp_path):
    """What is measured after the first quote shows in the second, in that PCR alone."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    before = verify(attester.attest(BINDING)).measurements
    tpm.extend(9)
    after = verify(attester.attest(BINDING)).measurements
    assert {name for name in before if before[name] != after[name]} == {"pcr9"}


def test_another_tpm_has_another_key(tpm, other_tpm, tmp_path):
    """Two TPMs of one vendor never share an attestation key, or a sealing key."""
    one, two = (TpmAttester(machine_of(t, tmp_path)) for t in (tpm, other_tpm))
    assert one.enrolment().ak_public != two.enrolment().ak_public
    assert one.sealing_key() != two.sealing_key()


def test_enrolment(tpm, vendor, tmp_path):
    """A key that the vendor certified after credential activation has no weakness of its own."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    enrolment = attester.enrolment()
    challenge, secret = create_challenge(enrolment)
    assert attester.answer(challenge) == secret
    certificates = tmp_path / "ak.pem"
    certificates.write_bytes(vendor.certify(parse_key(enrolment.ak_public).public))
    certified = TpmAttester(machine_of(tpm, tmp_path, ak_certificates=certificates))
    claims = verify(certified.attest(BINDING), vendor.anchors)
    assert claims.weaknesses == {"memory-not-encrypted", "no-revocation-list"}
    with pytest.raises(SignatureError):
        verify(certified.attest(BINDING), anchors=())


def test_challenge_of_another_tpm(tpm, other_tpm, tmp_path):
    """A TPM cannot answer for another one."""
    challenge, _ = create_challenge(TpmAttester(machine_of(other_tpm, tmp_path)).enrolment())
    with pytest.raises(ConfigurationError, match="the TPM refuses"):
        TpmAttester(machine_of(tpm, tmp_path)).answer(challenge)
    assert count_loaded(tpm) == (0, 0)


@pytest.mark.parametrize("challenge", [Challenge(b"", b""), Challenge(b"\xff" * 40, b"\0\1x")])
def test_malformed_challenge(tpm, tmp_path, challenge):
    """Garbage from an enroller is a clear error."""
    with pytest.raises(ConfigurationError, match="credential: malformed"):
        TpmAttester(machine_of(tpm, tmp_path)).answer(challenge)


def test_enrolment_needs_the_certificate_of_that_key(tpm, other_tpm, tmp_path):
    """An enroller refuses a missing certificate, another TPM's, and malformed keys."""
    mine, other = (TpmAttester(machine_of(t, tmp_path)).enrolment() for t in (tpm, other_tpm))
    with pytest.raises(EvidenceError, match="no certificate"):
        create_challenge(Enrolment(None, mine.ek_public, mine.ak_public))
    with pytest.raises(SignatureError, match="another endorsement key"):
        create_challenge(Enrolment(other.ek_certificate, mine.ek_public, mine.ak_public))
    with pytest.raises(EvidenceError, match="malformed key"):
        create_challenge(Enrolment(mine.ek_certificate, b"\0\1x", mine.ak_public))
    with pytest.raises(SignatureError, match="no restricted signing key"):
        create_challenge(Enrolment(mine.ek_certificate, mine.ek_public, mine.ek_public))


def test_certificates_that_cannot_be_read(tpm, tmp_path):
    """A wrong path for the certificates is said, not ignored."""
    attester = TpmAttester(machine_of(tpm, tmp_path, ak_certificates=tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match=r"none\.pem: No such file"):
        attester.attest(BINDING)


def test_event_log(tpm, tmp_path):
    """The firmware's log is attached, and explains PCRs that were extended as it says."""
    machine = machine_of(tpm, tmp_path)
    machine.event_log.parent.mkdir(parents=True)
    log = make_event_log(boot_events())
    machine.event_log.write_bytes(log)
    with tpm.esapi() as esapi:
        for pcr, _, content, _ in boot_events():
            esapi.pcr_event(tss.ESYS_TR(pcr), content)
    evidence = TpmAttester(machine).attest(BINDING)
    assert evidence.attachments["event_log"] == log
    claims = verify(evidence)
    assert claims.measurements["secure_boot"] == b"\1"
    assert "event-log-mismatch" not in claims.weaknesses


def test_oversized_event_log(tpm, tmp_path):
    """A log beyond all bounds is refused while it is read."""
    machine = machine_of(tpm, tmp_path)
    machine.event_log.parent.mkdir(parents=True)
    with machine.event_log.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(EvidenceError, match="more than the"):
        TpmAttester(machine).attest(BINDING)


def test_nothing_is_left_in_the_tpm(tpm, tmp_path):
    """After any number of uses no transient object and no session is loaded."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    for _ in range(5):
        attester.attest(BINDING)
        attester.sealing_key()
        challenge, secret = create_challenge(attester.enrolment())
        assert attester.answer(challenge) == secret
    assert count_loaded(tpm) == (0, 0)


def test_threads(tpm, tmp_path):
    """Several threads get each its own evidence."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    found = {}

    def work(number):
        found[number] = verify(attester.attest(bytes([number]) * 32)).report_data

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n: bytes([n]) * 32 for n in range(6)}


def test_sealing_key(tpm, tmp_path):
    """The same code gets the same key after a restart, and none of the old one after a change."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    key = attester.sealing_key()
    assert len(key) == 32
    assert key == TpmAttester(machine_of(tpm, tmp_path)).sealing_key()
    assert key != TpmAttester(machine_of(tpm, tmp_path), pcrs={"sha256": (0,)}).sealing_key()
    tpm.extend(9)
    assert attester.sealing_key() != key
    tpm.stop()
    tpm.start()
    assert attester.sealing_key() == key


def fill(tpm, *, sessions=False):
    """Fill the TPM's slots of objects or sessions, and leave without flushing."""
    full = 0
    with tpm.esapi() as esapi:
        while not full:
            try:
                if sessions:
                    esapi.start_auth_session(
                        tpm_key=tss.ESYS_TR.NONE,
                        bind=tss.ESYS_TR.NONE,
                        session_type=tss.TPM2_SE.POLICY,
                        symmetric=tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL),
                        auth_hash=tss.TPM2_ALG.SHA256,
                    )
                else:
                    esapi.create_primary(tss.TPM2B_SENSITIVE_CREATE(), "ecc256:aes128cfb")
            except tss.TSS2_Exception as error:
                full = error.error
    assert full in {0x902, 0x903, 0x905}


@pytest.mark.parametrize("sessions", [False, True])
def test_full_tpm(tpm, tmp_path, sessions):
    """Where others left no room a new key cannot be made, and the error says what to flush."""
    fill(tpm, sessions=sessions)
    slept = []
    device = TpmDevice(tpm.tcti, sleep=slept.append)
    with pytest.raises(Overloaded, match=r"no room .* tpm2_flushcontext"):
        TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING)
    assert len(slept) == 2


def test_tpm_full_of_sessions_still_quotes(tpm, tmp_path):
    """An attestation key that is there needs no session: evidence goes on."""
    attester = TpmAttester(machine_of(tpm, tmp_path))
    attester.attest(BINDING)
    fill(tpm, sessions=True)
    assert verify(attester.attest(BINDING)).report_data == BINDING


def test_full_tpm_recovers(tpm, tmp_path):
    """Once somebody flushes what filled the TPM, while we wait, evidence is made."""

    def flush(_):
        with tpm.esapi() as esapi:
            _, found = esapi.get_capability(tss.TPM2_CAP.HANDLES, 0x80000000, 16)
            for handle in found.data.handles:
                esapi.flush_context(esapi.tr_from_tpmpublic(handle))

    fill(tpm)
    device = TpmDevice(tpm.tcti, sleep=flush)
    claims = verify(TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING))
    assert claims.report_data == BINDING


def faulty_tcti(tpm, command, fault):
    """Return a TCTI that has `fault` happen once, just before the TPM gets `command`."""
    pending = [fault]

    class FaultyTcti(tss.PyTCTI):
        def __init__(self):
            super().__init__()
            self._inner = tss.TCTILdr.parse(tpm.tcti)

        def do_transmit(self, request):
            if struct.unpack_from(">I", request, 6)[0] == command and pending:
                pending.pop()(self._inner)
            self._inner.transmit(request)

        def do_receive(self, timeout):
            return self._inner.receive(timeout=timeout)

        def do_finalize(self):
            self._inner.close()

    return FaultyTcti


@pytest.mark.parametrize("command", [CC_QUOTE, CC_EVICT])
def test_reset_in_the_middle(tpm, tmp_path, command):
    """A TPM that is reset in mid-quote, or in mid-creation of its key, is asked once more."""
    tpm.extend(9)
    happened = []

    def reset(inner):
        tpm.power_cycle()
        inner.transmit(STARTUP_CLEAR)
        inner.receive()
        happened.append(True)

    device = TpmDevice(faulty_tcti(tpm, command, reset), sleep=no_sleep)
    claims = verify(TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING))
    assert happened == [True]
    assert claims.report_data == BINDING
    assert claims.measurements["pcr9"] == bytes(32)


def test_reset_without_startup(tpm, tmp_path):
    """A TPM that nobody started again after its reset is an error that may pass."""
    device = TpmDevice(faulty_tcti(tpm, CC_QUOTE, lambda _: tpm.power_cycle()), sleep=no_sleep)
    with pytest.raises(Overloaded, match="busy, was reset, or does not answer"):
        TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING)


def test_tpm_that_goes_away(tpm, tmp_path):
    """A TPM that dies in mid-quote and cannot be reached again is a clear error."""
    device = TpmDevice(faulty_tcti(tpm, CC_QUOTE, lambda _: tpm.stop()), sleep=no_sleep)
    with pytest.raises(ConfigurationError, match="the TPM cannot be reached"):
        TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING)


def test_pcr_extended_while_quoting(tpm, tmp_path):
    """PCR values that changed before the quote are read again: they fit what is signed."""

    def extend(inner):
        # TPM2_PCR_Event for PCR 9 with an empty password.
        inner.transmit(
            bytes.fromhex("8002 00000020 0000013c 00000009 00000009 40000009 0000 00 0000")
            + bytes.fromhex("0003 616263")
        )
        assert inner.receive()[6:10] == bytes(4)

    device = TpmDevice(faulty_tcti(tpm, CC_QUOTE, extend), sleep=no_sleep)
    claims = verify(TpmAttester(machine_of(tpm, tmp_path), device=device).attest(BINDING))
    assert claims.measurements["pcr9"] != bytes(32)


def test_unreachable(tmp_path):
    """No TPM, an unknown TCTI, and a port that nobody listens at are settings to change."""
    if tss is None:
        pytest.skip("tpm2-pytss is missing")
    for tcti in (f"device:{tmp_path}/tpm", "nonsense:x=1", "swtpm:host=127.0.0.1,port=1"):
        with pytest.raises(ConfigurationError, match="cannot be reached"):
            TpmAttester(Machine(root=tmp_path, tpm=tcti)).attest(BINDING)


def test_owner_password(tpm, tmp_path):
    """Where the owner has a password, the error says so, and nothing stays loaded."""
    with tpm.esapi() as esapi:
        esapi.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"secret")
    with pytest.raises(ConfigurationError, match="owner or endorsement hierarchy has a password"):
        TpmAttester(machine_of(tpm, tmp_path)).attest(BINDING)
    assert count_loaded(tpm) == (0, 0)


def test_handle_with_another_kind_of_key(tpm, tmp_path):
    """A key of somebody else at our handle is never used, nor evicted."""
    with tpm.esapi() as esapi:
        key, *_ = esapi.create_primary(tss.TPM2B_SENSITIVE_CREATE(), "ecc256:aes128cfb")
        esapi.evict_control(tss.ESYS_TR.OWNER, key, ATTESTATION_KEY)
        esapi.flush_context(key)
    with pytest.raises(ConfigurationError, match="taken by another kind of key"):
        TpmAttester(machine_of(tpm, tmp_path)).attest(BINDING)


def test_bank_that_is_not_active(tpm, tmp_path):
    """A bank that the firmware switched off is said to be so."""
    attester = TpmAttester(machine_of(tpm, tmp_path), pcrs={"sha384": (0, 1)})
    with pytest.raises(ConfigurationError, match="bank sha384 of PCRs is not active"):
        attester.attest(BINDING)


def test_several_banks_and_many_registers(tpm, tmp_path):
    """More PCRs than the TPM reads at once are all claimed."""
    attester = TpmAttester(machine_of(tpm, tmp_path), pcrs={"sha256": tuple(range(24))})
    claims = verify(attester.attest(BINDING))
    assert {f"pcr{i}" for i in range(24)} < set(claims.measurements)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_binding_is_attested(size):
    """Nothing is padded or cut silently."""
    with pytest.raises(ConfigurationError, match="expected 32 bytes"):
        TpmAttester().attest(bytes(size))


def test_probe(tpm, tmp_path):
    """A look at the TPM says who made it, and whether its event log can be read."""
    finding = probe(machine_of(tpm, tmp_path))
    assert finding.available
    assert finding.details["manufacturer"] == "IBM"
    assert finding.details["firmware"].startswith("0x")
    assert "cannot be read" in finding.details["event log"]


def test_probe_without_tpm(tmp_path):
    """Without a device the look says what was looked for, and how to get it."""
    finding = probe(Machine(root=tmp_path))
    assert not finding.available
    assert str(tmp_path / "dev/tpmrm0") in finding.looked_for
    assert finding.found == "no such device"
    assert "vTPM" in finding.advice
