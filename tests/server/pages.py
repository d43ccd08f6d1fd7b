"""What a status page is made of."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from blindai.attestation.model import Claims, Platform
from blindai.server.load_history import LENGTH, Load
from blindai.server.self_check import SelfCheck
from blindai.server.status_page import Status

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LOAD = tuple(
    Load(10.0, int(300 + 200 * math.sin(i / 9)), i % 17 == 0, 0.004 if i > 20 else None, i % 7)
    for i in range(LENGTH)
)


def claims(measurements=None, *, platform=Platform.TPM, weaknesses=("smt",)):
    """Return what hardware could say."""
    if measurements is None:
        measurements = {f"pcr{i}": bytes([i]) * 32 for i in range(8)} | {"launch": bytes(48)}
    return Claims(platform, measurements, {"firmware": 7}, frozenset(weaknesses), bytes(32))


def status(**changes):
    """Return what a server with hardware, models and load shows."""
    shown = {
        "state": "ready",
        "platform": "tpm",
        "simulated": False,
        "version": "1.0.0",
        "now": NOW,
        "keys_until": NOW + timedelta(days=7),
        "evidence": SelfCheck(claims()),
        "evidence_age": 423.0,
        "host": "gpu-7.hospital.example:50052",
        "port": 50051,
        "grpc_port": 50053,
        "confinement": ("no-dumps", "system-calls"),
        "public_models": ("covidnet",),
        "other_models": 3,
        "load": LOAD,
        "telemetry": "no endpoint is set: nothing is sent",
    }
    return Status(**(shown | changes))
