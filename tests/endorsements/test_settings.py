"""Settings: addresses are https and nothing else, numbers are in range."""

from datetime import timedelta

import pytest

from blindai.endorsements import EndorsementSettings
from blindai.errors import ConfigurationError


def test_defaults_are_the_vendors_own():
    """Without settings the vendors themselves are asked."""
    settings = EndorsementSettings()
    assert settings.amd_kds == "https://kdsintf.amd.com"
    assert settings.intel_pcs == "https://api.trustedservices.intel.com"
    assert settings.grace == timedelta(hours=24)


@pytest.mark.parametrize(
    "address",
    [
        "http://kdsintf.amd.com",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@host.example",
        "https://host.example/?a=b",
        "https://host.example/#a",
        "https://host.example/\r\nX: y",
        "https://host.example:99999",
        "https://hóst.example",
        "kdsintf.amd.com",
        "",
    ],
)
@pytest.mark.parametrize(
    "name", ["amd_kds", "intel_pcs", "intel_root_crl", "nvidia_rim", "nvidia_ocsp"]
)
def test_other_addresses_are_refused(name, address):
    """An address that is no plain https address is refused, and not repeated."""
    with pytest.raises(ConfigurationError, match=f"{name}: expected https") as caught:
        EndorsementSettings(**{name: address})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"grace": timedelta(seconds=-1)},
        {"grace": timedelta(days=31)},
        {"refresh_before": timedelta(seconds=-1)},
        {"refresh_after": timedelta(seconds=-1)},
        {"retry_after": timedelta(seconds=-1)},
        {"timeout": 0.0},
        {"budget": 0.0},
        {"cache_entries": 0},
        {"cache_bytes": 0},
    ],
)
def test_numbers_out_of_range_are_refused(changes):
    """Times and limits that mean nothing are refused."""
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        EndorsementSettings(**changes)


def test_a_cache_in_ones_own_network_may_be_named():
    """A path and a port are fine, and nothing at all is, too."""
    settings = EndorsementSettings(intel_pcs="https://pccs.example:8081/pccs", amd_kds=None)
    assert settings.amd_kds is None
