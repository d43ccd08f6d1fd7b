"""A chain counts only if every link of it holds, and ends at a pinned root."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation import certs
from blindai.attestation.certs import (
    MAX_CERTIFICATE_BYTES,
    MAX_CHAIN,
    MAX_CRL_BYTES,
    check_crl,
    find_anchor,
    name_of,
    parse_certificate,
    parse_certificates,
    parse_crl,
    verify_chain,
    verify_revocation,
)
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from tests.attestation.pki import (
    NOW,
    YEAR,
    Authority,
    der,
    issue,
    p256,
    pem,
    pss,
    revocation_list,
    rsa_key,
    usage,
)

ROOT = issue("root")
CA = issue("ca", ROOT)
LEAF = issue("leaf", CA, ca=False)
OID = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
# Made with `openssl req -x509 -sha1`, since `cryptography` signs nothing with SHA-1.
SHA1_ROOT = bytes.fromhex(
    "308201733082011aa00302010202142866355361b2668b75559adaebd755a275f6222c300906072a"
    "8648ce3d0401300f310d300b06035504030c04736861313020170d3236313132343036303335375a"
    "180f32303831303832373036303335375a300f310d300b06035504030c0473686131305930130607"
    "2a8648ce3d020106082a8648ce3d030107034200045710f7808c3dcfd3fad2426ccda219f511ebf8"
    "39dd5155a40d6ab976f5d9ddecf06b8afc34fca4574a27cf4b5367d8823ef668cc6955bad118a7f0"
    "97c83a0393a3533051301d0603551d0e0416041411ecbf7f74e189a04df235806e5244c93a0c1243"
    "301f0603551d2304183016801411ecbf7f74e189a04df235806e5244c93a0c1243300f0603551d13"
    "0101ff040530030101ff300906072a8648ce3d04010348003045022100b57e07738e17104807b6fc"
    "5b71bf32b5b54ce40cb2f9dda8a4ecf92c31aedda702203e48f4ec3b35efb3daa5dd67afb86de1fb"
    "f8d54b5cc0bbae3065389c2c5a8709"
)
UNKNOWN = x509.UnrecognizedExtension(OID, b"\x05\x00")


def chain(leaf, *others, anchors=(ROOT,), now=NOW, **options):
    """Verify a chain of `Authority`s."""
    return verify_chain(
        leaf.certificate,
        [other.certificate for other in others],
        anchors=[anchor.anchor for anchor in anchors],
        now=now,
        **options,
    )


def test_good_chain():
    """The path goes from the leaf to the root, in whatever order certificates came."""
    path = [LEAF.certificate, CA.certificate, ROOT.certificate]
    stranger = issue("stranger")
    assert chain(LEAF, CA, ROOT) == path
    assert chain(LEAF, stranger, ROOT, LEAF, CA, CA) == path


def test_pinned_in_the_middle():
    """Whatever certificate is pinned ends the path; a pinned leaf is a path by itself."""
    assert chain(LEAF, CA, anchors=[CA]) == [LEAF.certificate, CA.certificate]
    assert chain(LEAF, anchors=[LEAF]) == [LEAF.certificate]


def test_wrong_root():
    """A self-signed root that is not pinned is nothing, whatever its name."""
    impostor = issue("root", key=p256("impostor"))
    false_ca = issue("ca", impostor)
    with pytest.raises(SignatureError, match="no pinned root"):
        chain(issue("leaf", false_ca, ca=False), false_ca, impostor)
    with pytest.raises(SignatureError, match="not signed by CN=root"):
        chain(issue("leaf", false_ca, ca=False), false_ca, ROOT)
    with pytest.raises(SignatureError, match="no pinned root"):
        chain(LEAF, CA, ROOT, anchors=[])


def test_wrong_signer():
    """A certificate that only names its issuer is refused."""
    forged = issue("leaf", Authority(CA.certificate, p256("mallory")), ca=False)
    with pytest.raises(SignatureError, match="not signed by CN=ca"):
        chain(forged, CA, ROOT)


def test_missing_intermediate():
    """A gap in the chain is named."""
    with pytest.raises(SignatureError, match="CN=leaf: no certificate of its issuer CN=ca"):
        chain(LEAF, ROOT)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("validity", "why"),
    [
        ({"not_after": NOW - timedelta(seconds=1)}, "expired"),
        ({"not_before": NOW + timedelta(seconds=1)}, "not valid before"),
    ],
)
def test_validity(place, validity, why):
    """Each certificate of the path has to be valid now, the root too."""
    options = [{}, {}, {}]
    options[place] = validity
    root = issue("root", **options[2])
    ca = issue("ca", root, **options[1])
    leaf = issue("leaf", ca, ca=False, **options[0])
    with pytest.raises(EndorsementError, match=why):
        chain(leaf, ca, root, anchors=[root])


def test_validity_bounds():
    """Both ends of the validity belong to it (RFC 5280 §4.1.2.5)."""
    for moment in (NOW - YEAR, NOW + YEAR):
        assert len(chain(LEAF, CA, ROOT, now=moment)) == 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ca": False, "key_usage": None}, "is no CA"),
        ({"constraints": False}, "is no CA"),
        ({"key_usage": usage(sign=True)}, "does not allow issuing"),
        ({"extensions": [(UNKNOWN, True)]}, "99999.1 is not understood"),
        (
            {"extensions": [(x509.NameConstraints([x509.DNSName("a")], None), True)]},
            "not understood",
        ),
        ({"key": ec.generate_private_key(ec.SECP256K1())}, "neither RSA"),
        ({"key": rsa_key(1024)}, "neither RSA"),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, "too weak or unknown"),
    ],
)
def test_unfit_issuer(options, why):
    """A certificate that may not issue others ends the chain."""
    ca = issue("ca", ROOT, **options)
    with pytest.raises(SignatureError, match=why):
        chain(issue("leaf", ca, ca=False), ca, ROOT)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"key_usage": usage(certs=True)}, "does not allow signatures"),
        ({"extensions": [(UNKNOWN, True)]}, "99999.1 is not understood"),
        ({"key": ec.generate_private_key(ec.SECP224R1())}, "neither RSA"),
        ({"key": rsa_key(1024)}, "neither RSA"),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, "neither RSA"),
    ],
)
def test_unfit_leaf(options, why):
    """A leaf that may not sign, or whose key is weak, is refused."""
    with pytest.raises(SignatureError, match=why):
        chain(issue("leaf", CA, ca=False, **options), CA, ROOT)


def test_weak_hash():
    """SHA-1 and SHA-224 are refused wherever they stand in the path."""
    sha224 = issue("leaf", CA, ca=False, algorithm=hashes.SHA224())
    with pytest.raises(SignatureError, match="too weak"):
        chain(sha224, CA, ROOT)
    sha1 = Authority(parse_certificate(SHA1_ROOT), None)
    with pytest.raises(SignatureError, match="too weak"):
        chain(sha1, anchors=[sha1], now=NOW + YEAR)


def test_leaf_without_extensions():
    """AMD's and others' leaves carry no key usage: it restricts where it is, and only there."""
    plain = issue("leaf", CA, ca=False, key_usage=None, constraints=False)
    assert len(chain(plain, CA, ROOT)) == 3


def test_understood_extension():
    """A critical extension that the caller checks is accepted, in the leaf alone."""
    leaf = issue("leaf", CA, ca=False, extensions=[(UNKNOWN, True)])
    assert len(chain(leaf, CA, ROOT, understood=frozenset({OID}))) == 3
    ca = issue("ca", ROOT, extensions=[(UNKNOWN, True)])
    with pytest.raises(SignatureError, match="not understood"):
        chain(issue("leaf", ca, ca=False), ca, ROOT, understood=frozenset({OID}))


def test_path_length():
    """A CA that may issue leaves only cannot issue another CA."""
    ca = issue("ca", ROOT, path_length=0)
    sub = issue("sub", ca)
    assert len(chain(issue("leaf", ca, ca=False), ca, ROOT)) == 3
    with pytest.raises(SignatureError, match="path length is 0, found 1"):
        chain(issue("leaf", sub, ca=False), sub, ca, ROOT)
    root = issue("root", path_length=0)
    below = issue("ca", root)
    with pytest.raises(SignatureError, match="path length is 0, found 1"):
        chain(issue("leaf", below, ca=False), below, root, anchors=[root])


def test_a_leaf_issues_nothing():
    """Whoever holds a leaf's key cannot make another leaf with it."""
    with pytest.raises(SignatureError, match="CN=leaf: issues certificates, but is no CA"):
        chain(issue("other", LEAF, ca=False), LEAF, CA, ROOT)


