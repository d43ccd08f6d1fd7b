"""Every system that is measured: how it starts, and what a request to it looks like.

Each server serves one model file, with the number of threads and workers that its
documentation recommends for this machine; `speaks` says in which form tensors travel.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from load import HOST, RefusedError, cpu_seconds, measure, summary
from peers.install import python_of

import blindai
from blindai.channel.tls import unverified_context

PEERS = Path(__file__).parent / "peers"
OIP_TYPES = {"float32": "FP32", "int64": "INT64"}
_READY_SECONDS = 120
_STOP_SECONDS = 20
CORES = len(os.sched_getaffinity(0))


class Running(NamedTuple):
    """A system that answers."""

    name: str
    speaks: str
    load: object  # (connections, seconds) -> Load


class NotStartedError(Exception):
    """The system did not come to answer; says why."""


# What is measured: name → function of (model path, inputs, stack) that returns a `Running`.


def raw(path, inputs, stack, *, threads=None):
    """The onnxruntime session in this process, at the best of its settings for each load."""
    import onnxruntime  # noqa: PLC0415 - after its telemetry was switched off

    settings = [(CORES, 1, "1"), (CORES, 1, "0"), (1, CORES, "0")]
    if threads is not None:
        settings = [(threads, CORES, "0")]
    sessions = []
    for intra, runs, spinning in settings:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        options.add_session_config_entry("session.dynamic_block_base", "4")
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        sessions.append((functools.partial(session.run, None, inputs), runs))
    del stack

    def load(connections, seconds):
        rounds = [in_process(run, min(connections, runs), seconds) for run, runs in sessions]
        if connections == 1:
            return min(rounds, key=lambda each: each.p50)
        return max(rounds, key=lambda each: each.rate)

    return Running("raw onnxruntime", "in process", load)


def raw_openvino(path, inputs, stack):
    """OpenVINO in this process, fp32, one stream for each core under load."""
    del stack
    try:
        import openvino  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise NotStartedError(str(error)) from error
    core = openvino.Core()
    setups = []
    for threads, runs in ((CORES, 1), (1, CORES)):
        settings = {
            "INFERENCE_NUM_THREADS": CORES,
            "NUM_STREAMS": runs,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(str(path), "CPU", settings)
        del threads
        setups.append((compiled, runs))

    def load(connections, seconds):
        rounds = []
        for compiled, runs in setups:
            local = threading.local()

            def run(compiled=compiled, local=local):
                if not hasattr(local, "request"):
                    local.request = compiled.create_infer_request()
                local.request.infer(inputs, share_inputs=True)

            rounds.append(in_process(run, min(connections, runs), seconds))
        if connections == 1:
            return min(rounds, key=lambda each: each.p50)
        return max(rounds, key=lambda each: each.rate)

    return Running("raw openvino", "in process", load)


def in_process(run, threads, seconds):
    """Run in a closed loop from so many threads."""
    times, lock = [], threading.Lock()
    run()
    until = time.perf_counter() + seconds

    def work():
        own = []
        while not own or time.perf_counter() < until:
            begun = time.perf_counter()
            run()
            own.append(time.perf_counter() - begun)
        with lock:
            times.extend(own)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    cpu, begun = cpu_seconds(os.getpid()), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - begun
    return summary(times, took, cpu_seconds(os.getpid()) - cpu)


def ours(path, inputs, stack, *, name="blindai", serve=(), **upload):
    """BlindAI: attested TLS, every default but the ports."""
    process, address, token = stack.enter_context(blindai_server(serve))
    with blindai.connect(address, simulation=True, token=token) as client:
        client.upload_model(path, name="model", **upload)
    port = int(address.rpartition(":")[2])
    request = oip_binary("/v2/models/model/infer", inputs)
    return _http(name, "OIP binary, TLS", process, port, request, unverified_context())


@contextmanager
def blindai_server(options=()):
    """Yield process, address and token of `blindai serve`, which is ended afterwards."""
    command = [sys.executable, "-m", "blindai", "serve", "--platform", "simulation", "--json"]
    command += ["--port", "0", "--public-port", "0", "--grpc-port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("{") and (ready := json.loads(line)).get("event") == "ready":
                yield process, ready["attested"], ready["token"]
                return
        msg = f"blindai serve ended with {process.wait()}"
        raise NotStartedError(msg)
    finally:
        _end(process)


def mlserver(path, inputs, stack):
    return _peer("mlserver", path, stack, oip_json("/v2/models/model/infer", inputs), "OIP JSON")


def kserve(path, inputs, stack):
    return _peer("kserve", path, stack, oip_binary("/v2/models/model/infer", inputs), "OIP binary")


def pytriton(path, inputs, stack):
    return _peer(
        "pytriton", path, stack, oip_binary("/v2/models/model/infer", inputs), "OIP binary"
    )


def litserve(path, inputs, stack):
    return _peer("litserve", path, stack, own_json("/predict", inputs), "JSON")


def ray(path, inputs, stack):
    return _peer("ray", path, stack, own_json("/predict", inputs), "JSON")


def bentoml(path, inputs, stack):
    command = [
        str(python_of("bentoml").with_name("bentoml")),
        "serve",
        "bentoml_server:OnnxService",
    ]
    command += ["--host", HOST, "--port", "{port}"]
    return _peer("bentoml", path, stack, own_json("/predict", inputs), "JSON", command)


def _peer(name, path, stack, request, speaks, command=None):
    python = python_of(name)
    if not python.exists():
        msg = "not installed; see benchmarks/peers/install.py"
        raise NotStartedError(msg)
    port = free_port()
    command = command or [str(python), str(PEERS / f"{name}_server.py"), str(path), "{port}"]
    command = [part.format(port=port) for part in command]
    environment = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(python.parents[1]),
        "MODEL": str(path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    log = stack.enter_context((python.parents[1] / "server.log").open("w+"))
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
        cwd=PEERS,
    )
    stack.callback(_end, process)
    until = time.perf_counter() + _READY_SECONDS
    why = "it did not answer"
    while time.perf_counter() < until:
        if process.poll() is not None:
            msg = f"it ended with {process.returncode}; see {log.name}"
            raise NotStartedError(msg)
        try:
            measure(port, process.pid, request, connections=1, seconds=0.01)
        except (RefusedError, OSError) as error:
            why = str(error)
            time.sleep(0.5)
            continue
        return _http(name, f"{speaks}, plain", process, port, request, None)
    msg = f"{why} within {_READY_SECONDS} s"
    raise NotStartedError(msg)


def _http(name, speaks, process, port, request, context):
    def load(connections, seconds):
        return measure(
            port, process.pid, request, connections=connections, seconds=seconds, context=context
        )

    return Running(name, speaks, load)


def _end(process):
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Workers that a peer leaves behind are of the session that was made for it.
    if process.pid != os.getpgid(0):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port():
    """Return a port with two free ones behind it, which some servers take too."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((HOST, 0))
            port = first.getsockname()[1]
            try:
                for number in (port + 1, port + 2):
                    stack.enter_context(socket.socket()).bind((HOST, number))
            except OSError:
                continue
            return port


