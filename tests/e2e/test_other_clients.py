"""Other people's clients, unmodified, with the attested certificate as their only root.

Each knows nothing of BlindAI: it is given a certificate that was verified before, and checks
names and chain as it does with any server.
"""

import json
import shutil
import ssl
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import blindai
from blindai.inference.tensors import DataType
from blindai.testing.server import start_server
from tests.docs.pages import blocks
from tests.inference.models import add, identity

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
needs_clients = pytest.mark.skipif(
    not CLIENTS.exists(), reason="KServe's client has a venv of its own: make clients"
)
pytestmark = pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")


@pytest.fixture(scope="module")
def server():
    """A server with a model of strings, one of BF16 and one of numbers."""
    models = {
        "adder": add(1.0),
        "model": add(1.0),
        "words": identity(DataType.BYTES),
        "bf16": identity(DataType.BF16),
    }
    with start_server(models=models) as running:
        yield running


@pytest.fixture(scope="module")
def certificate(server, tmp_path_factory):
    """The file of the certificate whose key was attested."""
    with blindai.connect(server.address, simulation=True) as client:
        pem = ssl.DER_cert_to_PEM_cert(client.attestation.certificate)
    path = tmp_path_factory.mktemp("attested") / "server.pem"
    path.write_text(pem)
    return path


@pytest.fixture
def triton(server, certificate):
    """A client of Triton's."""
    client = http.InferenceServerClient(
        f"localhost:{server.port}",
        ssl=True,
        ssl_context_factory=lambda: ssl.create_default_context(cafile=certificate),
    )
    yield client
    client.close()


