"""Keys that an AMD chip derives for one SEV-SNP guest, through /dev/sev-guest.

The key depends on the chip, on the guest's launch measurement and on its policy: other code,
the same code with debugging allowed, and another chip get another key. An update of the chip's
firmware may change it, too.

Specification: Linux, include/uapi/linux/sev-guest.h (SNP_GET_DERIVED_KEY); AMD 56860,
MSG_KEY_REQ and MSG_KEY_RSP.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from blindai.attesters.kernel_files import refused
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Ioctl = Callable[[int, int, bytearray], int]

# _IOWR('S', 1, struct snp_guest_request_ioctl): direction, size, type and number.
SNP_GET_DERIVED_KEY: Final = 3 << 30 | 32 << 16 | ord("S") << 8 | 1
_MESSAGE_VERSION: Final = 1
# msg_version, 7 bytes of padding, req_data, resp_data, exitinfo2.
_REQUEST: Final = struct.Struct("<B7xQQQ")
# root_key_select, reserved, guest_field_select, vmpl, guest_svn, tcb_version.
_KEY_REQUEST: Final = struct.Struct("<IIQIIQ")
_ROOT_OF_CHIP: Final = 0
_MIX_POLICY: Final = 1 << 0
_MIX_MEASUREMENT: Final = 1 << 3
_RESPONSE_SIZE: Final = 64
_KEY: Final = slice(32, 64)


def derive_key(device: Path, *, vmpl: int = 0, ioctl: Ioctl = fcntl.ioctl) -> bytes:
    """Return the 32 bytes that the chip derives for this guest.

    Args:
        device: /dev/sev-guest.
        vmpl: Privilege level that the key is for; the guest's own, or a less privileged one.
        ioctl: As `fcntl.ioctl`; a parameter for tests.

    Raises:
        ConfigurationError: If the device may not be used, or the firmware refuses.
    """
    fields = _MIX_POLICY | _MIX_MEASUREMENT
    key_request = ctypes.create_string_buffer(
        _KEY_REQUEST.pack(_ROOT_OF_CHIP, 0, fields, vmpl, 0, 0), _KEY_REQUEST.size
    )
    response = ctypes.create_string_buffer(_RESPONSE_SIZE)
    request = bytearray(
        _REQUEST.pack(
            _MESSAGE_VERSION, ctypes.addressof(key_request), ctypes.addressof(response), 0
        )
    )
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(descriptor, SNP_GET_DERIVED_KEY, request)
        finally:
            os.close(descriptor)
        answer = response.raw
    except OSError as error:
        raise refused(str(device), error) from error
    finally:
        ctypes.memset(response, 0, _RESPONSE_SIZE)
    status = int.from_bytes(answer[:4], "little")
    key = answer[_KEY]
    if status or not any(key):
        msg = f"{device}: the firmware derives no key (status {status:#x})"
        raise ConfigurationError(msg)
    return key
