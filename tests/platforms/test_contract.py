"""What holds for every platform, also for one that is added tomorrow.

The tests run over `VERIFIERS`, each with the fake vendor that `blindai.testing.FAKES` names.
Good evidence passes; then, one change each, it does not.
"""

import inspect
import os
import random
import time
from dataclasses import replace
from datetime import timedelta
from functools import cache

import pytest

from blindai.attestation.appraise import appraise
from blindai.attestation.binding import check_report_data
from blindai.attestation.draft import draft_policy
from blindai.attestation.model import DEVICE_PLATFORMS, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AppraisalError, AttestationError, EndorsementError, EvidenceError
from blindai.platforms import VERIFIERS
from blindai.testing import FAKES
from blindai.testing.fake_simulation import FakeSimulation
from blindai.verify import COMMON_STEPS
from tests.servers import Server

REPORT_DATA = bytes(range(1, 33))
MUTANTS = 2_000 if os.environ.get("CI") else 200
MUTANT_SECONDS = 0.05
CENTURY = timedelta(days=36_500)

# Simulation has no hardware and a TPM no debug mode.
NO_DEBUG = {Platform.SIMULATION, Platform.TPM}
# The first has no certificates; those of the second live for hours, so AWS revokes none.
NO_REVOCATION = {Platform.SIMULATION, Platform.NITRO}
# Nothing in simulated evidence expires: its signature proves nothing at any time.
TIMELESS = {Platform.SIMULATION}
# All that a Nitro document needs is in its body.
SELF_CONTAINED = {Platform.NITRO}

every_platform = pytest.mark.parametrize("platform", sorted(VERIFIERS))


@cache
def vendor(platform):
    """Return one fake vendor of a platform."""
    return FAKES[platform]()


@cache
def good(platform):
    """Return good evidence, whose verification takes its time once."""
    return vendor(platform).attest(REPORT_DATA)


def verify(evidence, *, now=None, anchors=None):
    """Verify evidence under its fake vendor's roots; return claims and steps."""
    verifier = VERIFIERS[evidence.platform]
    steps = Steps(verifier.STEPS)
    fake = vendor(evidence.platform)
    claims = verifier.verify(
        evidence,
        anchors=fake.anchors if anchors is None else anchors,
        now=now or fake.now,
        steps=steps,
    )
    return claims, steps.taken


def refused(evidence, **options):
    """Return the error with which evidence is refused; its steps tell where."""
    with pytest.raises(AttestationError) as error:
        verify(evidence, **options)
    statuses = [step.status for step in error.value.steps]
    assert statuses.count("failed") == 1, "the error says at which step"
    failed = statuses.index("failed")
    assert "passed" not in statuses[failed + 1 :]
    return error.value


def samples(ranges, count, seed):
    """Return offsets in `ranges`: each one's ends, and some in between."""
    offsets = [offset for each in ranges for offset in each]
    ends = {each[index] for each in ranges if each for index in (0, -1)}
    chosen = random.Random(seed).sample(offsets, min(count, len(offsets)))
    return sorted(ends | set(chosen))


def test_every_verifier_has_a_fake_vendor():
    """A platform cannot be added without the means to test it."""
    assert set(VERIFIERS) == set(FAKES)
    for platform in FAKES:
        assert vendor(platform).platform is platform


@every_platform
def test_good_evidence(platform):
    """Genuine evidence gives claims in the platform's words, bound to the caller's bytes."""
    claims, steps = verify(good(platform))
    words = VOCABULARY[platform]
    assert claims.platform is platform
    assert set(claims.measurements) <= words.measurements
    assert set(claims.versions) <= words.versions
    assert all(words.knows_weakness(name) for name in claims.weaknesses)
    assert all(isinstance(value, bytes) for value in claims.measurements.values())
    assert all(type(value) is int and value >= 0 for value in claims.versions.values())
    assert any(names <= set(claims.measurements) for names in words.identity) or (
        platform is Platform.SIMULATION
    )
    check_report_data(claims.report_data, REPORT_DATA)
    now = vendor(platform).now
    assert claims.not_after is None or claims.not_after > now
    assert claims.issued_at is None or claims.issued_at.utcoffset() is not None
    assert {step.status for step in steps} <= {"passed", "skipped"}
    assert steps[0].status == "passed"
    assert all(step.detail for step in steps if step.status == "skipped")


@every_platform
def test_steps(platform):
    """Steps have distinct kebab-case names and say in words what is checked."""
    steps = [*VERIFIERS[platform].STEPS, *COMMON_STEPS]
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in names)
    assert all(step.title for step in steps)


@every_platform
def test_the_same_evidence_says_the_same(platform):
    """Verification is pure: nothing is remembered between two runs."""
    assert verify(good(platform))[0] == verify(good(platform))[0]


