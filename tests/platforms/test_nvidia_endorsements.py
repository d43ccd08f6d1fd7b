"""NVIDIA's endorsements: XML signatures, reference measurements and OCSP responses."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from xml.etree import ElementTree as ET

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms.nvidia.ocsp import check_revocation, parse_responses
from blindai.platforms.nvidia.rim import verify_rim
from blindai.platforms.nvidia.xmldsig import canonicalize, parse_signature, parse_xml
from blindai.testing.fake_nvidia import FakeNVIDIA, _name

VENDOR = FakeNVIDIA()
RIM = VENDOR.sign_rim("550.90.07", range(32))
RIM_ANCHORS = VENDOR.anchors[1:]
CHAIN = [VENDOR._leaf, VENDOR._brom, *VENDOR._authorities]
PATH = [certificate for certificate, _ in CHAIN]


def check_rim(data):
    return verify_rim(data, anchors=RIM_ANCHORS, now=VENDOR.now)[0]


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("<a/>", "<a></a>"),
        ("<?xml version='1.0'?>\r\n<a>\r\n</a>\n", "<a>\n</a>"),
        ("<a  y = '2' x='1'><!-- gone --></a >", '<a x="1" y="2"></a>'),
        ("<a><![CDATA[<&>]]>&#13;&quot;</a>", '<a>&lt;&amp;&gt;&#xD;"</a>'),
        ("<a b='&lt;&quot;&#9;&#10;&#13;\n>'/>", '<a b="&lt;&quot;&#x9;&#xA;&#xD; >"></a>'),
        # Declarations before attributes, by prefix; none is repeated below where it holds.
        (
            "<a b='1' xmlns:y='u:2' xmlns='u:1' xmlns:x='u:3'><c xmlns='u:1' xmlns:x='u:4'/></a>",
            '<a xmlns="u:1" xmlns:x="u:3" xmlns:y="u:2" b="1"><c xmlns:x="u:4"></c></a>',
        ),
        ("<a xmlns='u:1'><b xmlns=''><c/></b></a>", '<a xmlns="u:1"><b xmlns=""><c></c></b></a>'),
        # Attributes by namespace and then by name; those of no namespace first.
        (
            "<a xmlns:p='u:2' xmlns:q='u:1' p:a='1' q:b='2' c='3'/>",
            '<a xmlns:p="u:2" xmlns:q="u:1" c="3" q:b="2" p:a="1"></a>',
        ),
    ],
)
def test_canonical_form(source, canonical):
    """Documents are canonicalised as Canonical XML §3 shows by example."""
    assert canonicalize(parse_xml(source.encode())).decode() == canonical


def test_canonical_form_of_a_part_inherits_namespaces():
    """Inclusive canonicalisation of a part writes every namespace in scope at its top."""
    root = parse_xml(b"<a xmlns='u:1' xmlns:x='u:2'><b c='1'/></a>")
    assert canonicalize(root.elements[0]) == b'<b xmlns="u:1" xmlns:x="u:2" c="1"></b>'


_NAMES = st.sampled_from(["a", "b", "c"])
_TEXT = st.text("ab <&>\"'\n\t", max_size=6)


def _build(name, attributes, children):
    element = ET.Element(name, attributes)
    for text, child in children:
        child.tail = text
        element.append(child)
    return element


_TREES = st.recursive(
    st.builds(_build, _NAMES, st.dictionaries(_NAMES, _TEXT, max_size=3), st.just([])),
    lambda child: st.builds(
        _build,
        _NAMES,
        st.dictionaries(_NAMES, _TEXT, max_size=3),
        st.lists(st.tuples(_TEXT, child), max_size=3),
    ),
    max_leaves=8,
)


@given(_TREES)
def test_canonical_form_agrees_with_the_standard_library(tree):
    """Without namespaces Canonical XML 1.1 and 2.0, which the standard library has, agree."""
    data = ET.tostring(tree)
    assert canonicalize(parse_xml(data)).decode() == ET.canonicalize(data.decode())


@given(st.one_of(st.binary(max_size=60), st.text("<a x='/>&;:=!?[]", max_size=40).map(str.encode)))
def test_any_bytes_are_xml_or_malformed(data):
    """Parsing gives a tree whose canonical form is stable, or EvidenceError."""
    with contextlib.suppress(EvidenceError):
        canonical = canonicalize(parse_xml(data))
        assert canonicalize(parse_xml(canonical)) == canonical


@pytest.mark.parametrize(
    "source",
    [
        b"<!DOCTYPE a><a/>",
        b"<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
        b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
        b"<a><?php ?></a>",
        b"<a>&e;</a>",
        b"<a xml:base='x'/>",
        b"<x:a/>",
        b"<a xmlns:x='u:1' xmlns:y='u:1' x:b='1' y:b='2'/>",
        b"<a xmlns:x=''/>",
        b"<a></b>",
        b"<a/><b/>",
        b"",
        b"<a>" * 17 + b"</a>" * 17,
        b"<a " + b" ".join(b"xmlns:n%d='u:%d'" % (i, i) for i in range(33)) + b"/>",
        b"<a>" + b"<b/>" * 4096 + b"</a>",
        b"<a>" + b" " * (512 << 10) + b"</a>",
    ],
)
def test_unwelcome_xml_is_refused(source):
    """Document types, entities, instructions, depth and size are refused while reading."""
    with pytest.raises(EvidenceError):
        parse_xml(source)


def test_signed_references_are_read():
    """A signed tag gives version and active measurements."""
    reference = check_rim(RIM)
    assert reference.version == "550.90.07"
    assert sorted(reference.values) == list(range(32))


def test_references_under_another_root_are_refused():
    """Another vendor's references are refused."""
    with pytest.raises(SignatureError, match="no pinned root"):
        verify_rim(RIM, anchors=FakeNVIDIA().anchors, now=VENDOR.now)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b"550.90.07", b"550.90.08", SignatureError),
        (b'active="True"', b'active="False"', SignatureError),
        (b"</s:Payload>", b"</s:Payload> ", SignatureError),
        (b"GH100", b"GH200", SignatureError),
        (b"xml-c14n11", b"xml-c14n12", EvidenceError),
        (b"#ecdsa-sha384", b"#hmac-sha384", EvidenceError),
        (b"-more#sha384", b"-more#sha224", EvidenceError),
        (b'URI=""', b'URI="#x"', EvidenceError),
        (b'URI=""', b'URI="" Id="x"', SignatureError),
        (b"#enveloped-signature", b"#base64", EvidenceError),
        (b"<d:SignatureValue>", b"<d:SignatureValue>!", EvidenceError),
        (b"<d:X509Certificate>", b"<d:X509Certificate>AAAA", EvidenceError),
    ],
)
def test_changed_references_are_refused(old, new, error):
    """Whatever is changed in a signed tag, the signature or its form no longer holds."""
    assert old in RIM
    with pytest.raises(error):
        check_rim(RIM.replace(old, new, 1))


