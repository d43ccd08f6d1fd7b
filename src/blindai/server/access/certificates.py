"""Client certificates: whom a certificate is of, once TLS has verified its chain.

Always true: the chain, its purpose (clientAuth), its revocation and the possession of the
key are TLS's to verify, in the handshake, against the operator's authority alone; a
certificate that fails ends the connection. A connection outlives its certificate by nothing:
the end of its validity is checked with each request.

Specification: RFC 5280 §4.2.1.6 (alternative names), RFC 8446 §4.3.2.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from blindai.attestation.certs import parse_certificate
from blindai.errors import AccessDenied, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.server.access.rules import Holder

_MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class _Known:
    holder: Holder | None
    not_after: datetime


class Certificates:
    """Finds the holders of client certificates. For one event loop.

    Args:
        holders: Who is let in.
    """

    __slots__ = ("_holders", "_remembered")

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = {holder.name: holder for holder in holders}
        self._remembered: OrderedDict[bytes, _Known] = OrderedDict()

    def find(self, certificate: bytes, *, now: datetime) -> Holder | None:
        """Return who holds a certificate; `None`: nobody who is let in.

        Args:
            certificate: DER, whose chain is verified.
            now: The time, in UTC.

        Raises:
            AccessDenied: It has expired since the handshake.
        """
        digest = hashlib.sha256(certificate).digest()
        known = self._remembered.get(digest)
        if known is None:
            known = self._read(certificate)
            self._remembered[digest] = known
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        if now > known.not_after:
            msg = "the client certificate of this connection has expired"
            raise AccessDenied(msg)
        return known.holder

    def _read(self, certificate: bytes) -> _Known:
        try:
            parsed = parse_certificate(certificate, "client certificate")
            names = names_of(parsed)
        except (EvidenceError, ValueError) as error:
            msg = "the client certificate of this connection cannot be read"
            raise AccessDenied(msg) from error
        holders = [self._holders[name] for name in names if name in self._holders]
        return _Known(holders[0] if len(holders) == 1 else None, parsed.not_valid_after_utc)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return what a certificate says its holder is called.

    Its DNS names, URIs and e-mail addresses; its common name only where it has none of these,
    so that an authority that vouches for the former alone is not bypassed.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names = []
    else:
        names = [
            str(name)
            for kind in (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name)
            for name in extension.value.get_values_for_type(kind)
        ]
    if not names:
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in found] if len(found) == 1 else []
    return list(dict.fromkeys(names))