@every_platform
def test_bound_to_the_report_data(platform):
    """Other bytes attested are other bytes claimed."""
    claims, _ = verify(vendor(platform).attest(bytes(31) + b"\x01"))
    check_report_data(claims.report_data, bytes(31) + b"\x01")


@every_platform
def test_flipped_bits(platform):
    """No signed bit can change."""
    evidence = good(platform)
    ranges = vendor(platform).signed_bytes(evidence)
    assert sum(map(len, ranges)) >= len(REPORT_DATA)
    for offset in samples(ranges, 40, platform):
        body = bytearray(evidence.body)
        body[offset] ^= 1 << offset % 8
        refused(replace(evidence, body=bytes(body)))


@every_platform
def test_truncated_body(platform):
    """No part of the body is taken for the whole, and nothing may follow it."""
    evidence = good(platform)
    for length in samples([range(len(evidence.body))], 40, platform):
        refused(replace(evidence, body=evidence.body[:length]))
    refused(replace(evidence, body=b""))


@every_platform
def test_truncated_attachments(platform):
    """A cut attachment is refused, or changes nothing that the hardware said."""
    evidence = good(platform)
    for name, content in evidence.attachments.items():
        for length in samples([range(len(content))], 12, name):
            attachments = {**evidence.attachments, name: content[:length]}
            refused_or_same(replace(evidence, attachments=attachments))


@every_platform
def test_missing_attachments(platform):
    """Evidence without one of its attachments is refused, or says what it says as before."""
    evidence = good(platform)
    for name in evidence.attachments:
        attachments = {k: v for k, v in evidence.attachments.items() if k != name}
        refused_or_same(replace(evidence, attachments=attachments))
    refused_or_same(replace(evidence, attachments={}))


def refused_or_same(evidence):
    """Check that spoilt evidence is refused by an error of ours, or claims nothing new.

    Where something is missing, claims may be fewer and weaknesses more, never the reverse.
    """
    honest, _ = verify(good(evidence.platform))
    try:
        claims, _ = verify(evidence)
    except AttestationError:
        return
    assert claims.report_data == honest.report_data
    assert claims.measurements.items() <= honest.measurements.items()
    assert claims.versions.items() <= honest.versions.items()
    assert claims.weaknesses >= honest.weaknesses


@every_platform
def test_wrong_root(platform):
    """Evidence under another root, the real vendor's included, is not genuine."""
    stranger = FAKES[platform]()
    for anchors in ((), VENDOR_ROOTS[platform], stranger.anchors):
        refused(good(platform), anchors=anchors)
    verify(stranger.attest(REPORT_DATA), anchors=stranger.anchors)


@pytest.mark.parametrize("platform", sorted(set(VERIFIERS) - SELF_CONTAINED))
def test_evidence_of_two_machines(platform):
    """The body of one machine with the attachments of another is refused."""
    other = FAKES[platform]().attest(REPORT_DATA)
    refused(replace(good(platform), attachments=other.attachments))


@pytest.mark.parametrize("platform", sorted(set(VERIFIERS) - TIMELESS))
def test_time(platform):
    """Outside the time in which certificates hold, nothing is endorsed."""
    now = vendor(platform).now
    before, after = refused(good(platform), now=now - CENTURY), None
    assert isinstance(before, EndorsementError)
    try:
        claims, _ = verify(good(platform), now=now + CENTURY)
    except AttestationError as error:
        after = error
    assert (
        isinstance(after, EndorsementError)
        or claims.weaknesses > verify(good(platform))[0].weaknesses
    )


@pytest.mark.parametrize("platform", sorted(set(VERIFIERS) - NO_REVOCATION))
def test_revoked(platform):
    """What the vendor revoked is refused as revoked, not as forged."""
    evidence = vendor(platform).attest(REPORT_DATA, revoked=True)
    assert isinstance(refused(evidence), EndorsementError)


@pytest.mark.parametrize("platform", sorted(set(VERIFIERS) - NO_DEBUG))
def test_debug(platform):
    """Debug mode is a weakness that a policy has to tolerate by name, or is refused."""
    try:
        claims, _ = verify(vendor(platform).attest(REPORT_DATA, debug=True))
    except AttestationError:
        return
    assert "debug" in claims.weaknesses
    normal = verify(good(platform))[0]
    assert "debug" not in normal.weaknesses


@pytest.mark.parametrize("platform", sorted(NO_DEBUG | NO_REVOCATION))
def test_exceptions_are_real(platform):
    """A platform is left out of a test only while its vendor cannot make that evidence."""
    parameters = inspect.signature(vendor(platform).attest).parameters
    assert ("debug" not in parameters) == (platform in NO_DEBUG)
    assert ("revoked" not in parameters) == (platform in NO_REVOCATION)
    assert (not good(platform).attachments) == (platform in SELF_CONTAINED)


