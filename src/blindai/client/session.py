"""An address and a policy become a channel that ends at an attested key.

Always true: over a connection whose peer is not verified, one request is sent, for evidence,
and nothing of the caller's is in it but a fresh nonce. Every other request goes through
`Channel.ssl_context`, and a `Channel` comes only from a successful `blindai.verify.verify`.

Specification: design.md §4; RFC 9334 §5.1 (the client is Verifier and Relying Party).
"""

from __future__ import annotations

import secrets
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from blindai.attestation import wire
from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.model import (
    AttestationResult,
    EvidenceBundle,
    Mismatch,
    Platform,
)
from blindai.attestation.policy import Acceptance, Policy
from blindai.attestation.steps import Step
from blindai.attestation.stored import StoredEvidence
from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.channel.tls import pinned_context, unverified_context
from blindai.client.address import (
    Address,
    Proxy,
    parse_address,
    parse_proxy,
    proxy_from_environment,
)
from blindai.client.answers import printable, retry_after
from blindai.client.connection import Deadline, open_connection
from blindai.client.failures import explain
from blindai.client.messages import Request, Response
from blindai.errors import (
    AppraisalError,
    BindingError,
    ConfigurationError,
    ConnectionFailed,
    EvidenceError,
    LimitExceeded,
    Overloaded,
)
from blindai.verify import verify

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from blindai.endorsements import Endorser

EVIDENCE_PATH: Final = "/blindai/v1/evidence"
_MAX_TIMEOUT: Final = 86_400.0
_BUSY: Final = frozenset({429, 503})
# What stands in where the caller gave no policy. It accepts nothing: simulated evidence
# always carries a weakness, and this tolerates none.
_NO_POLICY: Final = Policy((Acceptance(Platform.SIMULATION),))


@dataclass(frozen=True, slots=True)
class Channel:
    """A server that was verified, and the only way to talk to it.

    Attributes:
        attestation: What was verified.
        shown: What the server showed for it, to be stored and verified again.
        ssl_context: Shakes hands with the holder of the attested key, and nobody else.
    """

    attestation: AttestationResult
    shown: StoredEvidence
    ssl_context: ssl.SSLContext