def test_wrapped_signatures_are_refused():
    """A genuine tag inside another document vouches for nothing."""
    start, end = RIM.index(b"<d:Signature "), RIM.index(b"</SoftwareIdentity>")
    signature = RIM[start:end]
    forged = RIM[:start].replace(b"550.90.07", b"0.0.0")
    for document in (
        forged + RIM + signature + b"</SoftwareIdentity>",
        forged + b"<x>" + signature + b"</x></SoftwareIdentity>",
        forged + signature + signature + b"</SoftwareIdentity>",
        forged + b"</SoftwareIdentity>",
    ):
        with pytest.raises(EvidenceError, match="exactly one"):
            check_rim(document)
    assert parse_signature(parse_xml(RIM)).value


def test_harmless_rewriting_changes_nothing():
    """What canonicalisation removes is not signed: comments and quotes may differ."""
    rewritten = RIM.replace(b"<s:Payload>", b"<!-- x --><s:Payload >").replace(
        b'name="GH100"', b"name='GH100'"
    )
    assert rewritten != RIM
    assert check_rim(rewritten) == check_rim(RIM)


def test_mutated_references_only_raise_attestation_errors():
    """Random edits of a signed tag end in the same references or a clear error."""
    chance = random.Random(3)
    genuine = check_rim(RIM)
    refused = 0
    for _ in range(150):
        data = bytearray(RIM)
        start = chance.randrange(len(data))
        data[start : start + chance.choice([0, 1, 30])] = chance.randbytes(chance.choice([0, 1, 2]))
        try:
            assert check_rim(bytes(data)) == genuine
        except AttestationError:
            refused += 1
    assert refused > 100


