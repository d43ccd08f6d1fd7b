"""Who the server is: keys made at start, the certificate, and evidence that they are its own.

Always true: private keys are in memory only; evidence is of the identity that answers, so
what a connection shows is bound to the key that the connection ends at, also while keys are
renewed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol, Self

from blindai.attestation import wire
from blindai.attestation.binding import binding, device_nonce
from blindai.attestation.model import EvidenceBundle
from blindai.channel.keyset import PrivateKeyset
from blindai.channel.tls import create_certificate, server_context
from blindai.errors import Overloaded
from blindai.server.limits import TokenBucket
from blindai.server.self_check import SelfCheck, check_evidence

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from concurrent.futures import Executor

    from blindai.attestation.model import Evidence
    from blindai.attesters import Attester
    from blindai.server.config import Limits, ServerConfig

# Collateral beside the evidence (revocation lists, TCB levels) is renewed by its vendors
# within days; an hour keeps what is cached well within that.
CACHE_SECONDS: Final = 3600.0
# Clients' clocks may be behind.
_CLOCK_SKEW: Final = timedelta(hours=1)
# Some hardware takes a second for one quote; waiting longer than this helps nobody.
_MAX_WAITING: Final = 16


class DeviceAttester(Protocol):
    """Makes evidence of attached devices."""

    def attest_devices(self, nonce: bytes) -> tuple[Evidence, ...]:
        """Return the evidence of each device, over the 32 bytes of `nonce`."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Keys, certificate, and who can attest them.

    Attributes:
        attester: Makes evidence.
        keys: The private halves.
        certificate: DER.
        context: Serves TLS with the attested key.
        devices: Makes evidence of the attached GPUs; `None`: it is not asked for.
    """

    attester: Attester
    keys: PrivateKeyset
    certificate: bytes
    context: ssl.SSLContext
    devices: DeviceAttester | None = None

    @classmethod
    def create(
        cls,
        attester: Attester,
        config: ServerConfig,
        *,
        now: datetime,
        devices: DeviceAttester | None = None,
    ) -> Self:
        """Make fresh keys and a certificate for them.

        Args:
            attester: Makes evidence.
            config: Its digest goes into the keyset.
            now: Beginning of the keys' life.
            devices: Makes evidence of the attached GPUs.
        """
        keys = PrivateKeyset.generate(
            now=now, lifetime=config.key_lifetime, configuration=config.digest()
        )
        certificate = create_certificate(
            keys.tls,
            names=config.certificate_names,
            not_before=now - _CLOCK_SKEW,
            not_after=keys.public.not_after,
        )
        rules = config.access
        context = server_context(
            keys.tls, certificate, client_ca=rules.client_ca, client_crl=rules.client_crl
        )
        return cls(attester, keys, certificate, context, devices)

    def attest(self, nonce: bytes | None) -> EvidenceBundle:
        """Make evidence. Slow on some hardware: not for an event loop.

        Args:
            nonce: The caller's 32 fresh bytes; `None` for evidence that nobody asked for.
        """
        keyset = self.keys.public.dump()
        devices: tuple[Evidence, ...] = ()
        if self.devices is not None:
            devices = self.devices.attest_devices(device_nonce(nonce, keyset))
        # The machine vouches for its devices: none can be taken away, or another be added.
        digests = [hashlib.sha256(wire.dump_evidence(device)).digest() for device in devices]
        return EvidenceBundle(
            evidence=self.attester.attest(binding(nonce, keyset, digests)),
            keyset=keyset,
            certificate=self.certificate,
            devices=devices,
        )


class EvidenceDesk:
    """Hands out one identity's evidence, as often as is allowed.

    Args:
        identity: Whose.
        executor: Attests there; one thread, as the hardware answers one at a time.
        limits: How often.
        clock: Returns seconds that never go back.

    Attributes:
        self_check: How the evidence without a nonce looks; `None`: there is none yet.
    """

    def __init__(
        self,
        identity: Identity,
        executor: Executor,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._executor = executor
        self._clock = clock
        self._bucket = TokenBucket(limits.evidence_rate, limits.evidence_burst, clock=clock)
        self._waiting = 0
        self._cached: bytes | None = None
        self._cached_at = 0.0
        self.self_check: SelfCheck | None = None
        self._refresh = asyncio.Lock()

    async def fresh(self, nonce: bytes) -> bytes:
        """Return evidence for a caller's nonce, in wire form.

        Args:
            nonce: 32 bytes.

        Raises:
            Overloaded: Too often.
        """
        wait = self._bucket.take()
        if wait or self._waiting >= _MAX_WAITING:
            msg = "evidence is asked for more often than this server gives it"
            raise Overloaded(msg, retry_after=wait or 1.0)
        return await self._attest(nonce)

    async def cached(self) -> bytes:
        """Return evidence without a nonce, in wire form: made at most once an hour."""
        async with self._refresh:
            if self._cached is None or self._clock() - self._cached_at > CACHE_SECONDS:
                self._cached = await self._attest(None)
                self._cached_at = self._clock()
                # On the same thread: signatures take a while to check.
                loop = asyncio.get_running_loop()
                self.self_check = await loop.run_in_executor(
                    self._executor, _check_self, self._cached
                )
            return self._cached

    @property
    def cached_age(self) -> float | None:
        """Seconds since the evidence without a nonce was made; `None`: it was not yet."""
        return None if self._cached is None else self._clock() - self._cached_at

    async def _attest(self, nonce: bytes | None) -> bytes:
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._executor, self._dump, nonce)
        finally:
            self._waiting -= 1

    def _dump(self, nonce: bytes | None) -> bytes:
        return wire.dump_bundle(self.identity.attest(nonce))


def _check_self(bundle: bytes) -> SelfCheck:
    return check_evidence(wire.parse_bundle(bundle).evidence, datetime.now(UTC))
