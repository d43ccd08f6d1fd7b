"""One verifier for each kind of trusted hardware: Evidence → Claims.

`VERIFIERS` is the one explicit list. There are no entry points on purpose: with them, any
installed package could decide what counts as genuine. `ASSEMBLERS` makes evidence of the
files that an auditor has (`blindai evidence`). Each module is imported when it is first asked
for: who verifies one kind of hardware does not wait for the libraries of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from blindai.attestation.model import Platform
from blindai.platforms.base import Verifier

if TYPE_CHECKING:
    from blindai.platforms.base import Assembler

__all__ = ["ASSEMBLERS", "VERIFIERS", "Verifier"]

T = TypeVar("T")

_MODULES: Final[dict[Platform, str]] = {
    Platform.SIMULATION: "blindai.platforms.simulation",
    Platform.SGX: "blindai.platforms.dcap.sgx",
    Platform.TDX: "blindai.platforms.dcap.tdx",
    Platform.SEV_SNP: "blindai.platforms.sev_snp",
    Platform.NITRO: "blindai.platforms.nitro",
    Platform.TPM: "blindai.platforms.tpm",
    Platform.AZURE_VTPM: "blindai.platforms.azure",
    Platform.NVIDIA_GPU: "blindai.platforms.nvidia",
}
_NOT_ASSEMBLED: Final = frozenset({Platform.SIMULATION, Platform.AZURE_VTPM})


class _Imported(Mapping[Platform, T], Generic[T]):
    """What modules hold, each imported when it is asked for."""

    def __init__(self, modules: Mapping[Platform, str], take: Callable[[Any], T]) -> None:
        self._modules = modules
        self._take = take

    def __getitem__(self, platform: Platform) -> T:
        return self._take(import_module(self._modules[platform]))

    def __contains__(self, platform: object) -> bool:
        return platform in self._modules

    def __iter__(self) -> Iterator[Platform]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def _verifier(module: Any) -> Verifier:
    found: Verifier = module
    return found


def _assembler(module: Any) -> Assembler:
    found: Assembler = module.assemble
    return found


VERIFIERS: Final[Mapping[Platform, Verifier]] = _Imported(_MODULES, _verifier)

ASSEMBLERS: Final[Mapping[Platform, Assembler]] = _Imported(
    {kind: name for kind, name in _MODULES.items() if kind not in _NOT_ASSEMBLED}, _assembler
)