def test_loops():
    """Certificates that issue each other end in an error, not in a loop."""
    a, b = p256("loop a"), p256("loop b")
    first = issue("a", Authority(issue("b", key=b).certificate, b), key=a)
    second = issue("b", Authority(issue("a", key=a).certificate, a), key=b)
    with pytest.raises(SignatureError, match="no pinned root"):
        chain(issue("leaf", first, ca=False), first, second)
    with pytest.raises(SignatureError, match="no pinned root"):
        chain(issue("self"))


def test_longest_chain():
    """Eight certificates are a chain, nine are not."""
    authorities = [ROOT]
    for depth in range(MAX_CHAIN - 1):
        authorities.append(issue(f"ca {depth}", authorities[-1]))
    *shorter, longest = authorities
    assert len(chain(issue("leaf", shorter[-1], ca=False), *authorities)) == MAX_CHAIN
    with pytest.raises(SignatureError, match="longer than 8"):
        chain(issue("leaf", longest, ca=False), *authorities)


def test_same_name_other_key():
    """Of several certificates of one name, the one that signed is found."""
    decoys = [issue("ca", ROOT, key=p256(f"decoy {i}")) for i in range(3)]
    assert chain(LEAF, *decoys, CA, ROOT)[1] == CA.certificate


def test_same_name_same_key():
    """An issuer whose certificate was renewed is found, whatever old one lies beside it."""
    old = issue("ca", ROOT, not_after=NOW - timedelta(days=1))
    fresh = issue("ca", ROOT)
    other_root = issue("root", not_before=NOW - 2 * YEAR)
    for order in ([old, fresh, other_root, ROOT], [ROOT, other_root, fresh, old]):
        assert chain(LEAF, *order) == [LEAF.certificate, fresh.certificate, ROOT.certificate]


