"""TLS ends at the attested key, in the newest version only, and no key touches a disk."""

import os
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from blindai.channel.tls import (
    SERVER_NAME,
    check_peer,
    create_certificate,
    pinned_context,
    public_key_of,
    server_context,
    unverified_context,
)
from blindai.errors import BindingError, ConfigurationError, EvidenceError
from tests.attestation.pki import Authority, issue

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ["localhost", "127.0.0.1", "::1", "models.example.org"]


def certify(key, **options):
    """Return a certificate of `key` that holds now: OpenSSL asks the clock."""
    options = {"names": NAMES, "not_before": NOW - timedelta(hours=1)} | options
    return create_certificate(key, not_after=NOW + timedelta(hours=1), **options)


KEY = ec.generate_private_key(ec.SECP256R1())
CERTIFICATE = certify(KEY)


class Ends:
    """The two ends of a TLS connection in memory."""

    def __init__(self, client, server):
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)

    def connect(self):
        """Shake hands; raises what the first end that refuses raises."""
        waiting = [self.client, self.server]
        for _ in range(10):
            for end in list(waiting):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(end)
            if not waiting:
                return self
        msg = "the handshake does not end"
        raise AssertionError(msg)


def tls12_client():
    """Return a client that speaks TLS 1.2 at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def tls12_server(key, certificate, path):
    """Return a server that speaks TLS 1.2 at most."""
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + ssl.DER_cert_to_PEM_cert(certificate).encode()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(path)
    return context


def test_pinned():
    """A client with the attested certificate talks TLS 1.3 to the attested key."""
    ends = Ends(pinned_context(CERTIFICATE), server_context(KEY, CERTIFICATE)).connect()
    assert ends.client.version() == "TLSv1.3"
    assert ends.client.getpeercert(binary_form=True) == CERTIFICATE
    assert ends.client.selected_alpn_protocol() == "http/1.1"
    ends.client.write(b"request")
    assert ends.server.read() == b"request"


def test_another_key_under_the_same_names():
    """A certificate with the same names, times and subject but another key is refused."""
    mallory = ec.generate_private_key(ec.SECP256R1())
    ends = Ends(pinned_context(CERTIFICATE), server_context(mallory, certify(mallory)))
    with pytest.raises(ssl.SSLCertVerificationError):
        ends.connect()


def test_a_public_authority_plays_no_part(tmp_path):
    """A certificate for the right names of any authority in the system's store is refused."""
    authority = issue("authority", not_after=NOW + timedelta(days=1))
    mallory = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME), x509.DNSName("localhost")])
    signed = issue(
        SERVER_NAME,
        authority,
        key=mallory,
        ca=False,
        extensions=[(san, False)],
        not_after=NOW + timedelta(days=1),
    )
    store = tmp_path / "authorities.pem"
    store.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(store))
        context = pinned_context(CERTIFICATE)
    server = server_context(mallory, signed.certificate.public_bytes(Encoding.DER))
    with pytest.raises(ssl.SSLCertVerificationError):
        Ends(context, server).connect()


def test_a_certificate_that_the_attested_key_did_not_sign():
    """The attested key in a certificate of somebody else's authority makes nobody trusted."""
    authority = issue("authority", not_after=NOW + timedelta(days=1))
    crossed = issue("x", authority, key=KEY, ca=False, not_after=NOW + timedelta(days=1))
    crossed = crossed.certificate.public_bytes(Encoding.DER)
    check_peer(crossed, public_key_of(CERTIFICATE))
    mallory = ec.generate_private_key(ec.SECP256R1())
    for names in (NAMES, ["x"]):
        server = server_context(mallory, certify(mallory, names=names))
        with pytest.raises(ssl.SSLCertVerificationError):
            Ends(pinned_context(crossed), server).connect()


def test_the_attested_key_as_an_authority():
    """A pinned certificate that calls itself a CA opens no door for keys it did not sign."""
    ca = issue("ca", key=KEY, not_after=NOW + timedelta(days=1))
    impostor = issue(
        "leaf",
        Authority(ca.certificate, ec.generate_private_key(ec.SECP256R1())),
        key=ec.generate_private_key(ec.SECP256R1()),
        ca=False,
        not_after=NOW + timedelta(days=1),
    )
    server = server_context(impostor.key, impostor.certificate.public_bytes(Encoding.DER))
    with pytest.raises(ssl.SSLCertVerificationError):
        Ends(pinned_context(ca.certificate.public_bytes(Encoding.DER)), server).connect()


