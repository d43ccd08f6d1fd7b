"""What is planned for evidence, and what is attached to it: pure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from blindai.attestation.certs import der
from blindai.attestation.model import Evidence, Platform
from blindai.endorsements import Answer, EndorsementSettings, Kind, attach, lifetimes, plan
from blindai.endorsements.nvidia import CHIP_SKU, PROJECT, PROJECT_SKU, rim_identifiers
from blindai.errors import ConfigurationError, EndorsementError, EvidenceError
from blindai.platforms import ASSEMBLERS
from blindai.platforms.nvidia.report import CHIP_INFO, DRIVER_VERSION, parse_report
from blindai.testing import FAKES
from blindai.testing.fake_dcap import FakeIntelSGX, FakeIntelTDX
from blindai.testing.fake_nvidia import FakeNVIDIA
from blindai.testing.fake_sev_snp import FakeAMD, pack_certificate_table
from tests.endorsements.services import AMD, NVIDIA, Intel, bare
from tests.platforms.vectors import load_cases, read, requires_vectors

SETTINGS = EndorsementSettings()
NOTHING = EndorsementSettings(
    amd_kds=None, intel_pcs=None, intel_root_crl=None, nvidia_rim=None, nvidia_ocsp=None
)
GENOA = FakeAMD()
SGX = FakeIntelSGX()
GPU = FakeNVIDIA()
DATA = bytes(range(32))


def names(evidence, now, settings=SETTINGS):
    """Return the attachments that are planned for."""
    return [want.attachment for want in plan(evidence, settings, now)]


@pytest.mark.parametrize("platform", sorted(FAKES))
def test_nothing_is_planned_for_complete_evidence(platform):
    """What a server stapled is enough while it is current."""
    vendor = FAKES[platform]()
    assert names(vendor.attest(DATA), vendor.now) == []


@pytest.mark.parametrize("platform", [Platform.SIMULATION, Platform.NITRO, Platform.TPM])
def test_nothing_is_ever_planned_where_evidence_brings_all(platform):
    """Simulation, Nitro and TPM evidence is complete, or cannot be completed."""
    evidence = Evidence(platform, b"")
    vendor = FAKES[platform]()
    assert names(evidence, vendor.now) == []
    assert lifetimes(evidence, vendor.now) == {}
    want = plan(bare(GENOA.attest(DATA)), SETTINGS, GENOA.now)[0]
    with pytest.raises(ConfigurationError):
        attach(evidence, want, [], vendor.now)


@pytest.mark.parametrize("vendor", [GENOA, SGX, FakeIntelTDX(), GPU])
def test_nothing_is_planned_without_addresses(vendor):
    """A vendor without an address is not asked."""
    assert names(bare(vendor.attest(DATA), keep=["chain"]), vendor.now, NOTHING) == []


@pytest.mark.parametrize("vendor", [GENOA, SGX, GPU])
def test_malformed_evidence_is_refused(vendor):
    """No address is made of a body that cannot be read."""
    with pytest.raises(EvidenceError):
        plan(Evidence(vendor.platform, b"x"), SETTINGS, vendor.now)


def test_amd_leaf_first_and_then_its_revocation_list():
    """Bare evidence needs leaf and chain; the list comes after, as the leaf names its root."""
    evidence = bare(GENOA.attest(DATA))
    service = AMD(GENOA, evidence)
    (want,) = plan(evidence, SETTINGS, GENOA.now)
    ((leaf, chain),) = want.options
    assert (leaf.url, chain.url) == (service.leaf, service.chain)
    answers = [service(leaf), service(chain)]
    completed = attach(evidence, want, answers, GENOA.now)
    (want,) = plan(completed, SETTINGS, GENOA.now)
    assert want.attachment == "crl"
    assert [[request.url for request in option] for option in want.options] == [[service.crl]]
    completed = attach(completed, want, [service(want.options[0][0])], GENOA.now)
    assert names(completed, GENOA.now) == []
    assert set(lifetimes(completed, GENOA.now)) == {"certificates", "crl"}


def test_amd_certificate_table_counts():
    """A leaf in the host's table leaves the chain to fetch, a whole chain the list alone."""
    whole = [GENOA.certify(), GENOA._issuers[0], GENOA.root]
    table = pack_certificate_table(whole)
    evidence = replace(bare(GENOA.attest(DATA)), attachments={"certificate_table": table})
    assert names(evidence, GENOA.now) == ["crl"]
    assert set(lifetimes(evidence, GENOA.now)) == {"certificate_table"}
    leaf = replace(evidence, attachments={"certificates": der(whole[0])})
    service = AMD(GENOA, leaf)
    (want,) = plan(leaf, SETTINGS, GENOA.now)
    assert [[request.url for request in option] for option in want.options] == [[service.chain]]
    completed = attach(leaf, want, [service(want.options[0][0])], GENOA.now)
    assert names(completed, GENOA.now) == ["crl"]


