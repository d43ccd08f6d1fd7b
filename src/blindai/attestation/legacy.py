"""Read the policy of BlindAI 0.5 (`policy.toml`) and 0.6 (`manifest.toml`).

Those clients accepted an SGX enclave by its MRENCLAVE, with masks over attributes, XFRM and
MISCSELECT, and they also accepted the status SW_HARDENING_NEEDED without naming it. The policy
that comes out names it.
"""

from __future__ import annotations

import tomllib
from typing import Any, Final

from blindai.attestation.model import Platform
from blindai.attestation.policy import Acceptance, Pattern, Policy
from blindai.errors import PolicyError

_INIT: Final = 0x1  # SGX ATTRIBUTES.INIT: the old client demanded it beside the listed flags
_MRENCLAVE_SIZE: Final = 32
# Name → (value, mask, size in bytes, value and mask where the file leaves them out).
_MASKED: Final = {
    "attributes": ("attributes_flags_hex", "attributes_mask_flags_hex", 8),
    "xfrm": ("attributes_xfrm_hex", "attributes_mask_xfrm_hex", 8),
    "miscselect": ("misc_select_hex", "misc_mask_hex", 4),
}
_KEYS: Final = {"mr_enclave", "allow_debug", *(k for v, m, _ in _MASKED.values() for k in (v, m))}


def import_policy(text: str) -> Policy:
    """Return the policy that accepts what an old `policy.toml` or `manifest.toml` accepted.

    Raises:
        PolicyError: If it is no TOML, or has keys the old formats did not have.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"the old policy is not TOML: {error}"
        raise PolicyError(msg) from error
    unknown = sorted(set(document) - _KEYS)
    if unknown or "mr_enclave" not in document:
        msg = "expected the policy of BlindAI 0.5 or 0.6 with mr_enclave" + (
            f", found unknown {', '.join(unknown)}" if unknown else ""
        )
        raise PolicyError(msg)
    mrenclave = Pattern.parse(document["mr_enclave"], "mr_enclave")
    if len(mrenclave.value) != _MRENCLAVE_SIZE:
        msg = f"mr_enclave: expected {_MRENCLAVE_SIZE} bytes, found {len(mrenclave.value)}"
        raise PolicyError(msg)
    measurements = {"mrenclave": (mrenclave,)}
    for name, (value_key, mask_key, size) in _MASKED.items():
        if value_key in document:
            value = _integer(document, value_key, size)
            mask = _integer(document, mask_key, size) if mask_key in document else _all_ones(size)
            if name == "attributes":
                value, mask = value | _INIT, mask | _INIT
            if mask:
                measurements[name] = (Pattern(_little(value & mask, size), _little(mask, size)),)
    allow_debug = document.get("allow_debug", False)
    if not isinstance(allow_debug, bool):
        msg = f"allow_debug: expected true or false, found {allow_debug!r}"
        raise PolicyError(msg)
    tolerate = {"sw-hardening-needed"} | ({"debug"} if allow_debug else set())
    return Policy((Acceptance(Platform.SGX, measurements, tolerate=frozenset(tolerate)),))


def _integer(document: dict[str, Any], key: str, size: int) -> int:
    text = document[key]
    try:
        value = int(text, 16)
    except (TypeError, ValueError) as error:
        msg = f"{key}: expected a hexadecimal number in quotes, found {text!r}"
        raise PolicyError(msg) from error
    if not 0 <= value <= _all_ones(size):
        msg = f"{key}: expected at most {size} bytes, found {text!r}"
        raise PolicyError(msg)
    return value


def _all_ones(size: int) -> int:
    return (1 << 8 * size) - 1


def _little(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
