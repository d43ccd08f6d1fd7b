"""Intel SGX and TDX: real quotes, and those of a fake Intel with one thing wrong each."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any
from urllib.parse import quote as percent_encode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms.dcap import sgx, tdx
from blindai.platforms.dcap.collateral import (
    MAX_COLLATERAL_BYTES,
    Answer,
    assemble_collateral,
    dump_collateral,
    parse_collateral,
    parse_signed_json,
    urls_for,
)
from blindai.platforms.dcap.pck import parse_pck_extension
from blindai.platforms.dcap.quote import (
    MAX_QUOTE_BYTES,
    Tee,
    parse_quote,
    parse_sgx_report,
    parse_td_report,
)
from blindai.platforms.dcap.verifier import AUTHENTICITY_STEPS
from blindai.platforms.tpm.eventlog import parse_event_log, replay_rtmrs
from blindai.testing.fake_dcap import FakeIntelSGX, FakeIntelTDX
from blindai.testing.fake_pck import certify, sgx_extensions
from tests.platforms.test_eventlog import boot_events, make_event_log
from tests.platforms.vectors import load_cases, read, requires_vectors

BINDING = bytes(range(32))
VENDORS = {Platform.SGX: FakeIntelSGX(), Platform.TDX: FakeIntelTDX()}
MODULES: dict[Platform, ModuleType] = {Platform.SGX: sgx, Platform.TDX: tdx}
GOOD = {platform: vendor.attest(BINDING) for platform, vendor in VENDORS.items()}
CASES = load_cases("sgx") + load_cases("tdx")
WEAKNESS_OF_STATUS = {
    "UpToDate": None,
    "SWHardeningNeeded": "sw-hardening-needed",
    "ConfigurationNeeded": "configuration-needed",
    "ConfigurationAndSWHardeningNeeded": "configuration-and-sw-hardening-needed",
    "OutOfDate": "tcb-out-of-date",
    "OutOfDateConfigurationNeeded": "tcb-out-of-date-configuration-needed",
}
KEY = ec.generate_private_key(ec.SECP256R1())
SGX_EXTENSIONS = sgx_extensions(b"p" * 16, b"i" * 16, frozenset({"smt"}))
both = pytest.mark.parametrize("platform", [Platform.SGX, Platform.TDX])


def verify(evidence: Evidence, *, vendor: Any = None, **changes: Any) -> Claims:
    vendor = vendor or VENDORS[evidence.platform]
    module = MODULES[evidence.platform]
    settings = {"anchors": vendor.anchors, "now": vendor.now, "steps": Steps(module.STEPS)}
    return module.verify(evidence, **(settings | changes))


def with_collateral(evidence: Evidence, **members: Any) -> Evidence:
    document = json.loads(evidence.attachments["collateral"]) | members
    return replace(evidence, attachments={"collateral": json.dumps(document).encode()})


def flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


# --- real quotes ---


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_quotes_give_what_the_manifest_expects(case):
    """Each real quote verifies under Intel's root or is refused, as the manifest says."""
    platform = Platform(case["platform"])
    evidence = Evidence(platform, read(case["evidence"]), {"collateral": read(case["collateral"])})
    settings = {
        "anchors": VENDOR_ROOTS[platform],
        "now": datetime.fromisoformat(case["at"]),
        "vendor": VENDORS[platform],
    }
    if case["expect"]["outcome"] != "genuine":
        with pytest.raises(AttestationError) as caught:
            verify(evidence, **settings)
        assert any(step.status == "failed" for step in caught.value.steps)
        return
    claims = verify(evidence, **settings)
    name = {"sgx": "mrenclave", "tdx": "mrtd"}[case["platform"]]
    assert claims.measurements[name].hex() == case["measurement"]
    assert claims.report_data.hex() == case["report_data"]
    status = WEAKNESS_OF_STATUS[case["expect"]["tcb_status"]]
    assert claims.weaknesses & set(WEAKNESS_OF_STATUS.values()) == ({status} - {None})
    assert claims.not_after is not None
    assert claims.not_after > settings["now"]