# Requests.


def oip_binary(path, inputs):
    """Return a request of the Open Inference Protocol with its binary extension."""
    header = {
        "inputs": [
            {
                "name": name,
                "shape": list(value.shape),
                "datatype": OIP_TYPES[value.dtype.name],
                "parameters": {"binary_data_size": value.nbytes},
            }
            for name, value in inputs.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    body = text + b"".join(value.tobytes() for value in inputs.values())
    extra = b"Inference-Header-Content-Length: %d\r\n" % len(text)
    return _request(path, "application/octet-stream", body, extra)


def oip_json(path, inputs):
    """Return the same in JSON."""
    tensors = [
        {
            "name": name,
            "shape": list(value.shape),
            "datatype": OIP_TYPES[value.dtype.name],
            "data": value.reshape(-1).tolist(),
        }
        for name, value in inputs.items()
    ]
    return _request(path, "application/json", json.dumps({"inputs": tensors}).encode())


def own_json(path, inputs):
    """Return what the peers without the protocol are written to take."""
    tensors = [
        {
            "name": name,
            "shape": list(value.shape),
            "dtype": value.dtype.name,
            "data": value.reshape(-1).tolist(),
        }
        for name, value in inputs.items()
    ]
    return _request(path, "application/json", json.dumps({"inputs": tensors}).encode())


def _request(path, content_type, body, extra=b""):
    lines = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {content_type}\r\n".encode()
    return lines + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def peers():
    """Return the functions that start each peer, by name."""
    return {
        "mlserver": mlserver,
        "kserve": kserve,
        "pytriton": pytriton,
        "litserve": litserve,
        "bentoml": bentoml,
        "ray": ray,
    }
