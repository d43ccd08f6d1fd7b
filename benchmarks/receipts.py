"""What a receipt costs: requests per second with and without one, on the same server.

All are measured through attested TLS in the same run, alternating round by round, and reported
as medians and as the median of the rounds' ratios; this is no test, and machines are noisy.
"server" is asked by a client that sends prepared bytes and looks at no receipt: what is left is
the server's cost. "SDK" is `Client.run_model`, which checks each receipt when it comes; here it
takes the time for that from the same cores. Before that, the server's own part is timed alone:
digests, statement, signature and encoding, without a network and without a model.

    python benchmarks/receipts.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import product
from pathlib import Path

import numpy as np
from serving import load, machine, minilm_model, server, tiny_model

import blindai
from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.statement import Kind
from blindai.client.messages import infer_request
from blindai.client.receipts import RECEIPT_HEADER, ReceiptRequest
from blindai.inference.tensors import from_array
from blindai.server.config import Limits, ServerConfig
from blindai.server.identity import EvidenceDesk, Identity
from blindai.server.receipts import Facts, ReceiptDesk, ReceiptWish, digest_parts, digest_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rounds, seconds = (5, 0.7) if options.quick else (15, 1.5)
    print(machine())
    alone = {batch: asyncio.run(sign_alone(batch)) for batch in (1, 8, 64)}
    for batch, microseconds in alone.items():
        print(f"one receipt, {batch:>2} finishing together: {microseconds:6.1f} µs of CPU each")
    print(
        f"{'workload':<12} {'asked by':<8} {'clients':>7} {'req/s':>9} {'receipts':>9} {'cost':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        workloads = {"tiny": tiny_model(Path(folder)), "minilm-int8": minilm_model()}
        results = []
        with server(Path(folder) / "token") as (address, token):
            for name, (path, inputs) in workloads.items():
                with blindai.connect(address, simulation=True, token=token) as client:
                    client.upload_model(path, name=name)
                for caller, clients in product((prepared, by_sdk), (1, 8)):
                    row = measure(caller, address, name, inputs, clients, rounds, seconds)
                    results.append(row)
                    print(
                        f"{name:<12} {row['asked_by']:<8} {clients:>7} {row['plain_req_s']:>9.1f} "
                        f"{row['receipt_req_s']:>9.1f} {row['cost']:>7.1%}",
                        flush=True,
                    )
    if options.json:
        document = {"machine": machine(), "alone_us": alone, "results": results}
        options.json.write_text(json.dumps(document, indent=1))


def by_sdk(client, name, inputs, *, receipt):
    """Return a call that runs a model as an application does."""
    return lambda: client.run_model(name, inputs, receipt=receipt)


def prepared(client, name, inputs, *, receipt):
    """Return a call that sends the same bytes each time, and takes what comes."""
    tensors = [from_array(key, value) for key, value in inputs.items()]
    wish = ReceiptRequest(client.evidence).parameters() if receipt else None
    request = infer_request(name, tensors, {}, outputs=None, timeout=None, parameters=wish)
    host, port = client.url.removeprefix("https://").rsplit(":", 1)
    connection = http.client.HTTPSConnection(host, int(port), context=client.ssl_context)
    body = b"".join(request.body)

    def call():
        connection.request("POST", request.target, body, request.headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != HTTPStatus.OK or receipt is not (RECEIPT_HEADER in answer.headers):
            sys.exit(f"expected an answer {'with' if receipt else 'without'} a receipt")

    return call


def measure(caller, address, name, inputs, clients, rounds, seconds):
    connections = [blindai.connect(address, simulation=True) for _ in range(clients)]
    plain = [caller(each, name, inputs, receipt=False) for each in connections]
    signed = [caller(each, name, inputs, receipt=True) for each in connections]
    rates = []
    for turn in range(rounds):
        # In turn, the first and the second: a machine that slows down favours neither.
        kinds = [plain, signed] if turn % 2 else [signed, plain]
        found = {id(calls): load(calls, seconds)[0] for calls in kinds}
        rates.append((found[id(plain)], found[id(signed)]))
    for connection in connections:
        connection.close()
    without, with_receipts = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = [signed_rate / plain_rate for plain_rate, signed_rate in rates]
    return {
        "workload": name,
        "asked_by": "SDK" if caller is by_sdk else "server",
        "clients": clients,
        "plain_req_s": round(without, 1),
        "receipt_req_s": round(with_receipts, 1),
        "cost": round(1 - statistics.median(ratios), 4),
    }


async def sign_alone(batch: int, repeats: int = 400) -> float:
    """Return microseconds of CPU for a receipt over tensors of MiniLM's shapes."""
    ids = np.arange(1000, 1016, dtype=np.int64)[None]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [from_array(name, ids) for name in names]
    outputs = [from_array("last_hidden_state", np.zeros((1, 16, 384), np.float32))]
    body, answer = bytes(700), [bytes(200), bytes(16 * 384 * 4)]
    now = datetime.now(UTC)
    config = ServerConfig(platform=Platform.SIMULATION, key_lifetime=timedelta(days=1))
    with ThreadPoolExecutor(1) as executor:
        identity = Identity.create(SimulationAttester(), config, now=now)
        desk = ReceiptDesk(EvidenceDesk(identity, executor, Limits()))

        def gather() -> Facts:
            return Facts(
                wish=ReceiptWish(bytes(32), bytes(32)),
                kind=Kind.RUN,
                model_sha256=bytes(32),
                model_form="onnx.fp32",
                inputs=digest_tensors(inputs),
                outputs=digest_tensors(outputs),
                request_sha256=digest_parts([body]),
                response_sha256=digest_parts(answer),
            )

        times = []
        for _ in range(max(5, repeats // batch)):
            begun = time.process_time()
            await asyncio.gather(*(desk.sign(gather()) for _ in range(batch)))
            times.append((time.process_time() - begun) / batch)
    return round(statistics.median(times) * 1e6, 1)


if __name__ == "__main__":
    main()
