"""Whose models are where: the operator's on one shelf, those of each tenant on their own.

Always true: a tenant's models are in a store of their own, with its own budget, names and
SHA-256s, and nobody else's request ever looks into it; the same file of two tenants is loaded
twice, so that nobody learns from an upload what others have. What a caller cannot see is, for
them, not there: the error is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blindai.errors import ModelNotFound
from blindai.server.access.principal import OPERATOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from blindai.inference.engine import Model
    from blindai.inference.store import LoadedModel, ModelRecord, ModelStore
    from blindai.server.access.principal import Principal
    from blindai.server.access.rules import AccessRules
    from blindai.server.sealing import SealedModels


@dataclass(slots=True)
class Shelf:
    """The models of the operator, or of one tenant.

    Attributes:
        store: Holds them.
        sealed: Keeps them over restarts; `None`: nothing does.
    """

    store: ModelStore
    sealed: SealedModels | None = None


class Shelves:
    """Finds models for those who may see them.

    Args:
        store: Of the operator.
        rules: Say which of its models are public.
        tenants: Stores by the names of tenants.
    """

    __slots__ = ("_operator", "_rules", "_shelves")

    def __init__(
        self, store: ModelStore, rules: AccessRules, tenants: Mapping[str, ModelStore]
    ) -> None:
        self._operator = Shelf(store)
        self._rules = rules
        self._shelves = {OPERATOR: self._operator} | {
            name: Shelf(store) for name, store in tenants.items()
        }

    def __iter__(self) -> Iterator[Shelf]:
        return iter(self._shelves.values())

    def items(self) -> list[tuple[str, Shelf]]:
        """Return all shelves by the names of tenants, the operator's first."""
        return list(self._shelves.items())

    def of(self, who: Principal) -> Shelf:
        """Return the shelf that somebody's uploads and deletions are for."""
        return self._shelves[who.tenant]

    def get(self, key: str, who: Principal) -> LoadedModel:
        """Return a model by its name or SHA-256: their tenant's, or a public one.

        Raises:
            ModelNotFound: There is none that they can see.
        """
        if who.tenant != OPERATOR:
            try:
                return self._shelves[who.tenant].store.get(key)
            except ModelNotFound:
                pass
        found = self._operator.store.get(key)
        if self._rules.public is None or self._sees_all(who):
            return found
        names = found.record.names
        # By its SHA-256, whatever name it has that is public; by a name, only by that.
        if not any(self._rules.is_public(name) for name in ((key,) if key in names else names)):
            msg = f"no model {key[:128]!r}"
            raise ModelNotFound(msg)
        return found

    def public_name(self, key: str) -> str | None:
        """Return a model's name if anybody may know it; `None`: it is somebody's own."""
        try:
            names = self._operator.store.get(key).record.names
        except ModelNotFound:
            return None
        return key if key in names and self._rules.is_public(key) else None

    def entries(self, who: Principal) -> list[tuple[str, LoadedModel]]:
        """Return the models that somebody can see, one entry for each name, in their order."""
        all_of_them = self._sees_all(who)
        found = {
            name: entry
            for name, entry in _entries(self._operator.store)
            if all_of_them or self._rules.is_public(name)
        }
        if who.tenant != OPERATOR:
            found |= dict(_entries(self._shelves[who.tenant].store))
        return sorted(found.items(), key=lambda item: item[0])

    def is_public(self, record: ModelRecord) -> bool:
        """Return whether anybody may run a model of the operator's, under one of its names."""
        return any(map(self._rules.is_public, record.names))

    def load_again(self, entry: LoadedModel, threads: int) -> Model:
        """Load a model once more; see `ModelStore.load_again`."""
        for shelf in self:
            if shelf.store.folder == entry.path.parent:
                return shelf.store.load_again(entry, threads)
        msg = f"no model {entry.record.sha256}"
        raise ModelNotFound(msg)

    @property
    def bytes_in_use(self) -> int:
        """Of all models' files, and of those that are on their way in."""
        return sum(shelf.store.bytes_in_use() for shelf in self)

    def close(self) -> None:
        """Let go of all models."""
        for shelf in self:
            if shelf.sealed is not None:
                shelf.sealed.close()
            shelf.store.close()

    def _sees_all(self, who: Principal) -> bool:
        return self._rules.public is None or (who.tenant == OPERATOR and not who.is_anonymous)


def _entries(store: ModelStore) -> Iterator[tuple[str, LoadedModel]]:
    for record in store.records():
        for name in record.names:
            try:
                yield name, store.get(name)
            except ModelNotFound:
                continue  # deleted meanwhile