class Session:
    """Verifies one server, and again when its keys change or expire. Thread-safe.

    Args:
        address: As in `blindai.client.address.parse_address`.
        policy: What is accepted; `None` accepts nothing, and says what to do.
        proxy: "http://host:port", or `None`.
        trust_env: Whether HTTPS_PROXY and NO_PROXY count where `proxy` is `None`.
        timeout: Seconds for fetching evidence.
        clock: Returns the time, with a time zone.
        anchors: The vendors' roots that count.
        endorser: Completes evidence with what the vendors say; default: one that asks them
            over HTTPS for what the server did not staple. `Endorser()` asks nobody.

    Raises:
        ConfigurationError: If an argument cannot be used.
    """

    def __init__(
        self,
        address: str,
        policy: Policy | None,
        *,
        proxy: str | None = None,
        trust_env: bool = False,
        timeout: float = 60.0,
        clock: Callable[[], datetime] | None = None,
        anchors: Anchors = VENDOR_ROOTS,
        endorser: Endorser | None = None,
    ) -> None:
        if not 0 < timeout <= _MAX_TIMEOUT:
            msg = f"expected a timeout above 0 and up to {_MAX_TIMEOUT:g} seconds, found {timeout}"
            raise ConfigurationError(msg)
        self.address: Address = parse_address(address)
        self.proxy: Proxy | None = None if proxy is None else parse_proxy(proxy)
        if self.proxy is None and trust_env:
            self.proxy = proxy_from_environment(self.address)
        self.policy = policy
        self.timeout = timeout
        self._clock = clock or _now
        self._anchors = anchors
        self._endorser = endorser
        self._lock = threading.Lock()
        self._channel: Channel | None = None

    def channel(self) -> Channel:
        """Return the channel, verifying first where there is none or it no longer holds.

        Raises:
            AttestationError: If the server is not to be trusted.
            ConnectionFailed: If it cannot be reached.
        """
        channel = self.current()
        return self.renew(self._channel) if channel is None else channel

    def current(self) -> Channel | None:
        """Return the channel if there is one that holds now. Never blocks."""
        channel = self._channel
        if channel is not None and channel.attestation.holds_at(self._clock()):
            return channel
        return None

    def renew(self, stale: Channel | None) -> Channel:
        """Verify the server again, with the same policy.

        Args:
            stale: The channel that no longer works. If another thread has replaced it
                already, that one is returned.

        Raises:
            AttestationError: If the server is not, or no longer, to be trusted.
            ConnectionFailed: If it cannot be reached.
        """
        with self._lock:
            current = self.current()
            if current is not None and current is not stale:
                return current
            attestation, shown = self._attest()
            channel = Channel(attestation, shown, pinned_context(attestation.certificate))
            self._channel = channel
            return channel

    def fetch_evidence(self, nonce: bytes) -> tuple[EvidenceBundle, bytes]:
        """Ask the server for evidence: untrusted, whatever it says.

        Args:
            nonce: 32 bytes.

        Returns:
            The bundle, and the DER certificate that the TLS peer of that very connection
            presented.

        Raises:
            EvidenceError: If what comes is no evidence, or too large.
            Overloaded: If the server gives no fresh evidence now.
            ConnectionFailed: If the server cannot be reached, or has none to give.
        """
        deadline = Deadline(self.timeout)
        request = Request(
            "GET", f"{EVIDENCE_PATH}?nonce={nonce.hex()}", {"Accept": wire.MEDIA_TYPE}
        )
        connection = open_connection(self.address, unverified_context(), deadline, self.proxy)
        try:
            peer = _peer_certificate(connection.sock)
            response, _ = connection.exchange(request, deadline, wire.MAX_BUNDLE_BYTES)
        except LimitExceeded as error:
            msg = f"evidence bundle: at most {wire.MAX_BUNDLE_BYTES} bytes are accepted, came more"
            raise EvidenceError(msg) from error
        except OSError as error:
            raise explain(error, self.address, self.proxy, self.timeout) from error
        finally:
            connection.close()
        self._check_evidence_response(response)
        return wire.parse_bundle(bytes(response.body)), peer

    def _attest(self) -> tuple[AttestationResult, StoredEvidence]:
        nonce = secrets.token_bytes(NONCE_SIZE)
        shown, peer = self.fetch_evidence(nonce)
        if self._endorser is None:
            # Only who verifies waits for importing what knows the vendors' formats.
            from blindai.endorsements import Endorser, HttpsGet  # noqa: PLC0415

            self._endorser = Endorser(get=HttpsGet())
        completed = self._endorser.complete(shown, self._clock())
        bundle = completed.bundle
        # After it: what a vendor has just signed would otherwise be of the future.
        now = self._clock()
        policy = _NO_POLICY if self.policy is None else self.policy
        try:
            result = verify(
                bundle,
                policy,
                nonce=nonce,
                now=now,
                peer_certificate=peer,
                anchors=self._anchors,
                endorsed=completed.endorsed,
            )
        except AppraisalError as error:
            if self.policy is not None or bundle.evidence.platform is Platform.SIMULATION:
                raise
            raise self._policy_missing(bundle.evidence.platform, error) from error
        if not result.holds_at(now):
            msg = (
                f"what the evidence rests on expired at {result.not_after:%Y-%m-%d %H:%M:%S}Z, "
                f"now it is {now:%Y-%m-%d %H:%M:%S}Z"
            )
            raise BindingError(msg)
        return result, StoredEvidence(bundle, nonce, peer)

    def _policy_missing(self, platform: Platform, error: AppraisalError) -> AppraisalError:
        msg = (
            f"genuine {platform} hardware, but which code may run there was not said. Pass "
            f'policy="policy.toml"; `blindai policy from-server {self.address}` writes one from '
            "what this server shows, for you to compare with what you expect"
        )
        missing = AppraisalError(msg, [Mismatch("policy", "a policy", "none")])
        for step in error.steps:
            if isinstance(step, Step) and step.status == "failed":
                step.detail = msg
        missing.steps = error.steps
        return missing

    def _check_evidence_response(self, response: Response) -> None:
        status = response.status
        if status in _BUSY:
            msg = f"{self.address} gives no fresh evidence now (HTTP status {status})"
            raise Overloaded(msg, retry_after=retry_after(response.headers))
        if status != 200:  # noqa: PLR2004
            why = "redirects are never followed" if 300 <= status < 400 else "is it BlindAI's?"  # noqa: PLR2004
            msg = f"{self.address} answered the request for evidence with HTTP {status}: {why}"
            raise ConnectionFailed(msg)
        kind = response.headers.get("content-type", "nothing")
        if kind != wire.MEDIA_TYPE:
            msg = (
                f"expected {wire.MEDIA_TYPE}, came {printable(kind)[:100]}: is it a BlindAI server?"
            )
            raise EvidenceError(msg)


def resolve_policy(
    policy: Policy | str | os.PathLike[str] | None, *, simulation: bool
) -> Policy | None:
    """Return the policy that a caller's arguments mean.

    Raises:
        ConfigurationError: If they contradict each other.
        PolicyError: If the file cannot be used.
    """
    if simulation and policy is not None:
        msg = "simulation=True is a policy of its own: pass either it or policy=…, not both"
        raise ConfigurationError(msg)
    if simulation:
        return Policy.simulation()
    if policy is None or isinstance(policy, Policy):
        return policy
    return Policy.load(policy)


def _peer_certificate(sock: object) -> bytes:
    found = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
    if found is None:  # TLS 1.3 without a certificate is TLS with a shared key, never offered
        msg = "the TLS peer presented no certificate"
        raise EvidenceError(msg)
    return found


def _now() -> datetime:
    return datetime.now(UTC)