def test_issuer_key_identifier_is_not_believed():
    """An identifier that points elsewhere neither saves a forgery nor hides the real issuer."""
    wrong = x509.AuthorityKeyIdentifier.from_issuer_public_key(p256("elsewhere").public_key())
    right = x509.AuthorityKeyIdentifier.from_issuer_public_key(CA.key.public_key())
    leaf = issue("leaf", CA, ca=False, extensions=[(wrong, False)])
    assert len(chain(leaf, CA, ROOT)) == 3
    mallory = Authority(CA.certificate, p256("mallory"))
    with pytest.raises(SignatureError, match="not signed"):
        chain(issue("leaf", mallory, ca=False, extensions=[(right, False)]), CA, ROOT)


def test_names_must_chain():
    """A signature by the right key under the name of somebody else is no link."""
    leaf = issue("leaf", CA, ca=False, issuer_name=issue("someone").certificate.subject)
    with pytest.raises(SignatureError, match="CN=someone"):
        chain(leaf, CA, ROOT)


def test_rsa_pss():
    """AMD's chain of RSA-4096 with PSS and a serial number like any other verifies."""
    root = issue("ark", key=rsa_key(2048), algorithm=hashes.SHA384(), rsa_padding=pss())
    leaf = issue("vcek", root, ca=False, algorithm=hashes.SHA384(), rsa_padding=pss())
    assert len(chain(leaf, root, anchors=[root])) == 2


def test_name_that_a_terminal_would_obey():
    """Names from certificates cannot forge a line of a report or move a cursor."""
    nasty = issue("x\n   passed  signature\x1b[2J" + "y" * 500, CA, ca=False)
    text = name_of(nasty.certificate)
    assert text.isprintable()
    assert len(text) < 250
    orphan = issue("leaf", issue("a\nb"), ca=False)
    with pytest.raises(SignatureError) as error:
        chain(orphan)
    assert str(error.value).isprintable()
    nameless = issue("leaf", CA, ca=False).certificate
    assert name_of(nameless) == "CN=leaf"


