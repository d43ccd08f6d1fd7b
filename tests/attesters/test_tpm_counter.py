"""The TPM's counter, with a real TPM in software, and the vault that it protects."""

import shutil
import struct

import pytest

from blindai.attesters.tpm.counter import COUNTER, TpmCounter
from blindai.attesters.tpm.device import TpmDevice
from blindai.errors import ConfigurationError, SealedDataError
from blindai.inference.vault import Vault
from tests.attesters.swtpm import tss
from tests.inference.vaults import KEY, SMALL, contents, seal

CC_NV_INCREMENT = 0x134


def undefine(tpm, index=COUNTER):
    """Remove an index, as the machine's owner can."""
    with tpm.esapi() as esapi:
        esapi.nv_undefine_space(esapi.tr_from_tpmpublic(index))


def test_counts(tpm):
    """It counts by one, also for who comes later, and only once is it new."""
    device = TpmDevice(tpm.tcti)
    counter = TpmCounter(device)
    assert counter.is_new
    first = counter.read()
    assert [counter.advance(), counter.advance()] == [first + 1, first + 2]
    again = TpmCounter(TpmDevice(tpm.tcti))
    assert not again.is_new
    assert again.read() == first + 2


def test_survives_a_restart_of_the_machine(tpm):
    """The value is there after the power was off."""
    value = TpmCounter(TpmDevice(tpm.tcti)).advance()
    tpm.stop()
    tpm.start()
    assert TpmCounter(TpmDevice(tpm.tcti)).read() == value


def test_an_owner_cannot_turn_it_back(tpm, tmp_path):
    """Removed and made anew, it stands higher than ever: an older vault stays shut."""
    folder, saved = tmp_path / "vault", tmp_path / "saved"
    device = TpmDevice(tpm.tcti)
    with Vault(folder, KEY, counter=TpmCounter(device)) as vault:
        seal(vault, SMALL, "a")
        shutil.copytree(folder, saved)
        vault.remove("a")
    assert contents(folder, counter=TpmCounter(device)) == {}
    before = TpmCounter(device).read()
    undefine(tpm)
    counter = TpmCounter(device)
    assert counter.is_new
    assert counter.read() > before
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    with pytest.raises(SealedDataError, match="rolled back"):
        Vault(folder, KEY, counter=counter)


def test_first_vault_of_a_counter_that_does_not_begin_at_one(tpm, tmp_path):
    """A TPM that counted before serves a new vault as well as a new TPM does."""
    device = TpmDevice(tpm.tcti)
    for _ in range(3):
        TpmCounter(device).advance()
    undefine(tpm)
    folder = tmp_path / "vault"
    with Vault(folder, KEY, counter=TpmCounter(device)) as vault:
        seal(vault, SMALL, "a")
    assert contents(folder, counter=TpmCounter(device)) == {"a": SMALL}
    shutil.rmtree(folder)
    with pytest.raises(SealedDataError, match="there is no registry"):
        Vault(folder, KEY, counter=TpmCounter(device))


def test_something_else_is_kept_there(tpm):
    """An index of another kind is left as it is."""
    with tpm.esapi() as esapi:
        kind = tss.TPMA_NV
        public = tss.TPMS_NV_PUBLIC(
            nvIndex=COUNTER,
            nameAlg=tss.TPM2_ALG.SHA256,
            attributes=kind.AUTHWRITE | kind.AUTHREAD,
            authPolicy=b"",
            dataSize=8,
        )
        esapi.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=public))
    with pytest.raises(ConfigurationError, match="expected a counter, came something else"):
        TpmCounter(TpmDevice(tpm.tcti))


def test_removed_while_it_is_used(tpm):
    """A counter that is gone is an error, and not a new beginning."""
    counter = TpmCounter(TpmDevice(tpm.tcti))
    undefine(tpm)
    with pytest.raises(ConfigurationError, match="expected a counter, came none"):
        counter.advance()


def test_answer_that_is_lost(tpm):
    """A count whose answer never came is not counted again."""
    happened = []

    class LosingTcti(tss.PyTCTI):
        def __init__(self):
            super().__init__()
            self._inner = tss.TCTILdr.parse(tpm.tcti)

        def do_transmit(self, request):
            self._inner.transmit(request)
            if struct.unpack_from(">I", request, 6)[0] == CC_NV_INCREMENT and not happened:
                happened.append(self._inner.receive())
                raise OSError

        def do_receive(self, timeout):
            return self._inner.receive(timeout=timeout)

        def do_finalize(self):
            self._inner.close()

    first = TpmCounter(TpmDevice(tpm.tcti)).read()
    counter = TpmCounter(TpmDevice(LosingTcti, sleep=lambda _: None))
    assert counter.advance() == first + 1
    assert happened
    assert counter.read() == first + 1