@requires_vectors
@pytest.mark.parametrize(
    ("case_id", "error", "words"),
    [
        ("sgx-02", EvidenceError, "debug enclave"),
        ("tdx-07", EvidenceError, "debug domain"),
        ("tdx-10", EndorsementError, "No matching TCB level"),
        ("tdx-11", EvidenceError, "SEPT_VE_DISABLE"),
        ("tdx-13", EndorsementError, "out of date since 2025-07-19"),
    ],
)
def test_real_quotes_are_refused_with_the_plain_reason(case_id, error, words):
    """Whoever reads the refusal of a real quote learns why."""
    case = next(case for case in CASES if case["id"] == case_id)
    platform = Platform(case["platform"])
    evidence = Evidence(platform, read(case["evidence"]), {"collateral": read(case["collateral"])})
    now = datetime.fromisoformat(case["at"])
    with pytest.raises(error, match=words):
        verify(evidence, anchors=VENDOR_ROOTS[platform], now=now)


@requires_vectors
def test_chip_identity_comes_from_the_real_pck_certificate():
    """FMSPC, PPID and PIID of a real TDX machine, and its flags as weaknesses."""
    case = next(case for case in CASES if case["id"] == "tdx-03")
    evidence = Evidence(
        Platform.TDX, read(case["evidence"]), {"collateral": read(case["collateral"])}
    )
    claims = verify(
        evidence,
        anchors=VENDOR_ROOTS[Platform.TDX],
        now=datetime.fromisoformat(case["at"]),
    )
    assert claims.measurements["fmspc"].hex() == "b0c06f000000"
    assert claims.measurements["chip_id"].hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert claims.measurements["piid"].hex() == "07828474603e7019dc930775ffe8cdd2"
    assert claims.weaknesses == {"smt", "cached-keys", "dynamic-platform"}


# --- good evidence of the fake vendor ---


@both
def test_good_evidence_gives_claims_of_the_vocabulary(platform):
    """Genuine evidence verifies, binds the caller's bytes, and takes every step it can."""
    steps = Steps(MODULES[platform].STEPS)
    claims = verify(GOOD[platform], steps=steps)
    words = VOCABULARY[platform]
    assert claims.report_data == BINDING + bytes(32)
    assert claims.weaknesses == frozenset()
    assert set(claims.measurements) <= words.measurements
    assert set(claims.versions) <= words.versions
    assert claims.not_after == VENDORS[platform].now + timedelta(days=29)
    assert [s.name for s in steps.taken if s.status != "passed"] == (
        ["service-td", "event-log"] if platform is Platform.TDX else []
    )


def test_sgx_claims_name_signer_product_and_versions():
    """The claims of an enclave are the fields of its report."""
    claims = verify(GOOD[Platform.SGX])
    assert claims.measurements["mrenclave"] == hashlib.sha256(b"mrenclave").digest()
    assert claims.measurements["mrsigner"] == hashlib.sha256(b"mrsigner").digest()
    assert claims.measurements["isv_prod_id"] == b"\x07\x00"
    assert claims.measurements["attributes"] == b"\x05" + bytes(7)
    assert claims.versions == {"isv_svn": 3, "tcb_evaluation_data_number": 20}
    assert "config_id" not in claims.measurements


def test_key_separation_fields_appear_only_where_they_mean_something():
    """Family, extended product and configuration are claims of an enclave with KSS only."""
    claims = verify(VENDORS[Platform.SGX].attest(BINDING, kss=True))
    assert claims.measurements["config_id"] == hashlib.sha256(b"config_id").digest() + bytes(32)
    assert claims.measurements["isv_family_id"] == hashlib.sha256(b"isv_family_id").digest()[:16]
    assert claims.versions["config_svn"] == 0


@pytest.mark.parametrize("version", [4, 5])
def test_tdx_claims_name_domain_and_module(version):
    """The claims of a trust domain are the fields of its report, in both versions."""
    rtmrs = tuple(bytes([index]) * 48 for index in range(4))
    claims = verify(VENDORS[Platform.TDX].attest(BINDING, version=version, rtmrs=rtmrs))
    assert claims.measurements["mrtd"] == hashlib.sha384(b"mrtd").digest()
    assert [claims.measurements[f"rtmr{index}"] for index in range(4)] == list(rtmrs)
    assert claims.versions["tee_tcb_svn_0"] == 5
    assert ("mrservicetd" in claims.measurements) == (version == 5)