@every_platform
def test_other_platforms_evidence(platform):
    """Evidence of one platform under another's name is refused."""
    for other in VERIFIERS:
        if other is not platform:
            refused(replace(good(other), platform=platform))


@every_platform
def test_drafted_policy(platform):
    """The policy that is drafted from claims accepts them, and no others."""
    claims, _ = verify(good(platform))
    if platform in DEVICE_PLATFORMS:
        machine = verify(good(Platform.SEV_SNP))[0]
        policy = draft_policy([machine, claims])
        appraise(machine, policy, now=vendor(platform).now, devices=[claims])
        return
    policy = draft_policy([claims])
    appraise(claims, policy, now=vendor(platform).now)
    with pytest.raises(AppraisalError):
        appraise(
            replace(claims, weaknesses=claims.weaknesses | {"found next year"}),
            policy,
            now=vendor(platform).now,
        )


@pytest.mark.parametrize("platform", sorted(set(VERIFIERS) - DEVICE_PLATFORMS))
def test_a_server_of_this_platform(platform):
    """The whole verification accepts a server on such a machine."""
    server = Server(vendor(platform))
    policy = draft_policy([verify(good(platform))[0]])
    result = server.verify(policy=policy)
    assert result.platform is platform
    assert result.simulated is (platform is Platform.SIMULATION)
    assert result.not_after > server.now
    assert [step.name for step in result.steps] == [
        step.name for step in [*VERIFIERS[platform].STEPS, *COMMON_STEPS]
    ]


@pytest.mark.parametrize("platform", sorted(DEVICE_PLATFORMS))
def test_a_device_alone_is_no_server(platform):
    """A device signs any nonce for anybody: with one, the host could pose as the server."""
    device = vendor(platform)
    host = Server(device)
    policy = draft_policy([verify(good(Platform.SEV_SNP))[0], verify(good(platform))[0]])
    with pytest.raises(EvidenceError, match="cannot vouch for a server's keys"):
        host.verify(policy=policy)


@pytest.mark.parametrize("platform", sorted(DEVICE_PLATFORMS))
def test_a_device_beside_a_machine(platform):
    """The same device, beside a machine that vouches for the keys, is accepted."""
    device, machine = vendor(platform), Server(vendor(Platform.SEV_SNP))
    policy = draft_policy([verify(good(Platform.SEV_SNP))[0], verify(good(platform))[0]])
    result = machine.verify(policy=policy, devices=[device])
    assert [claims.platform for claims in result.devices] == [platform]
    bundle = machine.bundle(devices=[device])
    replayed = replace(bundle, devices=(good(platform),))
    with pytest.raises(AttestationError):
        machine.verify(replayed, policy, devices=[device])


@every_platform
def test_mutants(platform):
    """Random damage anywhere is refused by an error of ours, or changes no claim; and quickly."""
    evidence = good(platform)
    chance = random.Random(f"mutants of {platform}")
    for _ in range(MUTANTS):
        mutant = mutate(evidence, chance)
        took = []
        while not took or (took[-1] > MUTANT_SECONDS and len(took) < 4):  # two busy cores
            start = time.process_time()
            refused_or_same_claims(mutant, evidence)
            took.append(time.process_time() - start)
        assert min(took) < MUTANT_SECONDS


def refused_or_same_claims(mutant, evidence):
    """Check that damaged evidence is refused, or says nothing that the hardware did not."""
    try:
        claims, _ = verify(mutant)
    except AttestationError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.steps
        return
    honest, _ = verify_once(evidence.platform)
    assert claims.report_data == honest.report_data
    assert claims.measurements.items() <= honest.measurements.items()
    assert claims.weaknesses >= honest.weaknesses


@cache
def verify_once(platform):
    """Return what good evidence of a platform says."""
    return verify(good(platform))


def mutate(evidence: Evidence, chance: random.Random) -> Evidence:
    """Return evidence with some bytes of one part changed, cut out, doubled or made up."""
    parts = {None: evidence.body, **evidence.attachments}
    name = chance.choice(list(parts))
    part = bytearray(parts[name])
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at = chance.randrange(len(part) + 1)
        size = chance.choice([1, 1, 1, 2, 4, 16])
        fresh = chance.choice(
            [chance.randbytes(size), bytes(size), b"\xff" * size, bytes(part[at : at + size])]
        )
        part[at : at + chance.choice([0, size, size])] = fresh
    if name is None:
        return replace(evidence, body=bytes(part))
    return replace(evidence, attachments={**evidence.attachments, name: bytes(part)})


def test_a_simulated_device_is_visible():
    """A device in simulation needs the weakness tolerated as the machine would."""
    server = Server(vendor(Platform.SEV_SNP))
    policy = draft_policy([verify(good(Platform.SEV_SNP))[0]])
    with pytest.raises(AppraisalError, match="simulation"):
        server.verify(policy=policy, devices=[FakeSimulation()])