def test_a_second_certificate_cannot_ride_along():
    """DER with another certificate after it is refused before it could become a root."""
    mallory = certify(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(EvidenceError):
        check_peer(CERTIFICATE + mallory, public_key_of(CERTIFICATE))


def test_expired_certificate():
    """OpenSSL refuses the pinned certificate too once its time is over."""
    old = create_certificate(
        KEY,
        names=NAMES,
        not_before=NOW - timedelta(hours=2),
        not_after=NOW - timedelta(hours=1),
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        Ends(pinned_context(old), server_context(KEY, old)).connect()


def test_tls12_is_refused_by_the_server():
    """A client of TLS 1.2 gets no connection."""
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        Ends(tls12_client(), server_context(KEY, CERTIFICATE)).connect()


@pytest.mark.parametrize("context", [pinned_context(CERTIFICATE), unverified_context()])
def test_tls12_is_refused_by_the_client(context, tmp_path):
    """A server of TLS 1.2 gets no data."""
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        Ends(context, tls12_server(KEY, CERTIFICATE, tmp_path / "key.pem")).connect()


def test_no_resumption():
    """The server hands out no tickets: each connection shows its certificate."""
    server = server_context(KEY, CERTIFICATE)
    assert server.num_tickets == 0
    ends = Ends(pinned_context(CERTIFICATE), server).connect()
    ends.server.write(b"x")  # tickets would come with the first data
    ends.client.read()
    assert not ends.client.session.has_ticket


def test_no_key_log(monkeypatch, tmp_path):
    """SSLKEYLOGFILE gets no session keys, on either side."""
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    contexts = (
        pinned_context(CERTIFICATE),
        unverified_context(),
        server_context(KEY, CERTIFICATE),
    )
    assert [context.keylog_filename for context in contexts] == [None] * 3
    Ends(contexts[0], contexts[2]).connect()
    Ends(contexts[1], contexts[2]).connect()
    assert not log.exists()


def test_unverified_shows_the_certificate():
    """Who only asks gets the peer's certificate, to compare it with the evidence."""
    ends = Ends(unverified_context(), server_context(KEY, CERTIFICATE)).connect()
    assert ends.client.getpeercert(binary_form=True) == CERTIFICATE


def open_files():
    """Return where each of our file descriptors leads."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[descriptor.name] = str(descriptor.readlink())
        except OSError:  # the one that lists the folder
            continue
    return found


def test_the_key_is_in_no_file(monkeypatch):
    """OpenSSL reads the key from a sealed memory file that is wiped and closed afterwards."""
    secret = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    seen = []

    def audit(event, arguments):
        if event == "open" and watching:
            seen.append(arguments)

    watching = True
    before = open_files()
    real = os.memfd_create
    copies = []

    def memory_file(name, flags):
        descriptor = real(name, flags)
        copies.append(os.dup(descriptor))
        return descriptor

    monkeypatch.setattr(os, "memfd_create", memory_file)
    sys.addaudithook(audit)
    server_context(KEY, CERTIFICATE)
    watching = False
    (copy,) = copies
    try:
        assert str(Path(f"/proc/self/fd/{copy}").readlink()).startswith("/memfd:blindai")
        assert not any(os.pread(copy, 4096, 0)), "the key was not wiped"
        with pytest.raises(PermissionError):
            os.pwrite(copy, b"other key", 0)
        assert not os.get_inheritable(copy)
    finally:
        os.close(copy)
    assert open_files() == before
    assert not [path for path in seen if "w" in str(path[1])]
    assert secret not in b"".join(str(path).encode() for path in seen)


def test_the_key_is_wiped_when_loading_fails(monkeypatch):
    """A certificate of another key is refused, and the memory file does not outlive that."""
    before = open_files()
    copies = []
    real = os.memfd_create

    def memory_file(name, flags):
        descriptor = real(name, flags)
        copies.append(os.dup(descriptor))
        return descriptor

    monkeypatch.setattr(os, "memfd_create", memory_file)
    with pytest.raises(ssl.SSLError, match=r"(?i)mismatch"):
        server_context(ec.generate_private_key(ec.SECP256R1()), CERTIFICATE)
    try:
        assert not any(os.pread(copies[0], 4096, 0)), "the key was not wiped"
    finally:
        os.close(copies[0])
    assert open_files() == before


def test_certificate():
    """The certificate names what strict libraries look for, and is no CA."""
    parsed = x509.load_der_x509_certificate(CERTIFICATE)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        SERVER_NAME,
        "localhost",
        "models.example.org",
    ]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert parsed.subject == parsed.issuer
    assert certify(KEY) != CERTIFICATE, "serial numbers are random"


def test_certificate_without_names():
    """A server without names still has a certificate that OpenSSL takes."""
    certificate = certify(KEY, names=[])
    Ends(pinned_context(certificate), server_context(KEY, certificate)).connect()


@pytest.mark.parametrize("name", ["mod\N{LATIN SMALL LETTER E WITH ACUTE}le.example", "é"])
def test_impossible_name(name):
    """A name that no certificate can carry is a matter of settings."""
    with pytest.raises(ConfigurationError, match="punycode"):
        certify(KEY, names=[name])


def test_check_peer():
    """A peer passes only with the attested key, in whatever certificate."""
    key = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public_key_of(CERTIFICATE) == key
    check_peer(CERTIFICATE, key)
    check_peer(certify(KEY, names=[]), key)
    with pytest.raises(BindingError, match="somebody stands between"):
        check_peer(certify(ec.generate_private_key(ec.SECP256R1())), key)
    with pytest.raises(EvidenceError):
        check_peer(b"", key)