@both
@pytest.mark.parametrize("status", WEAKNESS_OF_STATUS)
def test_each_tcb_status_is_its_weakness(platform, status):
    """What Intel says of the platform shows by name, with the advisories behind it."""
    advisories = () if status == "UpToDate" else ("INTEL-SA-00615",)
    evidence = VENDORS[platform].attest(BINDING, tcb_status=status, advisories=advisories)
    expected = {WEAKNESS_OF_STATUS[status], *advisories} - {None}
    claims = verify(evidence)
    assert claims.weaknesses == expected
    assert all(VOCABULARY[platform].knows_weakness(name) for name in claims.weaknesses)


@pytest.mark.parametrize(
    ("knobs", "weakness"),
    [
        ({"version": 4}, "tcb-out-of-date"),
        ({"version": 5}, "td-relaunch-advised"),
        (
            {"version": 5, "tcb_status": "ConfigurationNeeded"},
            "td-relaunch-advised-configuration-needed",
        ),
    ],
)
def test_a_domain_of_an_older_module_shows_so(knobs, weakness):
    """A domain launched by an old TDX module is out of date, or should be launched anew."""
    evidence = VENDORS[Platform.TDX].attest(BINDING, module_svn=2, **knobs)
    assert verify(evidence).weaknesses == {weakness}


@pytest.mark.parametrize("flag", ["smt", "cached-keys", "dynamic-platform"])
def test_flags_of_the_platform_are_weaknesses(flag):
    """What the PCK certificate says of the platform's configuration shows by name."""
    vendor = FakeIntelSGX(flags=frozenset({flag}))
    assert verify(vendor.attest(BINDING), vendor=vendor).weaknesses == {flag}


# --- one thing wrong each ---


@both
@pytest.mark.parametrize(
    ("knobs", "error", "step", "words"),
    [
        ({"debug": True}, EvidenceError, None, "debug"),
        ({"revoked": True}, EndorsementError, "pck-revocation", "revoked by its issuer"),
        ({"another_chip": True}, SignatureError, "qe-report", "signature is wrong"),
        ({"tcb_status": "Revoked"}, EndorsementError, "tcb", "Revoked"),
        ({"tcb_status": "Splendid"}, EndorsementError, "tcb", "TCB information"),
    ],
)
def test_one_thing_wrong_is_refused_at_its_step(platform, knobs, error, step, words):
    """Each fault raises its own class of error, at its own step, with a plain reason."""
    evidence = VENDORS[platform].attest(BINDING, **knobs)
    with pytest.raises(error, match=words) as caught:
        verify(evidence)
    failed = [taken.name for taken in caught.value.steps if taken.status == "failed"]
    assert failed == [step or {"sgx": "attributes", "tdx": "debug"}[platform]]


@pytest.mark.parametrize(
    ("knobs", "step"),
    [
        ({"attributes": 0}, "sept-ve"),
        ({"attributes": 0b11 << 28}, "migration"),
        ({"attributes": 1 << 28 | 1 << 4}, "debug"),
        ({"version": 5, "service_td": b"\x01" + bytes(47)}, "service-td"),
        ({"attributes": 1 << 28 | 1 << 40}, "tcb"),
        ({"module_svn": 1}, "tcb"),
    ],
)
def test_domains_that_others_can_look_into_are_refused(knobs, step):
    """What lets the host or another domain in is refused, although it is genuine."""
    with pytest.raises((EvidenceError, EndorsementError)) as caught:
        verify(VENDORS[Platform.TDX].attest(BINDING, **knobs))
    assert [taken.name for taken in caught.value.steps if taken.status == "failed"] == [step]


