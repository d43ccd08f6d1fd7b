"""Client certificates, over real TLS: who leads to the operator's authority is let in."""

import http.client
import ssl
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blindai.channel.tls import check_authorities
from blindai.errors import AccessDenied, ConfigurationError
from blindai.server.access.certificates import Certificates
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Holder, Quota
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.talk import ask

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def subject(name):
    """Return a name with a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Issues client certificates."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = subject("operator's authority")
        ski = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "encipher_only", "decipher_only"), False
        )  # fmt: skip
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), 1, NOW - DAY, NOW + 9 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(ski, critical=False)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name, *, san=(), ends=DAY, purpose=ExtendedKeyUsageOID.CLIENT_AUTH):
        """Return a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = x509.CertificateBuilder(
            self.certificate.subject, subject(name), key.public_key(),
            x509.random_serial_number(), NOW - 2 * DAY, NOW + ends,
        )  # fmt: skip
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(aki, critical=False)
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def revoke(self, *certificates):
        """Return a revocation list."""
        builder = x509.CertificateRevocationListBuilder(
            self.certificate.subject, NOW - DAY, NOW + DAY
        )
        for each in certificates:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder(each.serial_number, NOW - DAY).build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


OURS, THEIRS = Authority(), Authority()
LAB = OURS.issue("whatever", san=[x509.DNSName("lab.example")])
REVOKED = OURS.issue("lab-2")


@pytest.fixture(scope="module")
def server():
    """A server that knows two holders."""
    rules = AccessRules(
        public=frozenset(),
        listed=False,
        client_ca=OURS.pem,
        client_crl=OURS.revoke(REVOKED[0]),
        holders=(
            Holder(name="lab.example", tenant="acme", scopes=frozenset(Scope)),
            Holder(name="lab-2"),
        ),
        tenants={"acme": Quota()},
    )
    with start_server(models={"m": identity()}, config={"access": rules}) as running:
        yield running


def shown(tmp_path, certificate, key):
    """Return a context that shows a certificate."""
    path = tmp_path / "client.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(path)
    return context


def talk(server, context, method="GET", path="/blindai/v1/models", body=None, headers=None):
    """Send one request with a certificate."""
    host, port = server.address.rsplit(":", 1)
    with closing(http.client.HTTPSConnection(host, int(port), context=context, timeout=20)) as line:
        return ask(line, method, path, body, headers)


def test_a_holder_is_let_in(server, tmp_path):
    """A certificate's holder does what they may, as their tenant."""
    context = shown(tmp_path, *LAB)
    assert talk(server, context, "PUT", "/blindai/v1/models/mine", identity()).status == 201
    listed = talk(server, context).json()["models"]
    assert [model["name"] for model in listed] == ["mine"]


def test_a_stranger_with_a_good_certificate_is_nobody(server, tmp_path):
    """A certificate of our authority that no holder has opens what is open, and no more."""
    stranger = OURS.issue("lab.example", san=[x509.DNSName("other.example")])
    assert talk(server, shown(tmp_path, *stranger)).status == 401


REFUSED = {
    "another authority": THEIRS.issue("x", san=[x509.DNSName("lab.example")]),
    "expired": OURS.issue("x", san=[x509.DNSName("lab.example")], ends=-DAY),
    "revoked": REVOKED,
    "for servers": OURS.issue(
        "x", san=[x509.DNSName("lab.example")], purpose=ExtendedKeyUsageOID.SERVER_AUTH
    ),
}


@pytest.mark.parametrize("pair", REFUSED.values(), ids=REFUSED)
def test_refused_in_the_handshake(server, tmp_path, pair):
    """Another authority, an end, a revocation or another purpose ends the connection."""
    with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
        talk(server, shown(tmp_path, *pair))
    assert talk(server, shown(tmp_path, *LAB)).status == 200


def test_no_certificate_is_no_proof(server):
    """Who shows none is asked for a token."""
    assert talk(server, ssl._create_unverified_context()).status == 401


def der(pair):
    """Return a certificate as the server sees it."""
    return pair[0].public_bytes(Encoding.DER)


def test_a_connection_does_not_outlive_its_certificate():
    """A certificate that was good in the handshake is refused once it has expired."""
    known = Certificates([Holder(name="lab.example")])
    assert known.find(der(LAB), now=NOW).name == "lab.example"
    with pytest.raises(AccessDenied, match="expired"):
        known.find(der(LAB), now=NOW + 2 * DAY)


def test_names():
    """A common name counts only without other names; two holders in one are nobody."""
    known = Certificates([Holder(name="a"), Holder(name="b.example")])
    assert known.find(der(OURS.issue("a")), now=NOW).name == "a"
    both = OURS.issue("a", san=[x509.DNSName("b.example"), x509.UniformResourceIdentifier("a")])
    hidden = OURS.issue("a", san=[x509.DNSName("c.example")])
    assert known.find(der(both), now=NOW) is None
    assert known.find(der(hidden), now=NOW) is None
    with pytest.raises(AccessDenied):
        known.find(b"no certificate", now=NOW)


@pytest.mark.parametrize("pem", [b"", b"nothing", OURS.pem[:100], b"\xff"])
def test_authorities_that_are_none(pem):
    """An authority that cannot be read is refused before anything is served."""
    with pytest.raises(ConfigurationError, match="client_ca"):
        check_authorities(pem)