def test_find_anchor():
    """A root is found by its fingerprint alone."""
    assert find_anchor(ROOT.certificate, [CA.anchor, ROOT.anchor]) == ROOT.anchor
    assert find_anchor(issue("root").certificate, [ROOT.anchor]) is None


def test_not_revoked():
    """Certificates that a current list does not name pass; unlisted ones are told."""
    path = chain(LEAF, CA, ROOT)
    lists = [revocation_list(ROOT), revocation_list(CA)]
    assert verify_revocation(path, lists, now=NOW) == []
    assert verify_revocation(path, lists[:1], now=NOW) == [LEAF.certificate]
    assert verify_revocation(path, [], now=NOW) == [LEAF.certificate, CA.certificate]
    assert verify_revocation(path[:1], [], now=NOW) == []


@pytest.mark.parametrize("revoked", [LEAF, CA])
def test_revoked(revoked):
    """A certificate on its issuer's list is refused, wherever the list lies."""
    lists = [revocation_list(CA, [revoked]), revocation_list(ROOT, [revoked])]
    path = chain(LEAF, CA, ROOT)
    for given_lists in (lists, lists[::-1], [*lists, revocation_list(CA), revocation_list(ROOT)]):
        with pytest.raises(EndorsementError, match="revoked by its issuer"):
            verify_revocation(path, given_lists, now=NOW)


def test_serial_of_another_issuer():
    """A serial number counts under its own issuer only."""
    twin = issue("twin", ROOT, ca=False, serial=LEAF.certificate.serial_number)
    lists = [revocation_list(ROOT, [twin]), revocation_list(CA)]
    assert verify_revocation(chain(LEAF, CA, ROOT), lists, now=NOW) == []