@both
@pytest.mark.parametrize("days", [-40, 3])
def test_collateral_of_another_time_is_refused(platform, days):
    """Collateral that has expired, or is not yet valid, says so."""
    vendor = VENDORS[platform]
    evidence = vendor.attest(BINDING, issued_at=vendor.now + timedelta(days=days))
    with pytest.raises(EndorsementError, match=r"out of date since|not valid before"):
        verify(evidence)


@both
@pytest.mark.parametrize("statement", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(("days", "words"), [(-40, "expired at 2026-01-05"), (3, "not issued")])
def test_a_statement_of_another_time_is_refused(platform, statement, days, words):
    """Stale TCB information or QE identity beside fresh revocation lists is no way around."""
    vendor = VENDORS[platform]
    other = vendor.attest(BINDING, issued_at=vendor.now + timedelta(days=days))
    collateral = json.loads(other.attachments["collateral"])
    members = {name: collateral[name] for name in (statement, f"{statement}_signature")}
    with pytest.raises(EndorsementError, match=words):
        verify(with_collateral(GOOD[platform], **members))


@both
@pytest.mark.parametrize("year", [1960, 2024, 2036])
def test_any_other_year_is_refused(platform, year):
    """Nothing verifies before its certificates were born, or after they died."""
    with pytest.raises(EndorsementError):
        verify(GOOD[platform], now=VENDORS[platform].now.replace(year=year))


@both
def test_another_root_is_refused(platform):
    """A chain to a root of the same name, but another key, proves nothing."""
    stranger = type(VENDORS[platform])()
    with pytest.raises(SignatureError, match="no certificate is a pinned root"):
        verify(GOOD[platform], anchors=stranger.anchors)
    with pytest.raises(SignatureError, match="no certificate is a pinned root"):
        verify(GOOD[platform], anchors=VENDOR_ROOTS[platform])
    with pytest.raises(SignatureError):
        verify(GOOD[platform], anchors=())


@both
@pytest.mark.parametrize(
    ("members", "error"),
    [
        (("pck_crl",), SignatureError),
        (("root_ca_crl",), SignatureError),
        (("tcb_info_issuer_chain",), SignatureError),
        (("tcb_info", "tcb_info_signature"), SignatureError),
        (("qe_identity", "qe_identity_signature"), SignatureError),
        (("tcb_info_issuer_chain", "tcb_info", "tcb_info_signature"), SignatureError),
        (("qe_identity_issuer_chain", "qe_identity", "qe_identity_signature"), SignatureError),
    ],
)
def test_statements_of_another_issuer_are_refused(platform, members, error):
    """Collateral counts only under the same root, even where two roots are trusted."""
    stranger = type(VENDORS[platform])()
    foreign = json.loads(stranger.attest(BINDING).attachments["collateral"])
    evidence = with_collateral(GOOD[platform], **{name: foreign[name] for name in members})
    with pytest.raises(error):
        verify(evidence)
    with pytest.raises(error):
        verify(evidence, anchors=(*VENDORS[platform].anchors, *stranger.anchors))


@both
def test_swapped_revocation_lists_are_refused(platform):
    """The root's list says nothing about PCK certificates, nor the other way round."""
    collateral = json.loads(GOOD[platform].attachments["collateral"])
    for name, other in (("pck_crl", "root_ca_crl"), ("root_ca_crl", "pck_crl")):
        with pytest.raises(EndorsementError, match="no revocation list speaks"):
            verify(with_collateral(GOOD[platform], **{name: collateral[other]}))


@both
def test_missing_collateral_is_refused(platform):
    """Without Intel's statements there are no claims."""
    with pytest.raises(EndorsementError, match="collateral is missing"):
        verify(replace(GOOD[platform], attachments={}))


@both
def test_collateral_of_the_other_tee_is_refused(platform):
    """SGX statements by the same Intel say nothing about TDX, and the other way round."""
    other = {Platform.SGX: Platform.TDX, Platform.TDX: Platform.SGX}[platform]
    evidence = replace(GOOD[other], platform=platform)
    with pytest.raises(EvidenceError, match="expected one of"):
        verify(evidence, vendor=VENDORS[other])


@both
def test_wrong_curve_is_refused(platform):
    """A PCK key that is not on P-256 signs no quoting enclave."""
    vendor = type(VENDORS[platform])(pck_curve=ec.SECP384R1())
    with pytest.raises(SignatureError, match="P-256"):
        verify(vendor.attest(BINDING), vendor=vendor)


@both
def test_edited_statements_are_refused(platform):
    """One added space breaks what Intel signed."""
    collateral = json.loads(GOOD[platform].attachments["collateral"])
    for name in ("tcb_info", "qe_identity"):
        with pytest.raises(SignatureError, match="signature is wrong"):
            verify(with_collateral(GOOD[platform], **{name: collateral[name] + " "}))


# --- the bytes of the quote ---


@pytest.mark.parametrize(
    ("platform", "knobs"),
    [(Platform.SGX, {}), (Platform.TDX, {"version": 4}), (Platform.TDX, {"version": 5})],
)
def test_any_flipped_signed_bit_is_refused(platform, knobs):
    """Header, body, signatures, key, QE report: a sample of all their bits."""
    vendor = VENDORS[platform]
    evidence = vendor.attest(BINDING, **knobs)
    chance = random.Random(20261122)
    positions = [p for span in vendor.signed_bytes(evidence) for p in span]
    assert len(positions) > 1000
    for position in chance.sample(positions, 250):
        body = flip(evidence.body, position, chance.randrange(8))
        with pytest.raises(AttestationError):
            verify(replace(evidence, body=body))


@both
def test_flipped_framing_is_refused_or_changes_nothing(platform):
    """The PEM armour is not signed: a flipped bit of it yields the same claims or none."""
    evidence, chance = GOOD[platform], random.Random(7)
    claims = verify(evidence)
    start = VENDORS[platform].signed_bytes(evidence)[-1].stop
    same = 0
    for position in chance.sample(range(start, len(evidence.body)), 120):
        body = flip(evidence.body, position, chance.randrange(8))
        try:
            assert verify(replace(evidence, body=body)) == claims
            same += 1
        except AttestationError:
            continue
    assert same < 60


@both
def test_truncation_is_refused(platform):
    """No beginning of a quote is a quote."""
    body = GOOD[platform].body
    for size in [*range(0, len(body), 37), *range(len(body) - 60, len(body))]:
        with pytest.raises(EvidenceError):
            verify(replace(GOOD[platform], body=body[:size]))


@both
def test_only_zeros_may_follow_a_quote(platform):
    """Drivers pad with zeros, which carry nothing; anything else is refused."""
    evidence = GOOD[platform]
    padded = replace(evidence, body=evidence.body + bytes(70))
    assert verify(padded) == verify(evidence)
    for tail in (b"\x00\x01", b"\n", bytes(MAX_QUOTE_BYTES)):
        with pytest.raises(EvidenceError):
            verify(replace(evidence, body=evidence.body + tail))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, 2, "version 3, 4 or 5"),
        (0, 6, "version 3, 4 or 5"),
        (2, 3, "attestation key type"),
        (4, 1, "TEE type"),
        (4, 0x81, "version 3 is of SGX only"),
    ],
)
def test_unsupported_headers_are_named(offset, value, words):
    """A header that is not understood is said to be so."""
    body = bytearray(GOOD[Platform.SGX].body)
    body[offset] = value
    with pytest.raises(EvidenceError, match=words):
        parse_quote(bytes(body))


