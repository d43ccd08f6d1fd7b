"""What one version of the code leaves for the next: the key of its sealed models.

Always true: what is left can be opened only by code with the measurements that were named, on
this machine; it is the data key of the models as they are sealed now, never the sealing key of
the code that leaves it, so that sealing them anew takes it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attesters.base import Succeeded
from blindai.attesters.kernel_files import read_bounded
from blindai.errors import ConfigurationError, Overloaded, SealedDataError
from blindai.inference.disk import Disk, write_whole
from blindai.inference.registry import is_sealed_under
from blindai.inference.vault import take_over
from blindai.inference.vault_folder import load_registry
from blindai.server.events import log_event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from blindai.attesters.base import Attester, Counter

_MAX_BLOB: Final = 8192


class Handover:
    """A file beside a vault that one version of the code writes, and the next one reads.

    Args:
        folder: Of the vault.
        attester: Seals it to what the next code will be measured as.
        disk: Writes.
    """

    def __init__(self, folder: Path, attester: Attester, disk: Disk | None = None) -> None:
        self._folder = folder
        self._path = folder.with_name(f"{folder.name}.handover")
        self._attester = getattr(attester, "wrapped", attester)
        self._disk = disk or Disk()

    def leave(self, data_key: bytes, measurements: Mapping[str, bytes]) -> None:
        """Write a vault's data key, sealed for the code with these measurements.

        Raises:
            ConfigurationError: The platform cannot, or has no such measurements.
            SealedDataError: The disk fails.
        """
        blob = self._able().seal_for_successor(data_key, measurements)
        try:
            write_whole(self._path, blob, self._disk)
        except OSError as error:
            msg = f"{self._path} cannot be written: {error.strerror}"
            raise SealedDataError(msg) from error
        log_event("models_handed_over", level="warning")

    def take(self, sealing_key: bytes, counter: Counter | None) -> tuple[str, ...]:
        """Make the vault this code's own, if the code before handed it over; else do nothing.

        Returns:
            What is to be said of it at the start.

        Raises:
            SealedDataError: What was left is not for this code, and the vault is not its own;
                or it does not open the vault.
        """
        if (blob := self._read()) is None:
            return ()
        registry = load_registry(self._folder)
        is_own = registry is None or is_sealed_under(registry, sealing_key)
        try:
            data_key = self._able().open_from_predecessor(blob)
        except SealedDataError:
            if is_own:  # left by this very code, for the next
                return ()
            raise
        failure = take_over(
            self._folder,
            data_key=data_key,
            sealing_key=sealing_key,
            counter=counter,
            disk=self._disk,
        )
        log_event("models_taken_over", level="warning")
        if failure is not None:
            # It is left where it is: the next start tries again. Models' names are not for a log.
            full = isinstance(failure, Overloaded)
            why = "the disk is full" if full else "one of them is damaged"
            return (f"the code before this one can still open the sealed models: {why}",)
        self.discard()
        return ()

    def discard(self) -> None:
        """Remove what was left, if it is there; it opens nothing any more.

        Raises:
            SealedDataError: The disk refuses.
        """
        try:
            self._disk.unlink(self._path)
        except OSError as error:
            msg = f"{self._path} cannot be removed: {error.strerror}"
            raise SealedDataError(msg) from error

    def _read(self) -> bytes | None:
        try:
            return read_bounded(self._path, at_most=_MAX_BLOB)
        except FileNotFoundError:
            return None
        except OSError as error:
            msg = f"{self._path}: {error.strerror}"
            raise SealedDataError(msg) from error

    def _able(self) -> Succeeded:
        if not isinstance(self._attester, Succeeded):
            msg = (
                f"platform {self._attester.platform} has no way to leave sealed models to other "
                "code: upload them again after the upgrade"
            )
            raise ConfigurationError(msg)
        return self._attester