def respond(
    subject, issuer, *, signer=None, status=ocsp.OCSPCertStatus.GOOD, end=timedelta(days=1)
):
    key = (signer or issuer)[1]
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=subject[0],
        issuer=issuer[0],
        algorithm=hashes.SHA256(),
        cert_status=status,
        this_update=VENDOR.now,
        next_update=VENDOR.now + end if end else None,
        revocation_time=VENDOR.now if revoked else None,
        revocation_reason=None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, (signer or issuer)[0])
    if signer:
        builder = builder.certificates([signer[0]])
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)


def responder(issuer, *usages):
    key = ec.generate_private_key(ec.SECP384R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("Fake OCSP Responder"))
        .issuer_name(issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VENDOR.now - timedelta(days=1))
        .not_valid_after(VENDOR.now + timedelta(days=1))
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer[1], hashes.SHA384()), key


def check_ocsp(data, now=VENDOR.now):
    return check_revocation(PATH, parse_responses(data), now=now)


def test_good_response_speaks_of_its_certificate():
    """A response by the issuer clears one certificate and says until when."""
    result = check_ocsp(respond(CHAIN[1], CHAIN[2]) + respond(CHAIN[2], CHAIN[3]))
    assert list(result.unspoken) == [PATH[0], PATH[3]]
    assert result.not_after == VENDOR.now + timedelta(days=1)


@pytest.mark.parametrize("authority", [2, 3, 4])
def test_delegated_responder_counts(authority):
    """The issuer, or a CA above it, may delegate a responder."""
    signer = responder(CHAIN[authority], ExtendedKeyUsageOID.OCSP_SIGNING)
    assert PATH[1] not in check_ocsp(respond(CHAIN[1], CHAIN[2], signer=signer)).unspoken


@pytest.mark.parametrize(
    "signer",
    [
        responder(CHAIN[2]),
        responder(CHAIN[2], ExtendedKeyUsageOID.SERVER_AUTH),
        responder(CHAIN[1], ExtendedKeyUsageOID.OCSP_SIGNING),
        responder(FakeNVIDIA()._authorities[0], ExtendedKeyUsageOID.OCSP_SIGNING),
        CHAIN[1],
        CHAIN[0],
    ],
    ids=["no usage", "other usage", "by the chip itself", "other vendor", "chip", "leaf"],
)
def test_undelegated_responder_is_refused(signer):
    """Nobody else may clear a certificate, least of all its owner."""
    with pytest.raises(SignatureError, match="OCSP: not signed by"):
        check_ocsp(respond(CHAIN[1], CHAIN[2], signer=signer))


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("status", [ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.UNKNOWN])
def test_revoked_or_unknown_certificate_is_refused(depth, status):
    """Every certificate below the root can be revoked."""
    with pytest.raises(EndorsementError, match="its issuer"):
        check_ocsp(respond(CHAIN[depth], CHAIN[depth + 1], status=status))


@pytest.mark.parametrize("offset", [timedelta(seconds=-1), timedelta(days=1, seconds=1)])
def test_response_out_of_its_time_is_refused(offset):
    """A response counts from thisUpdate to nextUpdate only."""
    with pytest.raises(EndorsementError, match="holds from"):
        check_ocsp(respond(CHAIN[1], CHAIN[2]), now=VENDOR.now + offset)


def test_response_without_end_is_refused():
    """A response that never ends says nothing about today."""
    with pytest.raises(EndorsementError, match="until when"):
        check_ocsp(respond(CHAIN[1], CHAIN[2], end=None))


def test_response_about_others_is_ignored():
    """A response about another chip clears nothing."""
    other = VENDOR.another_chip()
    assert list(check_ocsp(respond(other._brom, CHAIN[2])).unspoken) == PATH[:-1]


def test_malformed_responses_are_refused():
    """Truncated, failed, too many or too large responses are refused."""
    good = respond(CHAIN[1], CHAIN[2])
    failed = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    for data in (
        good[:-1],
        good + b"\0",
        b"\x30\x84\xff\xff\xff\xff",
        failed.public_bytes(Encoding.DER),
        good * 17,
        bytes((64 << 10) + 1),
    ):
        with pytest.raises(EvidenceError):
            parse_responses(data)


def test_mutated_responses_only_raise_attestation_errors():
    """A changed response never says anything new: it is refused, ignored, or as before."""
    good = respond(CHAIN[1], CHAIN[2])
    outcomes = (check_ocsp(good), check_ocsp(b""))
    chance = random.Random(13)
    for _ in range(150):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with contextlib.suppress(AttestationError):
            assert check_ocsp(bytes(data)) in outcomes
