"""One TPM, reached through tpm2-tss: connect, act, clean up, try again where that helps.

Always true here: each use is one connection, under one lock, and everything transient that it
made in the TPM is flushed before it ends, however it ends. So nothing of ours ever fills a
TPM, and a TPM that was reset meanwhile is only a reason to try again. No other module imports
tpm2-pytss.

Specification: TCG TPM 2.0 Library, Part 2 §6.6 (response codes), Part 3.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from blindai.errors import BlindAIError, ConfigurationError, EvidenceError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from blindai.platforms.tpm.quote import Registers

Result = TypeVar("Result")
Selection = dict[str, tuple[int, ...]]
"""Bank → PCRs, ascending."""

INSTALL: Final = (
    "pip install 'blindai[tpm]'; tpm2-pytss is compiled, which on Debian needs: "
    "apt install libtss2-dev pkg-config gcc"
)
# Seconds before each attempt.
_ATTEMPTS: Final = (0.0, 0.1, 0.5)
_READ_AT_ONCE: Final = 8  # TPML_DIGEST holds no more
_MAX_NV: Final = 16 << 10

# Part 2 §6.6.3. In the upper bits tpm2-tss says which of its layers speaks.
_LAYER: Final = 16
_LAYER_TPM: Final = 0
_LAYER_TCTI: Final = 10
_LAYER_RESOURCE_MANAGER: Final = 11
_NOT_INITIALIZED: Final = 0x100
_NO_NV_SPACE: Final = 0x14B
_FULL: Final = frozenset({0x902, 0x903, 0x904, 0x905, 0x906})
_BUSY: Final = frozenset({0x908, 0x90A, 0x920, 0x922})
_NOT_LOADED: Final = range(0x910, 0x920)
_HANDLE: Final = 0x08B
_WRONG_PASSWORD: Final = frozenset({0x08E, 0x0A2})


def load_tss() -> Any:
    """Return the module tpm2_pytss.

    Raises:
        ConfigurationError: If it is not installed.
    """
    # Else the C library writes to standard error what becomes an exception anyway.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss  # noqa: PLC0415 - an extra, and compiled
        import tpm2_pytss.utils  # noqa: PLC0415
    except (ImportError, OSError) as error:
        msg = f"a TPM needs the package tpm2-pytss ({error}); {INSTALL}"
        raise ConfigurationError(msg) from error
    return tpm2_pytss


class TpmDevice:
    """A TPM that several threads may use, one after another.

    Args:
        tcti: As tpm2-tss names it, such as "device:/dev/tpmrm0"; or returns an open TCTI.
        sleep: Waits some seconds between two attempts; a parameter for tests.
    """

    def __init__(
        self, tcti: str | Callable[[], Any], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._tcti = tcti
        self._sleep = sleep
        self._lock = threading.Lock()

    def run(self, action: Callable[[TpmConnection], Result]) -> Result:
        """Return what `action` returns; it is called again after an error that may pass.

        Raises:
            ConfigurationError: If the TPM cannot be reached, or refuses for good.
            Overloaded: If it has no room, is busy, or went away, each time.
        """
        tss = load_tss()
        failure: Any = None
        with self._lock:
            for seconds in _ATTEMPTS:
                if seconds:
                    self._sleep(seconds)
                try:
                    with self._connect(tss) as connection:
                        return action(connection)
                except tss.TSS2_Exception as error:
                    failure = error
                    if not _may_pass(error):
                        break
        raise _explain(failure) from failure

    @contextlib.contextmanager
    def _connect(self, tss: Any) -> Iterator[TpmConnection]:
        with contextlib.ExitStack() as stack:
            try:
                if isinstance(self._tcti, str):
                    tcti = tss.TCTILdr.parse(self._tcti)
                    stack.callback(tcti.close)
                else:
                    tcti = self._tcti()
                    stack.callback(tcti.finalize)
            except (tss.TSS2_Exception, RuntimeError) as error:
                msg = f"the TPM cannot be reached at {self._tcti}: {error}"
                raise ConfigurationError(msg) from error
            esapi = stack.enter_context(tss.ESAPI(tcti))
            yield stack.enter_context(TpmConnection(tss, esapi))


class TpmConnection:
    """What one use of a TPM may do; everything transient is flushed at its end.

    Attributes:
        tss: The module tpm2_pytss.
        esapi: Its open context.
    """

    def __init__(self, tss: Any, esapi: Any) -> None:
        self.tss = tss
        self.esapi = esapi
        self._transient: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in reversed(self._transient):
            # The TPM may be gone, or have flushed it by itself.
            with contextlib.suppress(self.tss.TSS2_Exception):
                self.esapi.flush_context(handle)

    def keep(self, handle: Any) -> Any:
        """Flush the object or session `handle` at the end, and return it."""
        self._transient.append(handle)
        return handle

    def flush(self, handle: Any) -> None:
        """Flush what `keep` was told of, before the end."""
        self._transient.remove(handle)
        # A session may have ended with the command that used it.
        with contextlib.suppress(self.tss.TSS2_Exception):
            self.esapi.flush_context(handle)

    def find(self, handle: int) -> Any | None:
        """Return the persistent object or NV index `handle`; `None` if there is none."""
        try:
            return self.esapi.tr_from_tpmpublic(handle)
        except self.tss.TSS2_Exception as error:
            if error.error == _HANDLE:
                return None
            raise

    def read_nv(self, index: int, *, by_owner: bool = False) -> bytes | None:
        """Return what an NV index holds; `None` if there is no such index.

        Args:
            index: Its handle.
            by_owner: Whether the owner's authorisation is used instead of the index's own.

        Raises:
            EvidenceError: If it is larger than anything that is kept in one.
        """
        found = self.find(index)
        if found is None:
            return None
        public, _ = self.esapi.nv_read_public(found)
        size = int(public.nvPublic.dataSize)
        if size > _MAX_NV:
            msg = f"NV index {index:#x}: {size} bytes, at most {_MAX_NV} are accepted"
            raise EvidenceError(msg)
        at_once = self.properties().get(int(self.tss.TPM2_PT_NV.BUFFER_MAX), 512)
        authorisation = self.tss.ESYS_TR.OWNER if by_owner else found
        content = b""
        while len(content) < size:
            part = self.esapi.nv_read(
                found, min(at_once, size - len(content)), len(content), auth_handle=authorisation
            )
            if not len(part):
                msg = f"NV index {index:#x}: it ends after {len(content)} of {size} bytes"
                raise EvidenceError(msg)
            content += bytes(part)
        return content

    def properties(self) -> dict[int, int]:
        """Return the TPM's fixed properties (TPM_PT_FIXED)."""
        tss = self.tss
        _, answer = self.esapi.get_capability(
            tss.TPM2_CAP.TPM_PROPERTIES, int(tss.TPM2_PT.FIXED), 256
        )
        return {int(one.property): int(one.value) for one in answer.data.tpmProperties}

    def read_registers(self, selection: Mapping[str, Sequence[int]]) -> Registers:
        """Return the values of PCRs, by bank and index.

        Raises:
            ConfigurationError: If the TPM has no such bank.
        """
        registers: Registers = {}
        for bank, indexes in selection.items():
            values: dict[int, bytes] = {}
            for start in range(0, len(indexes), _READ_AT_ONCE):
                part = indexes[start : start + _READ_AT_ONCE]
                _, _, digests = self.esapi.pcr_read(select(self.tss, {bank: part}))
                if len(digests) != len(part):
                    msg = (
                        f"the TPM's bank {bank} of PCRs is not active; activate it in its firmware"
                    )
                    raise ConfigurationError(msg)
                values |= {i: bytes(d) for i, d in zip(part, digests, strict=True)}
            registers[bank] = values
        return registers


