"""Run as `python -I`: a confined server that reports each half second, as `serve` would each day.

Arguments: the endpoint, the certificate (DER) that it is trusted by, and a folder of models.
"""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path

from blindai.attesters import create_attester
from blindai.endorsements import HttpsGet
from blindai.server.access import Access, generate_token
from blindai.server.config import ServerConfig
from blindai.server.hardening import confined
from blindai.server.run import run
from blindai.server.telemetry import CONTENT_TYPE, Telemetry, choose

endpoint, certificate, models = sys.argv[1:]
context = ssl.create_default_context(cadata=Path(certificate).read_bytes())


def post(url, content):
    HttpsGet(context=context).post(url, content, content_type=CONTENT_TYPE)


def announce(ready):
    address, public = (f"{host}:{port}" for host, port in (ready.address, ready.public_address))
    line = {"attested": address, "public": public, "grpc": None, "caveats": list(ready.caveats)}
    print(json.dumps(line), flush=True)


attester = create_attester("simulation")
config = ServerConfig(
    platform=attester.platform, port=0, public_port=0, grpc_port=None, models=Path(models)
)
telemetry = Telemetry(choose(endpoint, {}), post, interval=0.5)
with confined(config, telemetry_port=telemetry.choice.port) as confinement:
    run(
        confinement.config,
        attester,
        access=Access(generate_token()),
        on_ready=announce,
        sandbox=confinement.sandbox,
        telemetry=telemetry,
    )