@pytest.mark.parametrize(("kind", "size"), [(1, 384), (4, 648), (3, 584), (2, 648), (9, 648)])
def test_body_types_that_lie_are_refused(kind, size):
    """The body of a version 5 quote has the one size of its type, and the type of its TEE."""
    body = bytearray(VENDORS[Platform.TDX].attest(BINDING, version=5).body)
    body[48:54] = kind.to_bytes(2, "little") + size.to_bytes(4, "little")
    with pytest.raises(EvidenceError, match="body"):
        parse_quote(bytes(body))


def test_lengths_that_lie_are_refused():
    """A length neither over-reads nor leaves anything unread."""
    body = GOOD[Platform.SGX].body
    for offset in (432, 432 + 4 + 64 + 64 + 384 + 64, 432 + 4 + 64 + 64 + 384 + 64 + 36):
        for change in (1, -1, 3000):
            found = int.from_bytes(body[offset : offset + 2], "little") + change
            lying = body[:offset] + found.to_bytes(2, "little") + body[offset + 2 :]
            with pytest.raises(EvidenceError):
                verify(replace(GOOD[Platform.SGX], body=lying))


def test_quotes_without_pck_certificates_are_refused():
    """A quote that names its PCK key in another way is not supported, and says so."""
    body = GOOD[Platform.SGX].body
    offset = body.index(b"-----BEGIN") - 6
    with pytest.raises(EvidenceError, match="certification type 5"):
        verify(replace(GOOD[Platform.SGX], body=body[:offset] + b"\x03" + body[offset + 1 :]))