def select(tss: Any, selection: Mapping[str, Sequence[int]]) -> Any:
    """Return a TPML_PCR_SELECTION."""
    text = "+".join(f"{bank}:{','.join(map(str, i))}" for bank, i in selection.items())
    return tss.TPML_PCR_SELECTION.parse(text)


def _may_pass(error: Any) -> bool:
    layer, code = error.rc >> _LAYER, error.error & 0xFFFF
    if layer == _LAYER_TCTI:
        return True
    if layer not in (_LAYER_TPM, _LAYER_RESOURCE_MANAGER):
        return False
    return code in _FULL or code in _BUSY or code in _NOT_LOADED or code == _NOT_INITIALIZED


def _explain(error: Any) -> BlindAIError:
    code = error.error & 0xFFFF
    if _may_pass(error) and code in _FULL:
        msg = (
            f"the TPM has no room for another key or session ({error}); what others left there "
            "goes with: tpm2_flushcontext --transient-object --loaded-session"
        )
        return Overloaded(msg, retry_after=5.0)
    if _may_pass(error):
        return Overloaded(f"the TPM is busy, was reset, or does not answer: {error}")
    if code in _WRONG_PASSWORD:
        msg = f"the TPM's owner or endorsement hierarchy has a password: {error}"
        return ConfigurationError(msg)
    if code == _NO_NV_SPACE:
        msg = f"the TPM has no room for a persistent key; evict one with tpm2_evictcontrol: {error}"
        return ConfigurationError(msg)
    return ConfigurationError(f"the TPM refuses: {error}")
