"""Test an application that uses BlindAI: no hardware, no network, no patching.

A server for the tests of your own code, on free ports, gone at the end of the block::

    from blindai.testing import start_server

    def test_my_application():
        with start_server(models={"covidnet": "covidnet.onnx"}) as server:
            with blindai.connect(server.address, simulation=True) as client:
                ...

Evidence of every platform in its real format, under a root that only your test trusts::

    from blindai.testing import FAKES

    vendor = FAKES[Platform.SIMULATION]()
    evidence = vendor.attest(binding)
    verify(bundle, policy, nonce=nonce, now=vendor.now,
           anchors={vendor.platform: vendor.anchors})

Nothing in the package imports this one, and no fake root is ever trusted unless its anchors
are passed by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.testing.base import FakeVendor
from blindai.testing.fake_azure import FakeAzure
from blindai.testing.fake_dcap import FakeIntelSGX, FakeIntelTDX
from blindai.testing.fake_nitro import FakeNitro
from blindai.testing.fake_nvidia import FakeNVIDIA
from blindai.testing.fake_sev_snp import FakeAMD
from blindai.testing.fake_simulation import FakeSimulation
from blindai.testing.fake_tpm import FakeTPM

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.testing.server import RunningServer, start_server

__all__ = ["FAKES", "FakeVendor", "RunningServer", "start_server"]

FAKES: Final[dict[Platform, Callable[[], FakeVendor]]] = {
    Platform.SIMULATION: FakeSimulation,
    Platform.SGX: FakeIntelSGX,
    Platform.TDX: FakeIntelTDX,
    Platform.SEV_SNP: FakeAMD,
    Platform.NITRO: FakeNitro,
    Platform.TPM: FakeTPM,
    Platform.AZURE_VTPM: FakeAzure,
    Platform.NVIDIA_GPU: FakeNVIDIA,
}


def __getattr__(name: str) -> object:
    # The server's dependencies are an extra, and take a second to import.
    if name in {"RunningServer", "start_server"}:
        from blindai.testing import server  # noqa: PLC0415

        return getattr(server, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