@given(st.binary(max_size=1024))
def test_parsers_leak_only_evidence_errors(data):
    """Garbage gives a value or an EvidenceError, from every parser."""
    for parse in (
        parse_quote,
        parse_sgx_report,
        parse_td_report,
        parse_collateral,
        lambda data: parse_signed_json(data, "tcbInfo"),
        lambda data: tdx.assemble(data, [data]),
    ):
        try:
            parse(data)
        except EvidenceError:
            continue


@given(st.binary(max_size=200), st.integers(0, 400))
def test_pck_extension_parser_leaks_only_evidence_errors(patch, offset):
    """Garbage inside the SGX extensions gives a value or an EvidenceError."""
    mutant = SGX_EXTENSIONS.value[:offset] + patch + SGX_EXTENSIONS.value[offset + len(patch) :]
    certificate = certify(
        "mutant", KEY, None, extension=x509.UnrecognizedExtension(SGX_EXTENSIONS.oid, mutant)
    )
    try:
        parse_pck_extension(certificate)
    except EvidenceError:
        return


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            del changed[at : at + chance.randint(1, 64)]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 64))
        else:
            other = chance.randrange(len(changed))
            changed[at : at + 32] = changed[other : other + 32]
        if not changed:
            return b""
    return bytes(changed)


def mutate_member(collateral: bytes, chance: random.Random) -> bytes:
    """Change what lies inside one member, below the JSON and the hex."""
    document = json.loads(collateral)
    name = chance.choice(sorted(document))
    if name.endswith(("_crl", "_signature")):
        document[name] = mutate(bytes.fromhex(document[name]), chance).hex()
    else:
        document[name] = mutate(document[name].encode(), chance).decode("latin-1")
    return json.dumps(document).encode()


@both
@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutants_raise_attestation_errors_only(platform, count):
    """Whatever the bytes of quote and collateral: the same claims, or one of three errors."""
    evidence, chance = GOOD[platform], random.Random(count)
    claims = verify(evidence)
    refused = 0
    for _ in range(count):
        body, collateral = evidence.body, evidence.attachments["collateral"]
        kind = chance.randrange(3)
        if kind == 0:
            body = mutate(body, chance)
        elif kind == 1:
            collateral = mutate(collateral, chance)
        else:
            collateral = mutate_member(collateral, chance)
        mutant = Evidence(platform, body, {"collateral": collateral})
        try:
            assert verify(mutant) == claims
        except (EvidenceError, SignatureError, EndorsementError):
            refused += 1
    assert refused > count * 0.8


# --- collateral ---


def test_collateral_survives_being_written_and_read():
    """What is written is what is read."""
    collateral = parse_collateral(GOOD[Platform.TDX].attachments["collateral"])
    assert parse_collateral(dump_collateral(collateral)) == collateral


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"tcb_info": 1}',
        b"1" * 5000,
        b"\xff\xfe\x00",
        b" " * (MAX_COLLATERAL_BYTES + 1),
    ],
    ids=["empty", "list", "members", "deep", "nested", "number", "digits", "bom", "large"],
)
def test_malformed_collateral_is_refused(data):
    """Depth bombs, wrong types and too many bytes are EvidenceErrors."""
    with pytest.raises(EvidenceError):
        verify(replace(GOOD[Platform.SGX], attachments={"collateral": data}))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("pck_crl", "zz"),
        ("pck_crl", "00"),
        ("tcb_info_signature", "00"),
        ("tcb_info", None),
        ("tcb_info", "\ud800"),
        ("tcb_info_issuer_chain", ""),
        ("tcb_info_issuer_chain", "\N{SNOWMAN}"),
    ],
)
def test_malformed_members_of_collateral_are_refused(member, value):
    """Each member has its one form."""
    with pytest.raises(EvidenceError):
        verify(with_collateral(GOOD[Platform.SGX], **{member: value}))