PARTIAL = x509.IssuingDistributionPoint(
    full_name=None,
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=True,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


@pytest.mark.parametrize(
    ("crl", "error", "why"),
    [
        (revocation_list(CA, next_update=NOW - timedelta(seconds=1)), EndorsementError, "out of"),
        (revocation_list(CA, last_update=NOW + timedelta(hours=1)), EndorsementError, "before"),
        (revocation_list(CA, key=p256("mallory")), SignatureError, "not signed"),
        (
            revocation_list(ROOT, issuer_name=CA.certificate.subject),
            SignatureError,
            "not signed",
        ),
        (revocation_list(CA, algorithm=hashes.SHA224()), SignatureError, "too weakly"),
        (revocation_list(CA, extensions=[(PARTIAL, True)]), EndorsementError, "2.5.29.28"),
        (
            revocation_list(CA, extensions=[(x509.DeltaCRLIndicator(1), True)]),
            EndorsementError,
            "2.5.29.27",
        ),
        (revocation_list(CA, extensions=[(UNKNOWN, True)]), EndorsementError, "99999.1"),
    ],
)
def test_unusable_list(crl, error, why):
    """A list that is old, forged, weak, or speaks of some certificates only is refused."""
    with pytest.raises(error, match=why):
        verify_revocation(chain(LEAF, CA, ROOT), [crl], now=NOW)


def test_list_of_an_issuer_that_may_not():
    """Only an issuer with the right to sign lists can revoke, or declare unrevoked."""
    ca = issue("ca", ROOT, key_usage=usage(certs=True))
    with pytest.raises(SignatureError, match="does not allow revocation lists"):
        check_crl(revocation_list(ca), ca.certificate, now=NOW)
    no_usage = issue("ca", ROOT, key_usage=None)
    check_crl(revocation_list(no_usage), no_usage.certificate, now=NOW)


def test_list_of_an_unsupported_key():
    """A key that signs no lists here is refused, not passed over."""
    odd = issue("odd", key=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="unsupported key"):
        check_crl(revocation_list(CA), odd.certificate, now=NOW)


def test_list_for_another_key_type():
    """A list signed with RSA is not one of an issuer with an elliptic key."""
    crl = revocation_list(CA, key=rsa_key(2048))
    with pytest.raises(SignatureError, match="not signed"):
        check_crl(crl, CA.certificate, now=NOW)


def test_parse_formats():
    """PEM bundles and single DER certificates are read."""
    assert parse_certificates(pem(LEAF, CA)) == [LEAF.certificate, CA.certificate]
    assert parse_certificates(der(LEAF)) == [LEAF.certificate]
    crl = revocation_list(CA)
    assert parse_crl(crl.public_bytes(Encoding.PEM)) == crl
    assert parse_crl(crl.public_bytes(Encoding.DER)) == crl


def test_too_many_or_too_large():
    """More certificates than a chain has, or larger ones than exist, are refused."""
    with pytest.raises(EvidenceError, match="at most 8"):
        parse_certificates(pem(LEAF) * (MAX_CHAIN + 1))
    with pytest.raises(EvidenceError, match="too many for 8"):
        parse_certificates(pem(LEAF) + b"#" * (MAX_CHAIN * 2 * MAX_CERTIFICATE_BYTES))
    with pytest.raises(EvidenceError, match="at most 16384"):
        parse_certificate(bytes(MAX_CERTIFICATE_BYTES + 1))
    with pytest.raises(EvidenceError, match="at most"):
        parse_crl(bytes(MAX_CRL_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x30\x00", b"-----BEGIN CERTIFICATE-----\n", pem(LEAF)[:-30], der(LEAF) + b"\0"],
)
def test_malformed(data):
    """Whatever is no certificate is `EvidenceError`."""
    with pytest.raises(EvidenceError):
        parse_certificates(data)
    with pytest.raises(EvidenceError):
        parse_crl(data)


def survives(parse, data):
    """Return what `parse` made of `data`, `None` if it refused as it should."""
    try:
        return parse(data)
    except EvidenceError:
        return None


def test_a_warning_is_no_way_around():
    """Where warnings are errors, what `cryptography` only warns about is `EvidenceError` too."""
    with pytest.warns(UserWarning, match="length must be"):
        part = x509.NameAttribute(NameOID.COMMON_NAME, "x" * 65, _validate=False)
    data = der(issue("leaf", CA, ca=False, issuer_name=x509.Name([part])))
    with pytest.raises(EvidenceError, match="UserWarning"):
        parse_certificate(data)


def test_signature_with_unused_bits():
    """A second encoding of the same signature is no second certificate, nor a second list."""
    for parse, data, signature in (
        (parse_certificate, der(CA), CA.certificate.signature),
        (parse_crl, GOOD_CRL.public_bytes(Encoding.DER), GOOD_CRL.signature),
    ):
        spoilt = bytearray(data)
        spoilt[-len(signature) - 1] = 1
        spoilt[-1] &= 0xFE
        with pytest.raises(EvidenceError, match="malformed"):
            parse(bytes(spoilt))


@given(st.binary(max_size=300))
def test_any_bytes(data):
    """No bytes make the parsers raise anything else."""
    survives(parse_certificate, data)
    survives(parse_certificates, data)
    survives(parse_crl, data)


GOOD_CRL = revocation_list(CA, [LEAF], extensions=[(x509.CRLNumber(7), False)])


@given(st.data())
def test_any_mutant(data):
    """A spoilt certificate or list is refused by an error of ours, wherever it is spoilt."""
    kind = data.draw(st.sampled_from(["leaf", "ca", "crl"]))
    good = {"leaf": der(LEAF), "ca": der(CA), "crl": GOOD_CRL.public_bytes(Encoding.DER)}[kind]
    mutant = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    parsed = survives(parse_crl if kind == "crl" else parse_certificate, bytes(mutant))
    if parsed is None or bytes(mutant) == good:
        return
    leaf, ca = LEAF.certificate, CA.certificate
    try:
        if kind == "crl":
            check_crl(parsed, ca, now=NOW)
        else:
            leaf, ca = (parsed, ca) if kind == "leaf" else (leaf, parsed)
            verify_chain(leaf, [ca, ROOT.certificate], anchors=[ROOT.anchor], now=NOW)
    except AttestationError:
        return
    msg = f"{kind} was accepted although it was changed"
    raise AssertionError(msg)


def test_serial_number_zero():
    """AMD's VCEKs have serial number 0: they are read without a warning."""
    data = der(issue("vcek", CA, ca=False, serial=1)).replace(
        b"\x02\x01\x01\x30", b"\x02\x01\0\x30"
    )
    assert certs.parse_certificate(data).serial_number == 0
