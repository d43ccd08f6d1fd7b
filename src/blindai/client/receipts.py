"""Ask for a receipt, and keep it with the evidence that the client itself verified.

Always true: a receipt that is returned was signed by the key of the attested keyset, answers
the nonce of this very request, and speaks of the bytes that were sent and came.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from blindai.channel.keyset import Keyset
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import MAX_RECEIPT_BYTES, Receipt
from blindai.channel.statement import Kind, digest_evidence
from blindai.errors import AttestationError, BindingError, InferenceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.stored import StoredEvidence
    from blindai.client.messages import Response

RECEIPT_HEADER: Final = "x-blindai-receipt"
_NONCE_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class ReceiptRequest:
    """A receipt that is asked for.

    Attributes:
        shown: The evidence that was verified, for which the receipt is to be.
        nonce: Fresh; the receipt has to carry it.
    """

    shown: StoredEvidence
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_SIZE))

    def parameters(self) -> dict[str, object]:
        """Return the parameters that ask for it."""
        evidence = digest_evidence(self.shown.bundle)
        return {
            "receipt": True,
            "receipt_nonce": self.nonce.hex(),
            "receipt_evidence": evidence.hex(),
        }

    def take(
        self, response: Response, kind: Kind, *, model_sha256: str, request_sha256: bytes
    ) -> ReceiptFile:
        """Return the receipt that came, with its evidence, if it is of this request.

        Args:
            response: The server's answer.
            kind: What was asked for.
            model_sha256: Of the model that the answer names, in hexadecimal.
            request_sha256: Of the body that was sent.

        Raises:
            InferenceError: If none came, or none that can be read.
            SignatureError: If another key signed it.
            BindingError: If it is for other keys, or another request.
        """
        receipt = _parse(response.headers.get(RECEIPT_HEADER))
        bundle, stated = self.shown.bundle, receipt.statement
        pairs = {
            "keyset": (stated.keyset_sha256, hashlib.sha256(bundle.keyset).digest()),
            "evidence": (stated.evidence_sha256, digest_evidence(bundle)),
            "kind": (stated.kind, kind),
            "nonce": (stated.nonce, self.nonce),
            "model": (stated.model_sha256, bytes.fromhex(model_sha256)),
            "request": (stated.request_sha256, request_sha256),
            "response": (stated.response_sha256, hashlib.sha256(response.body).digest()),
        }
        wrong = [name for name, (found, expected) in pairs.items() if found != expected]
        if wrong:
            msg = f"the receipt that came is not for this request: it differs in {', '.join(wrong)}"
            raise BindingError(msg)
        receipt.check_signature(_receipt_key(bundle.keyset))
        return ReceiptFile((receipt,), bundle, self.shown.nonce)


def request_receipt(shown: StoredEvidence, *, wanted: bool) -> ReceiptRequest | None:
    """Return the request for a receipt of the keys in `shown`, if one is wanted."""
    return ReceiptRequest(shown) if wanted else None


# A keyset serves for hours, and takes longer to read than a signature to check.
@lru_cache(maxsize=16)
def _receipt_key(keyset: bytes) -> bytes:
    return Keyset.parse(keyset).receipt_public_key


def digest_body(parts: Sequence[bytes | memoryview]) -> bytes:
    """Return the SHA-256 of a body that is in parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _parse(text: str | None) -> Receipt:
    if text is None:
        msg = "the server sent no receipt: it is older than receipts, or something removed it"
        raise InferenceError(msg)
    try:
        data = base64.b64decode(text[: 2 * MAX_RECEIPT_BYTES], validate=True)
        return Receipt.parse(data)
    except (binascii.Error, ValueError, AttestationError) as error:
        msg = "the server's receipt is malformed"
        raise InferenceError(msg) from error