@both
def test_urls_name_platform_and_tee(platform):
    """The quote's own certificate decides what to ask Intel for."""
    urls = urls_for(parse_quote(GOOD[platform].body), pcs="https://pcs.example/")
    tee = platform.value
    assert urls == {
        "tcb_info": f"https://pcs.example/{tee}/certification/v4/tcb?fmspc=00906ED50000",
        "qe_identity": f"https://pcs.example/{tee}/certification/v4/qe/identity",
        "pck_crl": "https://pcs.example/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "root_ca_crl": "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    }


@both
def test_answers_of_intel_become_collateral(platform):
    """Intel's answers, headers and all, give the collateral that verifies."""
    wanted = parse_collateral(GOOD[platform].attachments["collateral"])
    answers = answers_of(wanted)
    found = assemble_collateral(answers)
    assert found == wanted
    verify(replace(GOOD[platform], attachments={"collateral": dump_collateral(found)}))
    in_hex = answers | {"root_ca_crl": Answer(wanted.root_ca_crl.hex().encode(), {})}
    assert assemble_collateral(in_hex) == wanted


def test_incomplete_answers_are_refused():
    """An answer that is missing, without its chain, or malformed is an EvidenceError."""
    answers = answers_of(parse_collateral(GOOD[Platform.SGX].attachments["collateral"]))
    for name in answers:
        with pytest.raises(EvidenceError, match=name):
            assemble_collateral({key: answers[key] for key in answers if key != name})
    for name in ("tcb_info", "qe_identity", "pck_crl"):
        with pytest.raises(EvidenceError, match="header"):
            assemble_collateral(answers | {name: Answer(answers[name].body, {})})
    for body in (b"", b"{}", b'{"signature": "00", "tcbInfo": {}}', b'{"tcbInfo": {}}'):
        with pytest.raises(EvidenceError):
            assemble_collateral(answers | {"tcb_info": Answer(body, {})})


def answers_of(collateral):
    def signed(member, text, signature, header, chain):
        body = f'{{"{member}":{text},"signature":"{signature.hex()}"}}'
        return Answer(body.encode(), {header: percent_encode(chain)})

    return {
        "tcb_info": signed(
            "tcbInfo",
            collateral.tcb_info,
            collateral.tcb_info_signature,
            "TCB-Info-Issuer-Chain",
            collateral.tcb_info_issuer_chain,
        ),
        "qe_identity": signed(
            "enclaveIdentity",
            collateral.qe_identity,
            collateral.qe_identity_signature,
            "SGX-Enclave-Identity-Issuer-Chain",
            collateral.qe_identity_issuer_chain,
        ),
        "pck_crl": Answer(
            collateral.pck_crl,
            {"SGX-PCK-CRL-Issuer-Chain": percent_encode(collateral.pck_crl_issuer_chain)},
        ),
        "root_ca_crl": Answer(collateral.root_ca_crl, {}),
    }


# --- files ---


@both
@pytest.mark.parametrize("form", ["raw", "hex", "0x", "lines"])
def test_files_become_evidence(platform, form):
    """Quotes lie around raw or in hex, beside files that are of no use."""
    good = GOOD[platform]
    digits = good.body.hex()
    body = {
        "raw": good.body,
        "hex": digits.encode(),
        "0x": f"0x{digits}\n".encode(),
        "lines": "\r\n".join(digits[i : i + 64] for i in range(0, len(digits), 64)).encode(),
    }[form]
    extras = [b"notes", good.attachments["collateral"], b"-----BEGIN CERTIFICATE-----"]
    evidence, unused = MODULES[platform].assemble(body, extras)
    assert evidence == good
    assert unused == [0, 2]