def test_amd_old_reports_may_be_of_two_products():
    """A report that does not name its product is looked for under each that it could be of."""
    milan = FakeAMD("Milan", version=2)
    evidence = bare(milan.attest(DATA))
    (want,) = plan(evidence, SETTINGS, milan.now)
    products = {option[1].url.split("/")[-2] for option in want.options}
    assert products == {"Milan", "Genoa"}


def test_amd_gives_nobody_a_vlek_or_the_leaf_of_a_masked_chip():
    """Where AMD has nothing to give, nothing is asked."""
    assert names(bare(GENOA.attest(DATA, vlek=True)), GENOA.now) == []
    masked = GENOA.attest(DATA, fields={0x1A0: bytes(64)})
    assert names(bare(masked), GENOA.now) == []


def test_amd_leaf_of_another_chip_does_not_count():
    """A stapled certificate of another chip is replaced; an answer of that kind is refused."""
    other = GENOA.certify(chip_id=b"\xee" * 64)
    evidence = GENOA.attest(DATA, leaf=other)
    (want,) = plan(evidence, SETTINGS, GENOA.now)
    assert want.attachment == "certificates"
    service = AMD(GENOA, evidence, leaf=other)
    answers = [service(request) for request in want.options[0]]
    with pytest.raises(EndorsementError, match="no certificate for this chip"):
        attach(evidence, want, answers, GENOA.now)


def test_amd_what_is_out_of_date_is_planned_again():
    """A list after its end, and one of another root, do not count."""
    evidence = GENOA.attest(DATA)
    assert names(evidence, GENOA.now + timedelta(days=400)) == ["crl"]
    assert "certificates" in names(evidence, GENOA.now + timedelta(days=8 * 365))
    turin = FakeAMD("Turin").revocation_list()
    other = replace(evidence, attachments={**evidence.attachments, "crl": turin})
    assert names(other, GENOA.now) == ["crl"]


@pytest.mark.parametrize("vendor", [SGX, FakeIntelTDX()])
@pytest.mark.parametrize("in_hex", [False, True])
def test_intel_collateral_is_assembled(vendor, in_hex):
    """Four answers, with lists in DER or, from a caching service, in hex, make the collateral."""
    evidence = vendor.attest(DATA)
    service = Intel(evidence, in_hex=in_hex)
    (want,) = plan(bare(evidence), SETTINGS, vendor.now)
    assert [request.url for request in want.options[0]] == list(service.urls.values())
    completed = attach(bare(evidence), want, [*map(service, want.options[0])], vendor.now)
    assert names(completed, vendor.now) == []


def test_intel_collateral_of_another_platform_does_not_count():
    """Collateral about the other TEE is fetched anew, and refused as an answer."""
    evidence = SGX.attest(DATA)
    tdx = FakeIntelTDX().attest(DATA)
    swapped = replace(evidence, attachments=tdx.attachments)
    (want,) = plan(swapped, SETTINGS, SGX.now)
    with pytest.raises(EndorsementError, match="another platform"):
        attach(evidence, want, [*Intel(tdx).answers.values()], SGX.now)


def test_intel_out_of_date_collateral_is_planned_again():
    """The first of lists and statements to end ends the collateral."""
    evidence = SGX.attest(DATA)
    end = lifetimes(evidence, SGX.now)["collateral"].end
    assert names(evidence, end) == []
    assert names(evidence, end + timedelta(seconds=1)) == ["collateral"]


