"""Triton's client and gRPC's own drive the server, unmodified, through the attested certificate."""

import base64
import queue
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.utils import InferenceServerException

from blindai.attestation import wire
from blindai.attestation.policy import Policy
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import Receipt
from blindai.channel.statement import Kind
from blindai.receipt import verify_receipt
from blindai.server.grpc.messages import message_class
from blindai.server.open_inference import EXTENSIONS
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server import talk as rest
from tests.server.grpc.talk import INFER, STREAM, floats, request_for, root_of
from tests.server.test_service import WIDTH

SLOW_ROWS = 400  # some seconds


def tensor(values, *, name: str = "x", datatype: str = "FP32"):
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def slow():
    return tensor(np.zeros((SLOW_ROWS, WIDTH), np.float32))


@pytest.mark.parametrize("count", [0, 3, 10_000, 2_000_000])
def test_infer(client, count):
    """Tensors of any size come back as they were."""
    answer = client.infer("identity-fp32", [tensor(floats(count))], request_id="7")
    assert np.array_equal(answer.as_numpy("y"), floats(count))
    assert answer.get_response().id == "7"
    assert answer.get_response().model_version == "1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed(client, algorithm):
    """A client may compress what it sends."""
    sent = tensor(floats(100_000))
    answer = client.infer("identity-fp32", [sent], compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("y"), floats(100_000))


def test_strings(client):
    """BYTES tensors come back as they were."""
    words = np.array([b"", b"a\x00b", "é".encode()], dtype=object)
    answer = client.infer("identity-bytes", [tensor(words, datatype="BYTES")])
    assert answer.as_numpy("y").tolist() == words.tolist()


def test_what_there_is(client, server):
    """Metadata, configuration, index and readiness say what REST says."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity-fp32", "1")
    assert list(client.get_server_metadata().extensions) == list(EXTENSIONS)
    said = client.get_model_metadata("identity-fp32", as_json=True)
    told = rest.request(server, "GET", "/v2/models/identity-fp32").json()
    assert (said["name"], said["versions"], said["platform"]) == (
        told["name"],
        told["versions"],
        told["platform"],
    )
    assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1"]}]
    config = client.get_model_config("identity-fp32").config
    assert config.platform == told["platform"]
    assert (config.input[0].data_type, list(config.input[0].dims)) == (11, [-1])
    names = [model.name for model in client.get_model_repository_index().models]
    assert "identity-fp32" in names
    assert names == sorted(names)


def test_statistics(client):
    """What was served is counted, and the numbers are REST's."""
    for _ in range(3):
        client.infer("identity-int8", [tensor(np.zeros(2, np.int8), datatype="INT8")])
    (stats,) = client.get_inference_statistics("identity-int8").model_stats
    assert (stats.name, stats.version) == ("identity-int8", "1")
    assert stats.inference_stats.success.count == 3
    assert stats.inference_stats.success.ns > 0
    assert stats.execution_count == 3
    everything = client.get_inference_statistics()
    assert len(everything.model_stats) == len(client.get_model_repository_index().models)