def test_collateral_of_the_same_platform_goes_first():
    """Of several files of collateral, the one about this platform and TEE is taken."""
    of_tdx, of_sgx = (GOOD[p].attachments["collateral"] for p in (Platform.TDX, Platform.SGX))
    evidence, unused = sgx.assemble(GOOD[Platform.SGX].body, [of_tdx, of_sgx])
    assert evidence.attachments["collateral"] == of_sgx
    assert unused == [0]
    evidence, unused = sgx.assemble(GOOD[Platform.SGX].body, [b"", of_tdx])
    assert evidence.attachments["collateral"] == of_tdx
    assert unused == [0]


def test_files_that_are_no_quote_are_refused():
    """Text, half a byte of hex, and nothing at all are EvidenceErrors."""
    for body in (b"", b"hello", b"030", b"0x", b"00" * 5 * MAX_QUOTE_BYTES):
        with pytest.raises(EvidenceError):
            sgx.assemble(body, [])
    evidence, unused = sgx.assemble(GOOD[Platform.SGX].body, [b"x"])
    assert not evidence.attachments
    assert unused == [0]


# --- documentation ---


@both
def test_every_step_is_explained(platform):
    """Each step has a unique name, a title and a reference."""
    steps = MODULES[platform].STEPS
    assert len({step.name for step in steps}) == len(steps) > len(AUTHENTICITY_STEPS)
    assert all(step.title and step.reference for step in steps)


def test_tee_of_a_quote_is_what_its_header_says():
    """The parser reads the TEE type, nothing else decides it."""
    assert parse_quote(GOOD[Platform.SGX].body).tee is Tee.SGX
    assert parse_quote(GOOD[Platform.TDX].body).tee is Tee.TDX


def ccel(changed: int | None = None) -> tuple[bytes, tuple[bytes, bytes, bytes, bytes]]:
    """Return a CCEL with a whole boot, and the RTMRs it leads to; one can be made another."""
    place = {0: 1, 7: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 8: 3, 9: 3}
    events = [(place[pcr], kind, content, data) for pcr, kind, content, data in boot_events()]
    log = make_event_log(events, ["sha384"])
    replayed = replay_rtmrs(parse_event_log(log))
    rtmrs = [replayed.get(index, bytes(48)) for index in range(4)]
    if changed is not None:
        rtmrs[changed] = b"x" * 48
    return log, (rtmrs[0], rtmrs[1], rtmrs[2], rtmrs[3])


def with_log(evidence: Evidence, log: bytes) -> Evidence:
    return replace(evidence, attachments={**evidence.attachments, "event_log": log})


def test_a_ccel_that_replays_names_what_was_booted() -> None:
    """Kernel, initrd, command line and Secure Boot become claims of a TDX guest."""
    log, rtmrs = ccel()
    evidence, unused = tdx.assemble(
        VENDORS[Platform.TDX].attest(BINDING, rtmrs=rtmrs).body,
        [log, GOOD[Platform.TDX].attachments["collateral"]],
    )
    assert unused == []
    claims = verify(evidence)
    assert {"kernel", "initrd", "command_line", "secure_boot"} <= set(claims.measurements)
    assert set(claims.measurements) <= VOCABULARY[Platform.TDX].measurements


def test_a_ccel_says_nothing_of_a_register_that_it_does_not_explain() -> None:
    """Another RTMR2 than the log's: its events are not claimed, those of the others are."""
    log, rtmrs = ccel(changed=2)
    claims = verify(with_log(VENDORS[Platform.TDX].attest(BINDING, rtmrs=rtmrs), log))
    assert "secure_boot" in claims.measurements
    assert "command_line" not in claims.measurements


def test_a_ccel_of_another_boot_is_refused() -> None:
    """A log that replays to no register is another machine's; a broken one is no log."""
    log, _ = ccel()
    evidence = VENDORS[Platform.TDX].attest(BINDING)
    with pytest.raises(EvidenceError, match="replays to none"):
        verify(with_log(evidence, log))
    with pytest.raises(EvidenceError):
        verify(with_log(evidence, log[:-3]))
