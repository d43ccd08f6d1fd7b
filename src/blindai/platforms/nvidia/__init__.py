"""NVIDIA H100, H200 and Blackwell GPUs and NVSwitches: signed SPDM measurements.

Evidence.body is what the driver returns as attestation report: the 37-byte SPDM 1.1
GET_MEASUREMENTS request with the caller's nonce, followed by the device's MEASUREMENTS
response. The attachments are

- "chain": PEM certificates, the device's own first;
- "ocsp": DER OCSP responses, one after another (RFC 6960), optional;
- "rim_driver", "rim_vbios": NVIDIA's signed reference measurements as SWID tags, optional.

Device certificates never expire, so OCSP alone can say that a device key is revoked: without
it the claims carry "no-revocation-check". Without the reference measurements of all firmware
that the report names they carry "no-reference-measurements": then the driver and VBIOS
versions are what the device's firmware says about itself. Only Blackwell certificates state
debug, recovery and insecure modes; on Hopper nothing but the reference measurements would tell.
"""

from blindai.platforms.nvidia.assemble import assemble
from blindai.platforms.nvidia.verifier import RIM_ROOT_NAME, STEPS, verify

__all__ = ["RIM_ROOT_NAME", "STEPS", "assemble", "verify"]