@pytest.mark.parametrize(
    ("call", "status", "what"),
    [
        (lambda c: c.infer("none", [tensor(floats(1))]), "NOT_FOUND", "no model 'none'"),
        (lambda c: c.infer("identity-fp32", []), "INVALID_ARGUMENT", "expected FP32"),
        (lambda c: c.infer("identity-fp32", [tensor(floats(1))], "2"), "INVALID_ARGUMENT", "'1'"),
        (lambda c: c.get_model_metadata("none"), "NOT_FOUND", "no model"),
        (lambda c: c.get_model_config("none"), "NOT_FOUND", "no model"),
        (lambda c: c.is_model_ready("none"), "NOT_FOUND", "no model"),
        (lambda c: c.get_inference_statistics("none"), "NOT_FOUND", "no model"),
        (lambda c: c.load_model("identity-fp32"), "UNAUTHENTICATED", "expected a token"),
        (lambda c: c.unload_model("identity-fp32"), "UNAUTHENTICATED", "expected a token"),
        (lambda c: c.get_system_shared_memory_status(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.register_system_shared_memory("a", "b", 1), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.get_cuda_shared_memory_status(), "UNIMPLEMENTED", "shared memory"),
        (lambda c: c.get_trace_settings(), "UNIMPLEMENTED", "tracing"),
        (lambda c: c.get_log_settings(), "UNIMPLEMENTED", "log settings"),
    ],
)
def test_errors(client, call, status, what):
    """Each error has its code, and a sentence that says what was expected."""
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert caught.value.status() == f"StatusCode.{status}"
    assert what in caught.value.message()


def test_shared_memory_in_a_request(client):
    """A tensor that is said to be in shared memory is refused."""
    elsewhere = triton.InferInput("x", [1], "FP32")
    elsewhere.set_shared_memory("region", 4)
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        client.infer("identity-fp32", [elsewhere])


def test_load_and_unload(server, client):
    """A model comes with the request that loads it, under the token that uploads need."""
    token = {"authorization": f"Bearer {server.token}"}
    client.load_model("loaded", token, config="{}", files={"file:1/model.onnx": add(2.0)})
    assert client.infer("loaded", [tensor(floats(2))]).as_numpy("y").tolist() == [2, 3]
    for path in ("file:../model.onnx", "file:1/../../x", "file:/etc/passwd", "file:1/other.bin"):
        with pytest.raises(InferenceServerException, match="expected 'config'"):
            client.load_model("other", token, config="{}", files={path: add(2.0)})
    client.unload_model("loaded", token)
    with pytest.raises(InferenceServerException, match="no model"):
        client.infer("loaded", [tensor(floats(2))])


def test_bad_model(server, client):
    """A file that is no model is refused as on REST."""
    token = {"authorization": f"Bearer {server.token}"}
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("bad", token, config="{}", files={"file:1/model.onnx": b"x" * 100_000})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_wrong_token(client):
    """A token that opens nothing is told from none."""
    with pytest.raises(InferenceServerException, match="does not open"):
        client.unload_model("identity-fp32", {"authorization": "Bearer wrong-wrong-wrong"})


def test_deadline(client, server):
    """When the RPC's time is over the client is told, and the run is stopped."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [slow()], client_timeout=0.5)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert_idle(client)


def test_timeout_parameter(client):
    """The parameter `timeout`, in microseconds, ends a run as on REST."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [slow()], timeout=200_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "did not end before its deadline" in caught.value.message()


def test_cancelled(client):
    """A call that its client cancels takes no more of the machine."""
    done = threading.Event()
    call = client.async_infer("slow", [slow()], lambda **_: done.set())
    time.sleep(0.5)
    call.cancel()
    assert done.wait(10)
    assert_idle(client)


def assert_idle(client):
    """Wait until nothing runs: another call that takes long would have to wait otherwise."""
    before = client.get_inference_statistics("slow").model_stats[0].inference_stats.fail.count
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        stats = client.get_inference_statistics("slow").model_stats[0].inference_stats
        if stats.fail.count > 0 and stats.fail.count >= before:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the run was not stopped")
    began = time.monotonic()
    client.infer("slow", [tensor(np.zeros((1, WIDTH), np.float32))])
    assert time.monotonic() - began < 5


def test_stream(client):
    """A stream's requests are answered in their order; an error ends none of the others."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(100):
        name = "identity-fp32" if number % 10 else "none"
        client.async_stream_infer(name, [tensor(floats(number))], request_id=str(number))
    for number in range(100):
        result, error = answers.get(timeout=20)
        if number % 10 == 0:
            assert "no model 'none'" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(number)
        assert result.get_response().parameters["triton_final_response"].bool_param
        assert np.array_equal(result.as_numpy("y"), floats(number))
    client.stop_stream()


def test_cancelled_stream(client):
    """A stream that its client leaves in the middle of a run stops the run."""
    client.start_stream(lambda result, error: None)
    client.async_stream_infer("slow", [slow()])
    time.sleep(0.5)
    client.stop_stream(cancel_requests=True)
    assert_idle(client)


async def test_aio(server, certificate, tmp_path):
    """Triton's asyncio client works, also with many calls at once on one connection."""
    import asyncio  # noqa: PLC0415

    path = tmp_path / "server.pem"
    path.write_bytes(certificate)
    async with triton_aio.InferenceServerClient(
        server.grpc_address, ssl=True, root_certificates=str(path)
    ) as client:
        answers = await asyncio.gather(
            *(client.infer("identity-fp32", [tensor(floats(number))]) for number in range(200))
        )
        for number, answer in enumerate(answers):
            assert np.array_equal(answer.as_numpy("y"), floats(number))

        async def requests():
            for number in range(3):
                yield {"model_name": "identity-fp32", "inputs": [tensor(floats(number))]}

        found = [result async for result, error in client.stream_infer(requests()) if not error]
        assert [result.as_numpy("y").size for result in found] == [0, 1, 2]


def test_without_the_attested_certificate(server):
    """A client that trusts another key than the attested one connects to nothing."""
    with start_server() as other:
        wrong = root_of(other)
    credentials = grpc.ssl_channel_credentials(wrong)
    with (
        grpc.secure_channel(server.grpc_address, credentials) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_another_name(server, certificate):
    """A client that reaches the server by another name names one of the certificate."""
    credentials = grpc.ssl_channel_credentials(certificate)
    options = [("grpc.ssl_target_name_override", "blindai-srv")]
    with grpc.secure_channel(server.grpc_address, credentials, options) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)


def test_health(channel):
    """The usual health check says that the server and its services serve."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService", "grpc.health.v1.Health"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="none"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch(certificate):
    """Who watches learns that the server stops, and the stream ends with it."""
    with start_server(models={"m": identity()}) as server:
        credentials = grpc.ssl_channel_credentials(root_of(server))
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            seen = [next(watched).status]
            unknown = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="none")
            )
            assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            unknown.cancel()
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            seen += [answer.status for answer in watched]
            stopping.join()
    assert seen == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]


def test_reflection(channel):
    """A client that knows no .proto finds services, messages and fields."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "inference.GRPCInferenceService" in database.get_services()
    file = database.FindFileContainingSymbol("inference.ModelInferRequest")
    assert file.name == "open_inference.proto"
    assert database.FindFileByName("health.proto").package == "grpc.health.v1"
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("none.Such")


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"file_by_filename": "../../etc/passwd"}, grpc.StatusCode.NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.X"}, grpc.StatusCode.NOT_FOUND),
    ],
)
def test_reflection_errors(channel, question, code):
    """A question without an answer gets an error in its place, and the stream goes on."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    questions = [reflection_pb2.ServerReflectionRequest(host="h", **question)] * 2
    answers = list(stub.ServerReflectionInfo(iter(questions), timeout=10))
    assert [a.error_response.error_code for a in answers] == [code.value[0]] * 2
    assert answers[0].valid_host == "h"


def test_receipt(server, channel):
    """A run's receipt comes in the trailing metadata, of the very bytes of both messages."""
    sent = request_for(floats(2), model="identity-fp32")
    sent.parameters["receipt"].bool_param = True
    sent.parameters["receipt_nonce"].string_param = "0a0b"
    data = sent.SerializeToString()
    answer, call = channel.unary_unary(INFER).with_call(data, timeout=20)
    trailers = dict(call.trailing_metadata())
    receipt = Receipt.parse(base64.b64decode(trailers["x-blindai-receipt"], validate=True))
    bundle = wire.parse_bundle(rest.request(server, "GET", "/blindai/v1/evidence").body)
    result = verify_receipt(
        ReceiptFile((receipt,), bundle, None),
        Policy.simulation(),
        inputs={"x": [0.0, 1.0]},
        outputs={"y": [0.0, 1.0]},
        request=data,
        response=answer,
        nonce=b"\x0a\x0b",
    )
    assert result.statement.kind is Kind.RUN


def test_no_receipts_in_streams(channel):
    """A stream's request for a receipt is refused, for there is one trailer for all of them."""
    sent = request_for(floats(2), model="identity-fp32")
    sent.parameters["receipt"].bool_param = True
    stream = channel.stream_stream(STREAM)
    (answer,) = stream(iter([sent.SerializeToString()]), timeout=20)
    error = message_class("inference.ModelStreamInferResponse").FromString(answer).error_message
    assert "receipt" in error