def tensor(name, array, datatype, *, binary=True):
    made = http.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_triton_without_the_certificate(server):
    """With the public authorities as its roots, the client connects to nothing."""
    client = http.InferenceServerClient(
        f"localhost:{server.port}", ssl=True, ssl_context_factory=ssl.create_default_context
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        client.is_server_live()
    client.close()


def test_triton_looks_around(triton):
    """The client reads health, metadata, configuration, statistics and the index."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("adder", "1")
    assert not triton.is_model_ready("nope")
    assert "statistics" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata("adder")["inputs"][0]["datatype"] == "FP32"
    assert triton.get_model_config("words")["input"][0]["data_type"] == "TYPE_STRING"
    assert "adder" in [entry["name"] for entry in triton.get_model_repository_index()]
    assert len(triton.get_inference_statistics()["model_stats"]) == 4
    (stats,) = triton.get_inference_statistics("adder", "1")["model_stats"]
    assert stats["name"] == "adder"


def test_triton_steps(triton):
    """The client makes the steps of a sequence; its state, here a sum, stays inside."""
    more = {"sequence_start": True, "parameters": {"sequence_state": {"x": "y"}}}
    first = triton.infer("adder", [tensor("x", np.float32([5]), "FP32")], sequence_id=9, **more)
    assert first.as_numpy("y").tolist() == [6.0]
    for expected in (7.0, 8.0):
        assert triton.infer("adder", [], sequence_id=9).as_numpy("y").tolist() == [expected]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_triton_infers(triton, binary, coding):
    """Numbers go there and back, binary or not, compressed or not."""
    array = np.linspace(-5, 5, 1000, dtype=np.float32)
    result = triton.infer(
        "adder",
        [tensor("x", array, "FP32", binary=binary)],
        outputs=[http.InferRequestedOutput("y", binary_data=not binary)],
        request_id="mine",
        priority=2,
        timeout=10_000_000,
        parameters={"something": "else"},
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert result.get_response()["id"] == "mine"
    np.testing.assert_array_equal(result.as_numpy("y"), array + np.float32(1))


def test_triton_infers_at_once(triton):
    """Requests that do not wait for each other come back each with its own answer."""
    arrays = [np.full(5, k, np.float32) for k in range(8)]
    waiting = [triton.async_infer("adder", [tensor("x", array, "FP32")]) for array in arrays]
    for array, answer in zip(arrays, waiting, strict=True):
        np.testing.assert_array_equal(answer.get_result().as_numpy("y"), array + 1)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_strings(triton, binary):
    """Strings go there and back."""
    words = np.array([b"", "Straße".encode(), b"a b"], dtype=object)
    result = triton.infer("words", [tensor("x", words, "BYTES", binary=binary)])
    assert result.as_numpy("y").tolist() == words.tolist()


def test_triton_bf16(triton):
    """BF16 goes there and back, bit for bit."""
    array = np.array([0, 1.5, -2, 3e38], ml_dtypes.bfloat16)
    result = triton.infer("bf16", [tensor("x", array, "BF16")])
    assert result.as_numpy("y").tobytes() == array.tobytes()


def test_triton_classes(triton):
    """The classification extension gives "value:index", as the client expects it."""
    wish = http.InferRequestedOutput("y", class_count=2)
    result = triton.infer(
        "adder", [tensor("x", np.array([1, 7, 2], np.float32), "FP32")], outputs=[wish]
    )
    assert result.as_numpy("y").tolist() == [b"8.0:1", b"3.0:2"]


def test_triton_loads_and_unloads(triton, server):
    """A model comes in through the repository extension, with the token, and goes again."""
    token = {"Authorization": f"Bearer {server.token}"}
    config = json.dumps({"backend": "onnxruntime"})
    files = {"file:1/model.onnx": add(2.0)}
    with pytest.raises(http.InferenceServerException, match="token"):
        triton.load_model("fresh", config=config, files=files)
    triton.load_model("fresh", headers=token, config=config, files=files)
    result = triton.infer("fresh", [tensor("x", np.array([1], np.float32), "FP32")])
    assert result.as_numpy("y").tolist() == [3.0]
    triton.load_model("fresh", headers=token)
    triton.unload_model("fresh", headers=token)
    assert not triton.is_model_ready("fresh")
    with pytest.raises(http.InferenceServerException, match="expected 'config' or"):
        triton.load_model("bad", headers=token, config=config, files={"file:../x": b"x"})


def test_triton_reads_errors(triton):
    """Errors reach the client's user as sentences, with their status."""
    with pytest.raises(http.InferenceServerException, match="no model 'nope'") as found:
        triton.get_model_metadata("nope")
    assert found.value.status() == "404"
    for ask in (
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        triton.get_trace_settings,
        triton.get_log_settings,
        lambda: triton.register_system_shared_memory("r", "/r", 64),
        lambda: triton.unregister_cuda_shared_memory("r"),
        lambda: triton.update_log_settings({"log_info": True}),
        lambda: triton.update_trace_settings("adder", {"trace_rate": "1"}),
    ):
        with pytest.raises(http.InferenceServerException, match="not supported"):
            ask()


def test_the_how_to(server, tmp_path, monkeypatch):
    """The page's code writes the certificate and runs a model with Triton's client."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "how-to" / "other-clients.md"
    write, run = (block.text for block in blocks("python", page)[:2])
    names = {}
    for code in (write.replace('policy="policy.toml"', "simulation=True"), run):
        here = code.replace("localhost:50051", f"localhost:{server.port}")
        exec(compile(here, page, "exec"), names)
    assert names["y"].tolist() == [2.0, 3.0, 4.0]
    names["client"].close()


@needs_clients
@pytest.mark.slow
def test_kserve(server, certificate):
    """KServe's client asks for health and runs a model, in JSON and in binary."""
    script = Path(__file__).with_name("kserve_client.py")
    done = subprocess.run(
        [CLIENTS, script, f"https://localhost:{server.port}", certificate],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "live": True,
        "ready": True,
        "model": True,
        "unknown": False,
        "json": [2.0, 3.5],
        "binary": [2.0, 3.5],
        "error": "no model 'nope'",
    }


@needs_clients
def test_the_openapi_document_is_one():
    """An independent checker finds nothing wrong with the OpenAPI document."""
    document = ROOT / "src" / "blindai" / "server" / "openapi.json"
    done = subprocess.run(
        [CLIENTS, "-m", "openapi_spec_validator", "--schema", "3.1", document],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server, certificate):
    """Curl runs a model with the certificate as its root, and refuses to do so without it."""
    address = f"https://localhost:{server.port}/v2/models/adder/infer"
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
    command = ["curl", "--silent", "--show-error", "--compressed", "--data", json.dumps(document)]

    def run(*more):
        return subprocess.run(
            [*command, *more, address], capture_output=True, text=True, timeout=30, check=False
        )

    done = run("--cacert", certificate)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["data"] == [2.0, 3.0]
    assert run().returncode == 60  # CURLE_PEER_FAILED_VERIFICATION
