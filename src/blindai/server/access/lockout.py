"""Who presents what opens nothing, again and again, is not listened to for a while.

Always true: whether a proof is looked at depends on the address alone, never on the proof, so
a refusal says nothing of which keys, tenants or people there are. The table of addresses is
bounded; callers without any proof are never locked out.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from blindai.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_ADDRESSES: Final = 4096
# One customer of a network provider has that many addresses.
_IPV6_PREFIX: Final = 64


class Lockout:
    """Counts refused proofs by address. For one event loop; no locks.

    Args:
        burst: Refusals that may come at once.
        rate: Refusals per second in the long run.
        clock: Returns seconds that never go back.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_refusals")

    def __init__(
        self,
        *,
        burst: int = 20,
        rate: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        # Address → (refusals that still count, when that was so); the oldest first.
        self._refusals: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Refuse to look at a proof from an address with too many refusals.

        Raises:
            RateLimited: There were.
        """
        if not self._refusals:
            return
        too_many = self._count(_network(address)) + 1 - self._burst
        if too_many > 0:
            msg = "too many proofs from this address were refused: wait before the next"
            raise RateLimited(msg, retry_after=too_many / self._rate)

    def refused(self, address: str) -> None:
        """Count a refusal."""
        network = _network(address)
        self._refusals[network] = (self._count(network) + 1, self._clock())
        self._refusals.move_to_end(network)
        if len(self._refusals) > _MAX_ADDRESSES:
            self._refusals.popitem(last=False)

    def _count(self, network: str) -> float:
        count, since = self._refusals.get(network, (0.0, 0.0))
        return max(0.0, count - (self._clock() - since) * self._rate)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(found), _IPV6_PREFIX), strict=False))
    return str(found)