def test_nvidia_references_first_and_then_revocations():
    """Revocations come last: those of the references' signers are asked for, too."""
    evidence = GPU.attest(DATA)
    service = NVIDIA(evidence)
    start = bare(evidence, keep=["chain"])
    driver, ocsp = plan(start, SETTINGS, GPU.now)
    assert driver.options[0][0].url == service.driver
    assert {request.kind for request in ocsp.options[0]} == {Kind.OCSP}
    with_driver = attach(start, driver, [service(driver.options[0][0])], GPU.now)
    (more,) = plan(with_driver, SETTINGS, GPU.now)
    assert len(more.options[0]) == len(ocsp.options[0]) + 1
    completed = attach(with_driver, more, [*map(service, more.options[0])], GPU.now)
    assert names(completed, GPU.now) == []
    assert names(completed, GPU.now + timedelta(days=2)) == ["ocsp"]
    assert set(lifetimes(completed, GPU.now)) == {"rim_driver", "ocsp"}


def test_nvidia_references_of_another_version_do_not_count():
    """References of another driver are fetched anew, and refused as an answer."""
    evidence = GPU.attest(DATA)
    other = GPU.attest(DATA, driver_version="551.00.00")
    swapped = {**evidence.attachments, "rim_driver": other.attachments["rim_driver"]}
    want = plan(replace(evidence, attachments=swapped), SETTINGS, GPU.now)[0]
    assert want.attachment == "rim_driver"
    answers = [NVIDIA(other).answers[NVIDIA(other).driver]]
    with pytest.raises(EndorsementError, match="another version"):
        attach(evidence, want, answers, GPU.now)
    with pytest.raises(EvidenceError):
        attach(evidence, want, [Answer(b'{"rim": "?"}', {})], GPU.now)


def test_nvidia_identifiers():
    """References are named after chip, version and board, as NVIDIA's verifier does."""
    report = parse_report(GPU.attest(DATA).body)
    chain = [GPU._leaf[0]]
    board = {PROJECT: b"1010\0", PROJECT_SKU: b"0210\0", CHIP_SKU: b"886\0"}
    hopper = replace(report, opaque={**report.opaque, **board})
    assert rim_identifiers(hopper, chain) == {
        "rim_driver": "NV_GPU_DRIVER_GH100_550.90.07",
        "rim_vbios": "NV_GPU_VBIOS_1010_0210_886_96009F0001",
    }
    blackwell = replace(report, opaque={**report.opaque, CHIP_INFO: b"GB202\0"})
    found = rim_identifiers(blackwell, chain)
    assert found == {"rim_driver": "NV_GPU_CC_DRIVER_GB202_550.90.07"}
    assert rim_identifiers(report, []) == {}


@pytest.mark.parametrize(
    "value", [b"../../v2", b"550?a=b", b"550#", b"550%2e", b"@evil.example", b"5" * 40]
)
def test_nvidia_reports_cannot_choose_an_address(value):
    """A version that is no plain name becomes part of no address."""
    report = parse_report(GPU.attest(DATA).body)
    chain = [GPU._leaf[0]]
    for changes in (
        {DRIVER_VERSION: value},
        {CHIP_INFO: value},
    ):
        changed = replace(report, opaque={**report.opaque, **changes})
        assert "rim_driver" not in rim_identifiers(changed, chain)
    board = {PROJECT: value, PROJECT_SKU: b"0210", CHIP_SKU: b"886"}
    changed = replace(report, opaque={**report.opaque, **board})
    assert "rim_vbios" not in rim_identifiers(changed, chain)


@requires_vectors
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("nvidia-gpu-36", f"{NVIDIA.RIM}/NV_GPU_DRIVER_GH100_550.90.07"),
        ("nvidia-gpu-36", f"{NVIDIA.RIM}/NV_GPU_VBIOS_1010_0200_882_96009F0001"),
        ("sev-snp-17", "https://kdsintf.amd.com/vlek/v1/Milan/cert_chain"),
        ("sev-snp-19", "https://kdsintf.amd.com/vcek/v1/Turin/cert_chain"),
        (
            "tdx-13",
            "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=B0C06F000000",
        ),
    ],
)
def test_addresses_for_real_evidence(case, expected):
    """For what real hardware signed, the addresses are those of the vendors' own tools."""
    platform = case.rpartition("-")[0]
    (found,) = (each for each in load_cases(platform) if each["id"] == case)
    names = ("chain", "collateral", "leaf")
    extras = [read(found[name]) for name in names if name in found]
    evidence, _ = ASSEMBLERS[Platform(platform)](read(found["evidence"]), extras)
    wants = plan(evidence, SETTINGS, datetime(2025, 12, 1, tzinfo=UTC))
    urls = {request.url for want in wants for option in want.options for request in option}
    assert expected in urls
