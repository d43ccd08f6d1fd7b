"""Predicted measurements, each with how it is known, and the policy block they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blindai.attestation.policy import Acceptance, Pattern, Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attestation.model import Platform


@dataclass(frozen=True, slots=True)
class Prediction:
    """A measurement that a genuine boot shows.

    Attributes:
        name: As policies name it.
        values: What it may be; more than one where hypervisors load the same code in more
            than one way.
        how: How it is known, for a person to judge.
        golden: Whether it was seen, not computed.
    """

    name: str
    values: tuple[bytes, ...]
    how: str
    golden: bool = False


@dataclass(frozen=True, slots=True)
class Unpredicted:
    """A measurement that is not pinned.

    Attributes:
        name: As policies name it.
        why: Why it cannot be known from the image.
    """

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Measured:
    """All that is known of an image on one platform.

    Attributes:
        platform: Which.
        predictions: What a genuine boot shows.
        unpredicted: What it shows, too, but nobody knows beforehand.
        tolerate: Weaknesses that every machine of the platform has.
    """

    platform: Platform
    predictions: tuple[Prediction, ...]
    unpredicted: tuple[Unpredicted, ...] = ()
    tolerate: frozenset[str] = frozenset()

    def policy(
        self,
        *,
        pinned: Mapping[str, tuple[bytes, ...]] | None = None,
        tolerate: frozenset[str] = frozenset(),
    ) -> Policy:
        """Return the policy that accepts a genuine boot, and nothing else.

        Args:
            pinned: Further measurements, such as a TPM's attestation key.
            tolerate: Further weaknesses that it accepts.

        Raises:
            PolicyError: If what is predicted pins no code.
        """
        expected = {each.name: each.values for each in self.predictions} | dict(pinned or {})
        block = Acceptance(
            platform=self.platform,
            measurements={
                name: tuple(Pattern(value) for value in values)
                for name, values in sorted(expected.items())
            },
            tolerate=self.tolerate | tolerate,
        )
        return Policy((block,))
