"""A secret for the code that is to run next: sealed to the PCRs that it will be measured as.

Always true: the TPM gives it out only while its PCRs hold what was named when it was sealed. It
says nothing about who sealed it: whoever may use the TPM's owner hierarchy can seal something
else to the same PCRs, so what comes out opens a vault and proves no origin.

Specification: TPM 2.0 Library, Part 1 §27 (sealed data objects), Part 3 §12.1 (TPM2_Create),
§12.7 (TPM2_Unseal) and §23.7 (PolicyPCR).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from blindai.attesters.tpm.device import Selection, TpmConnection, select
from blindai.attesters.tpm.keys import pcr_policy, start_session
from blindai.errors import ConfigurationError, SealedDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BLOB: Final = 4096
_MAX_SECRET: Final = 64
_POLICY_FAIL: Final = 0x09D  # Part 2 §6.6.3
_LENGTH: Final = 2


def seal_for(
    connection: TpmConnection, pcrs: Selection, measurements: Mapping[str, bytes], secret: bytes
) -> bytes:
    """Return a blob that this TPM opens while its PCRs are those of the next boot.

    Args:
        connection: To the TPM.
        pcrs: Which count.
        measurements: "pcr9" → value, of those that change; the others are to be as they are now.
        secret: At most 64 bytes.

    Raises:
        ConfigurationError: A measurement that is none of these PCRs, or of another size.
    """
    tss, esapi = connection.tss, connection.esapi
    if len(secret) > _MAX_SECRET:
        msg = f"expected a secret of at most {_MAX_SECRET} bytes, came {len(secret)}"
        raise ConfigurationError(msg)
    digest = _expected(connection, pcrs, measurements)
    session = start_session(connection, tss.TPM2_SE.TRIAL)
    esapi.policy_pcr(session, tss.TPM2B_DIGEST(digest), select(tss, pcrs))
    policy = esapi.policy_get_digest(session)
    connection.flush(session)
    template = tss.TPM2B_PUBLIC.parse(
        "keyedhash",
        objectAttributes=tss.TPMA_OBJECT.FIXEDTPM
        | tss.TPMA_OBJECT.FIXEDPARENT
        | tss.TPMA_OBJECT.NODA,
        authPolicy=bytes(policy),
    )
    sensitive = tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(userAuth=b"", data=secret))
    private, public, *_ = esapi.create(_storage_key(connection), sensitive, template)
    return b"".join(
        len(part).to_bytes(_LENGTH) + part for part in (private.marshal(), public.marshal())
    )


def open_handover(connection: TpmConnection, pcrs: Selection, blob: bytes) -> bytes:
    """Return the secret in a blob, if the PCRs are those that it was sealed to.

    Raises:
        SealedDataError: They are others, or the blob is of another TPM, or malformed.
    """
    tss, esapi = connection.tss, connection.esapi
    try:
        size = int.from_bytes(blob[:_LENGTH])
        private, _ = tss.TPM2B_PRIVATE.unmarshal(blob[_LENGTH : _LENGTH + size])
        public, _ = tss.TPM2B_PUBLIC.unmarshal(blob[2 * _LENGTH + size :])
        handle = connection.keep(esapi.load(_storage_key(connection), private, public))
    except (tss.TSS2_Exception, ValueError, TypeError) as error:
        msg = "what the code before left for its successor is of another TPM, or was changed"
        raise SealedDataError(msg) from error
    try:
        return bytes(
            pcr_policy(
                connection,
                tss.TPM2_SE.POLICY,
                pcrs,
                lambda session: esapi.unseal(handle, session1=session),
            )
        )
    except tss.TSS2_Exception as error:
        if error.error & 0xFFFF != _POLICY_FAIL:
            raise
        msg = "what the code before left is for other code: this machine was measured otherwise"
        raise SealedDataError(msg) from error


def _expected(
    connection: TpmConnection, pcrs: Selection, measurements: Mapping[str, bytes]
) -> bytes:
    """Return the digest of the PCRs as they will be."""
    known = {f"pcr{index}" for indexes in pcrs.values() for index in indexes}
    if set(pcrs) != {"sha256"} or not set(measurements) <= known:
        strange = ", ".join(sorted(set(measurements) - known)) or ", ".join(pcrs)
        msg = f"expected measurements out of {', '.join(sorted(known))}, came {strange[:200]}"
        raise ConfigurationError(msg)
    now = connection.read_registers(pcrs)["sha256"]
    digest = hashlib.sha256()
    for index in pcrs["sha256"]:
        value = measurements.get(f"pcr{index}", now[index])
        if len(value) != len(now[index]):
            msg = f"pcr{index}: expected {len(now[index])} bytes, came {len(value)}"
            raise ConfigurationError(msg)
        digest.update(value)
    return digest.digest()


def _storage_key(connection: TpmConnection) -> Any:
    """Make the owner's storage key, which is the same each time."""
    tss = connection.tss
    template = tss.TPM2B_PUBLIC.parse(
        "ecc256:aes128cfb",
        objectAttributes=tss.TPMA_OBJECT.FIXEDTPM
        | tss.TPMA_OBJECT.FIXEDPARENT
        | tss.TPMA_OBJECT.SENSITIVEDATAORIGIN
        | tss.TPMA_OBJECT.USERWITHAUTH
        | tss.TPMA_OBJECT.RESTRICTED
        | tss.TPMA_OBJECT.DECRYPT
        | tss.TPMA_OBJECT.NODA,
    )
    handle, *_ = connection.esapi.create_primary(
        tss.TPM2B_SENSITIVE_CREATE(), template, primary_handle=tss.ESYS_TR.OWNER
    )
    return connection.keep(handle)
