"""Keys in a TPM: endorsement key, attestation key, and the key that seals.

- The endorsement key (EK) is made anew from the TPM's seed each time it is needed, by the
  template that its certificate is for.
- The attestation key (AK) is made once, under the EK, and kept in the TPM at a persistent
  handle: ECDSA P-256, restricted to what the TPM itself says.
- The sealing key is never kept: it is the answer of an HMAC key that the TPM derives from its
  owner seed and a policy over PCRs. With other PCRs the TPM refuses to use that key; by
  another policy, or in another TPM, it is another key. It crosses the bus to the TPM in clear.

Specification: TCG EK Credential Profile for TPM 2.0 (templates L-1, L-2); TPM 2.0 Library,
Part 1 §24 (credential protection) and §27 (derivation from seeds), Part 3 §23.7 (PolicyPCR).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from blindai.attesters.tpm.device import Selection, TpmConnection, select
from blindai.errors import AttestationError, ConfigurationError
from blindai.platforms.tpm.keys import check_attributes, parse_key

if TYPE_CHECKING:
    from collections.abc import Iterator

# Outside the ranges that the TCG keeps for storage keys (0x8100_0000) and for endorsement
# keys (0x8101_0000).
ATTESTATION_KEY: Final = 0x81020B1A
_EK_KINDS: Final = ("EK-RSA2048", "EK-ECC256")
_NV_DEFINED: Final = 0x14C
_DER_SEQUENCE: Final = 0x30
_DER_LONG: Final = 0x82
_SEALING_PURPOSE: Final = b"blindai sealing key v1"


def open_endorsement_key(connection: TpmConnection) -> tuple[Any, bytes, bytes | None]:
    """Make the EK, of the first kind that has a certificate, else RSA.

    Returns:
        Its handle, TPM2B_PUBLIC, and certificate in DER, where the TPM holds one.
    """
    tss = connection.tss

    def read(index: int) -> bytes:
        content = connection.read_nv(int(index))
        if content is None:
            raise tss.utils.NoSuchIndex(index)
        return content

    offers = [tss.utils.create_ek_template(kind, read) for kind in _EK_KINDS]
    certificate, template = next((o for o in offers if o[0] is not None), offers[0])
    handle, public, *_ = connection.esapi.create_primary(
        tss.TPM2B_SENSITIVE_CREATE(), template, primary_handle=tss.ESYS_TR.ENDORSEMENT
    )
    connection.keep(handle)
    found = None if certificate is None else _without_padding(bytes(certificate))
    return handle, public.marshal(), found


def open_attestation_key(connection: TpmConnection, handle: int) -> tuple[Any, bytes]:
    """Return the AK that is kept at `handle`, and its TPM2B_PUBLIC; make it if there is none.

    Raises:
        ConfigurationError: If something else is kept there.
    """
    found = connection.find(handle)
    if found is None:
        found = _make_attestation_key(connection, handle)
    public, *_ = connection.esapi.read_public(found)
    encoded: bytes = public.marshal()
    try:
        key = parse_key(encoded)
        check_attributes(key.attributes or 0)
    except AttestationError as error:
        msg = f"the TPM's handle {handle:#x} is taken by another kind of key: {error}"
        raise ConfigurationError(msg) from error
    return found, encoded


def activate(
    connection: TpmConnection, handle: int, credential: bytes, encrypted_secret: bytes
) -> bytes:
    """Return the secret in a credential for the EK and the AK of this TPM together.

    Raises:
        ConfigurationError: If it is malformed, or of another TPM or AK.
    """
    tss = connection.tss
    try:
        blob, _ = tss.TPM2B_ID_OBJECT.unmarshal(credential)
        secret, _ = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
    except (tss.TSS2_Exception, ValueError, TypeError) as error:
        msg = f"credential: malformed ({error})"
        raise ConfigurationError(msg) from error
    key, _ = open_attestation_key(connection, handle)
    endorsement, *_ = open_endorsement_key(connection)
    with _endorsement_session(connection) as session:
        return bytes(
            connection.esapi.activate_credential(key, endorsement, blob, secret, session2=session)
        )


def derive_sealing_key(connection: TpmConnection, pcrs: Selection) -> bytes:
    """Return 32 bytes that this TPM gives out only while `pcrs` hold what they hold now."""
    tss, esapi = connection.tss, connection.esapi
    digest = pcr_policy(connection, tss.TPM2_SE.TRIAL, pcrs, esapi.policy_get_digest)
    handle, *_ = esapi.create_primary(
        tss.TPM2B_SENSITIVE_CREATE(),
        _hmac_template(tss, digest),
        primary_handle=tss.ESYS_TR.OWNER,
    )
    connection.keep(handle)
    key = pcr_policy(
        connection,
        tss.TPM2_SE.POLICY,
        pcrs,
        lambda session: esapi.hmac(handle, _SEALING_PURPOSE, tss.TPM2_ALG.SHA256, session1=session),
    )
    return bytes(key)


def _make_attestation_key(connection: TpmConnection, handle: int) -> Any:
    tss, esapi = connection.tss, connection.esapi
    attributes = tss.TPMA_OBJECT
    template = tss.TPM2B_PUBLIC.parse(
        "ecc256:ecdsa-sha256:null",
        objectAttributes=attributes.FIXEDTPM
        | attributes.FIXEDPARENT
        | attributes.SENSITIVEDATAORIGIN
        | attributes.USERWITHAUTH
        | attributes.RESTRICTED
        | attributes.SIGN_ENCRYPT
        | attributes.NODA,
    )
    parent, *_ = open_endorsement_key(connection)
    with _endorsement_session(connection) as session:
        private, public, *_ = esapi.create(
            parent, tss.TPM2B_SENSITIVE_CREATE(), template, session1=session
        )
    with _endorsement_session(connection) as session:
        key = connection.keep(esapi.load(parent, private, public, session1=session))
    connection.flush(parent)
    try:
        return esapi.evict_control(tss.ESYS_TR.OWNER, key, handle)
    except tss.TSS2_Exception as error:
        # Another process was faster: its key is as good.
        if error.error == _NV_DEFINED and (found := connection.find(handle)) is not None:
            return found
        raise


@contextlib.contextmanager
def _endorsement_session(connection: TpmConnection) -> Iterator[Any]:
    """Open what the EK's policy asks for: a session that knows the hierarchy's password."""
    tss = connection.tss
    session = start_session(connection, tss.TPM2_SE.POLICY)
    connection.esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
    yield session
    connection.flush(session)


def pcr_policy(connection: TpmConnection, kind: Any, pcrs: Selection, use: Any) -> Any:
    """Return what `use` does with a session whose policy is the PCRs as they are now."""
    session = start_session(connection, kind)
    connection.esapi.policy_pcr(
        session, connection.tss.TPM2B_DIGEST(), select(connection.tss, pcrs)
    )
    result = use(session)
    connection.flush(session)
    return result


def start_session(connection: TpmConnection, kind: Any) -> Any:
    """Return a new session of this kind; it is flushed with the connection."""
    tss = connection.tss
    return connection.keep(
        connection.esapi.start_auth_session(
            tpm_key=tss.ESYS_TR.NONE,
            bind=tss.ESYS_TR.NONE,
            session_type=kind,
            symmetric=tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL),
            auth_hash=tss.TPM2_ALG.SHA256,
        )
    )


def _hmac_template(tss: Any, policy: Any) -> Any:
    attributes = tss.TPMA_OBJECT
    return tss.TPM2B_PUBLIC.parse(
        "hmac:sha256",
        # Without USERWITHAUTH the policy is the only way to use it.
        objectAttributes=attributes.FIXEDTPM
        | attributes.FIXEDPARENT
        | attributes.SENSITIVEDATAORIGIN
        | attributes.SIGN_ENCRYPT
        | attributes.NODA,
        authPolicy=bytes(policy),
    )


def _without_padding(certificate: bytes) -> bytes:
    # An NV index has a fixed size, and some vendors fill it up behind the certificate.
    if certificate[:2] != bytes([_DER_SEQUENCE, _DER_LONG]):
        return certificate
    return certificate[: 4 + int.from_bytes(certificate[2:4])]
