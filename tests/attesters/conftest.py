"""Hardware in software: TPMs, for the tests that need one."""

import shutil

import pytest

from tests.attesters import swtpm


@pytest.fixture(scope="session")
def vendor(tmp_path_factory):
    """A vendor of TPMs."""
    if lacking := swtpm.missing():
        pytest.skip(f"no TPM in software: {lacking} is missing")
    return swtpm.TpmVendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture(scope="session")
def factory_state(vendor):
    """The state of a TPM as it leaves the factory."""
    return vendor.make("factory")


@pytest.fixture
def tpm(factory_state, tmp_path):
    """A running TPM, fresh from the factory."""
    state = tmp_path / "tpm-state"
    shutil.copytree(factory_state, state)
    running = swtpm.SoftwareTpm(state)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def other_tpm(vendor, tmp_path_factory):
    """Another TPM of the same vendor."""
    name = tmp_path_factory.mktemp("other").name
    running = swtpm.SoftwareTpm(vendor.make(name))
    running.start()
    yield running
    running.stop()
