"""A counter in the TPM that only counts up: what a vault's registry is compared with.

Always true here: one call of `advance` counts one, also where the TPM has to be asked twice; a
value is never seen twice, whoever removes the index and defines it anew. The owner of the
machine can do that, and count on, which shuts the vault: a nuisance, and no way back in time.

Specification: TPM 2.0 Library, Part 1 §37.2.4 (NV counters: a new one begins above every
counter that the TPM ever had), Part 3 §31.3 (NV_DefineSpace) and §31.8 (NV_Increment).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from blindai.attesters.tpm.device import TpmConnection, TpmDevice

# Of the range for owners, 0x0180_0000 to 0x01BF_FFFF (TCG Registry of Reserved Handles §2.2.2).
COUNTER: Final = 0x01820B1A
_SIZE: Final = 8
_NV_DEFINED: Final = 0x14C


class TpmCounter:
    """Counts for one vault.

    Args:
        device: The TPM.
        index: Handle of the NV index; defined where it is missing.

    Attributes:
        is_new: Whether the index was made just now, so that nothing can have been counted.

    Raises:
        ConfigurationError: The TPM cannot be reached, or refuses, or keeps something else there.
        Overloaded: It has no room, or was reset.
    """

    def __init__(self, device: TpmDevice, index: int = COUNTER) -> None:
        self._device = device
        self._index = index
        self.is_new = device.run(self._define)

    def read(self) -> int:
        """Return the counter's value; always more than 0."""
        return self._device.run(self._read)

    def advance(self) -> int:
        """Add 1, for good, and return the new value."""
        before = self.read()

        def count(connection: TpmConnection) -> int:
            # Asked again after an answer that was lost, it has been counted already.
            if (now := self._read(connection)) > before:
                return now
            found = connection.find(self._index)
            connection.esapi.nv_increment(found, auth_handle=found)
            return self._read(connection)

        return self._device.run(count)

    def _read(self, connection: TpmConnection) -> int:
        content = connection.read_nv(self._index)
        if content is None or len(content) != _SIZE:
            came = "none" if content is None else f"one of {len(content)} bytes"
            msg = f"the TPM's NV index {self._index:#x}: expected a counter, came {came}"
            raise ConfigurationError(msg)
        return int.from_bytes(content)

    def _define(self, connection: TpmConnection) -> bool:
        """Make the index where it is missing, and count once, before which it has no value."""
        tss = connection.tss
        found = connection.find(self._index)
        is_new = found is None
        if found is None:
            try:
                found = connection.esapi.nv_define_space(b"", _public(tss, self._index))
            except tss.TSS2_Exception as error:
                if error.error != _NV_DEFINED:
                    raise
                found = connection.find(self._index)
        public, _ = connection.esapi.nv_read_public(found)
        attributes = tss.TPMA_NV(int(public.nvPublic.attributes))
        if attributes.nt != tss.TPM2_NT.COUNTER:
            msg = f"the TPM's NV index {self._index:#x}: expected a counter, came something else"
            raise ConfigurationError(msg)
        if not attributes & tss.TPMA_NV.WRITTEN:
            connection.esapi.nv_increment(found, auth_handle=found)
        return is_new


def _public(tss: Any, index: int) -> Any:
    kind = tss.TPMA_NV
    attributes = kind.AUTHWRITE | kind.AUTHREAD | kind.NO_DA
    attributes |= int(tss.TPM2_NT.COUNTER) << int(kind.TPM2_NT_SHIFT)
    return tss.TPM2B_NV_PUBLIC(
        nvPublic=tss.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=tss.TPM2_ALG.SHA256,
            attributes=attributes,
            authPolicy=b"",
            dataSize=_SIZE,
        )
    )
