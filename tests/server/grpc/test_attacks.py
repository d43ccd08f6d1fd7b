"""What a client may not do over HTTP/2 ends its stream or its connection, and nobody else's."""

import contextlib
import socket
import ssl
import time
import zlib

import h2.config
import h2.connection
import h2.events
import hpack
import pytest

from blindai.channel.tls import unverified_context
from blindai.server.grpc import frames
from blindai.server.grpc.call import ROOM
from blindai.server.grpc.connection import MAX_CREDIT, MAX_STREAMS
from blindai.server.grpc.frames import Code
from blindai.testing.server import start_server
from tests.inference.models import identity, slow
from tests.server.grpc.talk import (
    LIVE,
    STREAM,
    Frame,
    floats,
    headers,
    message,
    peer,
    request_for,
)
from tests.server.talk import request
from tests.server.test_service import WIDTH

HEADER = frames.frame_header


@pytest.fixture
def client(server):
    """A client of HTTP/2 that has sent its preface."""
    with peer(server) as connected:
        yield connected.open()


@pytest.fixture(autouse=True)
def still_serves(server):
    """Whatever one client does, others are served."""
    yield
    with peer(server) as other:
        other.open().call(1, message(b""), fields=headers(LIVE))
        assert other.answer(1)[1]["grpc-status"] == "0"


def goaway(client) -> Code:
    """Return why the connection ends, and see that it does."""
    found = client.until(frames.GOAWAY)
    assert isinstance(found, Frame)
    assert client.until(-1) is None
    return Code(found.code)


def infer(client, stream=1, **more):
    values = floats(4)
    client.call(stream, message(request_for(values, model="identity-fp32")), **more)


def test_answer(client):
    """An RPC's answer is header fields, one message, and trailers."""
    infer(client)
    data, fields = client.answer(1)
    assert fields[":status"] == "200"
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "0"
    assert floats(4).tobytes() in data


def test_settings(client):
    """The server says how much it takes, and acknowledges what the client says."""
    found = client.until(frames.SETTINGS, ack=False)
    assert frames.parse_settings(found.payload)[frames.SETTING_MAX_STREAMS] == MAX_STREAMS
    assert client.until(frames.SETTINGS, ack=True)


def test_ping(client):
    """A ping comes back."""
    client.send(frames.frame(frames.PING, 0, 0, b"12345678"))
    assert client.until(frames.PING).payload == b"12345678"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER(frames.DATA, 0, 1, 0), Code.PROTOCOL_ERROR),
        (HEADER(frames.DATA, 0, 0, 0), Code.PROTOCOL_ERROR),
        (HEADER(frames.DATA, 0, 1, frames.MAX_FRAME_SIZE), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.DATA, frames.PADDED, 1, b"\x01"), Code.PROTOCOL_ERROR),
        (HEADER(frames.HEADERS, 0, 1, frames.MAX_FRAME_SIZE), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 0, b""), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b""), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.PADDED, 1, b"\x05ab"), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.PADDED, 1, b""), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.PRIORITIZED, 1, b"abc"), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x80"), Code.COMPRESSION_ERROR),
        (frames.frame(frames.CONTINUATION, 0, 1, b""), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(6, 0, 0, bytes(8)), 1),
        (frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(9, 0, 3, b""), 1),
        (frames.frame(frames.PRIORITY, 0, 1, b"abc"), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.RST_STREAM, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.RST_STREAM, 0, 0, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.RST_STREAM, 0, 1, bytes(3)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, 0, 1, b""), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), Code.FRAME_SIZE_ERROR),
        (frames.settings_frame({frames.SETTING_ENABLE_PUSH: 2}), Code.PROTOCOL_ERROR),
        (frames.settings_frame({frames.SETTING_FRAME_SIZE: 1}), Code.PROTOCOL_ERROR),
        (frames.settings_frame({frames.SETTING_WINDOW: 2**31}), Code.FLOW_CONTROL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.PING, 0, 1, bytes(8)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
        (frames.window_frame(0, 0), Code.PROTOCOL_ERROR),
        (frames.window_frame(1, 1), Code.PROTOCOL_ERROR),
        (frames.window_frame(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"abc"), Code.FRAME_SIZE_ERROR),
    ],
)
def test_breaches(client, data, code):
    """Each breach of RFC 9113 that ends a connection ends it, with its code."""
    client.send(data)
    assert goaway(client) is Code(code)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(64),
        frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.PREFACE + frames.frame(frames.SETTINGS, frames.ACK, 0, b""),
        frames.PREFACE[:-1] + b"x",
    ],
)
def test_beginnings(server, data):
    """A connection that begins with something else ends."""
    with peer(server) as client:
        client.send(data)
        assert goaway(client) is Code.PROTOCOL_ERROR


def test_without_alpn(server):
    """A client that does not say in TLS that it speaks HTTP/2 is cut off."""
    context = unverified_context()
    host, port = server.grpc_address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain) as connection,
        contextlib.suppress(ConnectionResetError, ssl.SSLEOFError),
    ):
        assert connection.recv(100) == b""


def test_tls_1_3_only(server):
    """No older TLS is spoken."""
    context = unverified_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = server.grpc_address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ([("Upper", "x")], Code.PROTOCOL_ERROR),
        ([("connection", "close")], Code.PROTOCOL_ERROR),
        ([(":path", "/again")], Code.PROTOCOL_ERROR),
        ([("grpc-timeout", "soon")], Code.PROTOCOL_ERROR),
    ],
)
def test_malformed_header_fields(client, change, code):
    """Header fields that cannot be end their stream; the connection goes on."""
    client.call(1, fields=[*headers(LIVE), *change])
    assert client.answer(1)[1]["reset"] == str(int(code))
    infer(client, 3)
    assert client.answer(3)[1]["grpc-status"] == "0"


@pytest.mark.parametrize(("method", "status"), [("GET", "405"), ("POST", "415")])
def test_what_is_no_grpc(client, method, status):
    """A browser learns that this is not for it."""
    fields = [(":method", method), (":scheme", "https"), (":path", "/"), (":authority", "x")]
    client.call(1, fields=fields)
    assert client.answer(1)[1][":status"] == status


@pytest.mark.parametrize(
    ("data", "status", "what"),
    [
        (b"", "3", "came none"),
        (b"\0\0\0\0\x05abc", "3", "ends inside a message"),
        (b"\0\0\0", "3", "ends inside a message"),
        (b"\x02\0\0\0\0", "3", "flag of 0 or 1"),
        (b"\x01\0\0\0\x01a", "3", "does not say how"),
        (b"\0\xff\xff\xff\xff", "8", "at most"),
        (b"\0\0\0\0\0" * 2, "3", "came more"),
        (b"\0\0\0\0\x04\xff\xff\xff\xff", "3", "something else"),
    ],
)
def test_malformed_messages(client, data, status, what):
    """A message that cannot be read ends its RPC with a sentence."""
    client.call(1, data)
    fields = client.answer(1)[1]
    assert fields["grpc-status"] == status
    assert what in fields["grpc-message"].replace("%2C", ",")


def test_gzip_bomb(client):
    """A small message that becomes a large one is stopped at the limit."""
    compressor = zlib.compressobj(wbits=31)
    bomb = compressor.compress(bytes(400 << 20)) + compressor.flush()
    data = b"\x01" + len(bomb).to_bytes(4) + bomb
    client.call(1, data, fields=headers(grpc_encoding="gzip"))
    fields = client.answer(1)[1]
    assert fields["grpc-status"] == "8"


@pytest.mark.parametrize("coding", ["br", "snappy", ""])
def test_unknown_encoding(client, coding):
    """An encoding that is not served is refused with those that are."""
    client.call(1, b"\x01\0\0\0\0", fields=headers(grpc_encoding=coding))
    data, fields = client.answer(1)
    assert (data, fields["grpc-status"]) == (b"", "12")
    assert "gzip" in fields["grpc-accept-encoding"]


def test_unknown_method(client):
    """A method that there is not is UNIMPLEMENTED."""
    client.call(1, message(b""), fields=headers("/inference.GRPCInferenceService/None"))
    assert client.answer(1)[1]["grpc-status"] == "12"


@pytest.mark.parametrize(
    "frame",
    [
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.settings_frame({}),
        frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
        frames.frame(0xBE, 0, 0, b""),
        frames.window_frame(0, 1),
        frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
    ],
)
def test_floods(client, frame):
    """Frames that get no work done end the connection when there are too many."""
    client.send(frame * (MAX_CREDIT * 2))
    assert goaway(client) is Code.ENHANCE_YOUR_CALM


def test_empty_data_flood(client):
    """Empty DATA frames are counted like that too."""
    client.call(1, ends=False, fields=headers(STREAM))
    client.send(HEADER(frames.DATA, 0, 1, 0) * (MAX_CREDIT * 2))
    assert goaway(client) is Code.ENHANCE_YOUR_CALM


def test_rapid_reset(client):
    """Streams that are begun and taken back end the connection, without their work being done."""
    block = hpack.Encoder().encode(headers(LIVE))
    one = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, block)
    data = b""
    for number in range(1, 2 * MAX_CREDIT, 2):
        data += one[:5] + number.to_bytes(4) + one[9:] + frames.reset_frame(number, Code.CANCEL)
    client.send(data)
    assert goaway(client) is Code.ENHANCE_YOUR_CALM


def test_continuation_flood(client):
    """A header block without an end is not collected for ever, empty pieces or not."""
    client.send(frames.frame(frames.HEADERS, 0, 1, b""))
    client.send(frames.frame(frames.CONTINUATION, 0, 1, b"") * 5000)
    assert goaway(client) is Code.ENHANCE_YOUR_CALM


def test_header_bomb(client):
    """A field in the table that is repeated by one byte each is stopped at the limit."""
    block = b"\x40\x01n\x7f\xd1\x0e" + b"v" * 2000 + b"\xbe" * 10_000
    client.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block))
    assert goaway(client) is Code.ENHANCE_YOUR_CALM


def test_too_many_streams(client):
    """More calls at once than were allowed are refused, in a way that a client may repeat."""
    for number in range(MAX_STREAMS + 1):
        client.call(2 * number + 1, ends=False, fields=headers(STREAM))
    assert client.until(frames.RST_STREAM).code == Code.REFUSED_STREAM


def test_more_than_the_window(client):
    """A stream that sends more than it has room for is ended, and what it waited for stopped."""
    client.call(1, ends=False, fields=headers(STREAM))
    one = message(request_for(floats(20 * WIDTH).reshape(20, WIDTH), model="slow"))
    data = one * (3 * ROOM // len(one))
    client.data(1, data, ends=False)
    fields = client.answer(1)[1]
    assert fields["reset"] == str(int(Code.FLOW_CONTROL_ERROR))
    infer(client, 3)
    assert client.answer(3)[1]["grpc-status"] == "0"


def test_data_after_the_end(client):
    """DATA behind the end of a stream is an error of that stream."""
    values = floats(400 * WIDTH).reshape(400, WIDTH)
    client.call(1, ends=False)
    data = message(request_for(values, model="slow"))
    client.data(1, data)
    client.data(1, b"more", ends=False)
    assert client.answer(1)[1] == {"reset": str(int(Code.STREAM_CLOSED))}
    infer(client, 3)
    assert client.answer(3)[1]["grpc-status"] == "0"


def test_padding(client):
    """Padded frames, cut anywhere, are read like others."""
    data = message(request_for(floats(4), model="identity-fp32"))
    client.call(1, ends=False)
    payload = b"\x07" + data[:10] + bytes(7)
    client.send(frames.frame(frames.DATA, frames.PADDED, 1, payload))
    rest = frames.frame(frames.DATA, frames.PADDED | 1, 1, b"\xff" + data[10:] + bytes(255))
    for byte in range(len(rest)):
        client.send(rest[byte : byte + 1])
    assert client.answer(1)[1]["grpc-status"] == "0"


def test_trailers_of_a_client(client):
    """Header fields behind the messages end a request as HTTP/2 has it."""
    client.call(1, ends=False)
    client.data(1, message(request_for(floats(4), model="identity-fp32")), ends=False)
    block = client.encoder.encode([("x-trailer", "1")])
    flags = frames.END_HEADERS | frames.END_STREAM
    client.send(frames.frame(frames.HEADERS, flags, 1, block))
    assert client.answer(1)[1]["grpc-status"] == "0"


def test_small_windows(client):
    """An answer waits for room, a frame at a time, and arrives whole."""
    client.send(frames.settings_frame({frames.SETTING_WINDOW: 10}))
    client.call(1, message(request_for(floats(1000), model="identity-fp32")))
    data, flags = b"", 0
    while not flags & frames.END_STREAM:
        found = client.next()
        if found.stream != 1:
            continue
        flags = found.flags
        if found.kind == frames.DATA:
            assert len(found.payload) <= 10
            data += found.payload
            client.send(frames.window_frame(1, 10))
    assert floats(1000).tobytes() in data


def test_slow_header(server):
    """A connection that begins and does not go on is cut off; so is one that says nothing."""
    with start_server(models={"m": identity()}, header_timeout=0.5) as strict:
        for beginning in (b"", frames.PREFACE[:5], frames.PREFACE + b"\0"):
            with peer(strict) as client:
                client.send(beginning)
                began = time.monotonic()
                client.until(-1)
                assert time.monotonic() - began < 5


def test_slow_body():
    """A client that sends a message byte by byte is cut off."""
    limits = {"body_timeout": 0.5, "min_body_rate": 1000}
    with start_server(models={"m": identity()}, **limits) as strict, peer(strict) as client:
        client.open().call(1, b"\0\0\0\0\xff", ends=False)
        began = time.monotonic()
        client.until(-1)
        assert time.monotonic() - began < 5


def test_slow_reader():
    """A client that asks for much and gives no room for it is cut off."""
    limits = {"body_timeout": 0.5, "min_body_rate": 1000}
    with start_server(models={"m": identity()}, **limits) as strict, peer(strict) as client:
        client.send(frames.PREFACE + frames.settings_frame({}))
        client.call(1, message(request_for(floats(1_000_000), model="m")))
        began = time.monotonic()
        assert client.until(-1) is None
        assert time.monotonic() - began < 8


def test_idle_connections_end():
    """A connection without calls is told to go, and closed."""
    with (
        start_server(models={"m": identity()}, idle_timeout=0.5) as strict,
        peer(strict) as client,
    ):
        client.open()
        assert goaway(client) is Code.NO_ERROR


def test_idle_peer_is_asked():
    """A client with an open stream that says nothing is pinged, and cut off if it is silent."""
    limits = {"idle_timeout": 0.5, "header_timeout": 1.0}
    with start_server(models={"m": identity()}, **limits) as strict, peer(strict) as client:
        client.open().call(1, ends=False, fields=headers(STREAM))
        assert client.until(frames.PING, ack=False)
        assert client.until(-1) is None


def test_too_many_connections():
    """One too many takes the place of the one that waits longest, and is closed if none waits."""
    with (
        start_server(models={"m": identity()}, max_connections=2) as strict,
        contextlib.ExitStack() as stack,
    ):
        waiting, busy = (stack.enter_context(peer(strict)).open() for _ in range(2))
        busy.call(1, message(b""), fields=headers(LIVE))
        assert busy.answer(1)[1]["grpc-status"] == "0"
        late = stack.enter_context(peer(strict)).open()
        assert waiting.until(-1) is None
        for each, stream in ((late, 1), (busy, 3)):
            each.call(stream, message(b""), fields=headers(LIVE))
            assert each.answer(stream)[1]["grpc-status"] == "0"
        for each in (late, busy):  # a message that never ends
            each.call(5, b"\0\0\0\0\x09", ends=False)
            each.send(frames.frame(frames.PING, 0, 0, bytes(8)))
            assert each.until(frames.PING, ack=True)
        assert stack.enter_context(peer(strict)).until(-1) is None
        late.call(7, message(b""), fields=headers(LIVE))
        assert late.answer(7)[1]["grpc-status"] == "0"


def test_limit_of_a_message():
    """A message over the limit is refused by its length; the connection goes on."""
    with (
        start_server(models={"m": identity()}, max_body_bytes=1000) as strict,
        peer(strict) as client,
    ):
        client.open().call(1, b"\0\0\0\x10\0" + bytes(100), ends=False)
        data, fields = client.answer(1)
        assert (data, fields["grpc-status"]) == (b"", "8")
        client.call(3, message(request_for(floats(10), model="m")))
        assert client.answer(3)[1]["grpc-status"] == "0"


def test_budget_of_all_messages():
    """What all calls hold together is bounded; it is given back when they end."""
    with (
        start_server(models={"m": identity()}, max_bodies_bytes=100_000) as strict,
        peer(strict) as client,
    ):
        client.open()
        client.call(1, b"\0\0\x01\0\0" + bytes(60_000), ends=False)
        client.call(3, b"\0\0\x01\0\0" + bytes(60_000), ends=False)
        fields = client.answer(3)[1]
        assert fields["grpc-status"] == "14"
        assert fields["grpc-retry-pushback-ms"] == "1000"
        client.send(frames.reset_frame(1, Code.CANCEL))
        client.call(5, message(request_for(floats(15_000), model="m")))
        assert client.answer(5)[1]["grpc-status"] == "0"


def test_queue_is_bounded():
    """More runs than may wait are refused as overload, with a time to come again."""
    with (
        start_server(models={"slow": slow()}, config={"runs": 1}, max_queue=1) as strict,
        peer(strict) as client,
    ):
        client.open()
        values = floats(30 * WIDTH).reshape(30, WIDTH)
        data = message(request_for(values, model="slow"))
        for number in range(1, 11, 2):
            client.call(number, data)
        statuses = [client.answer(number)[1] for number in (9,)]
        assert statuses[0]["grpc-status"] == "14"
        assert "grpc-retry-pushback-ms" in statuses[0]


def test_rest_goes_on_beside_a_flood(server, client):
    """REST is answered in time while a gRPC client sends as fast as it can."""
    client.call(1, ends=False, fields=headers(STREAM))
    one = message(request_for(floats(10), model="identity-fp32"))
    client.connection.settimeout(0.5)
    with contextlib.suppress(TimeoutError):  # it is held back: nobody reads its answers
        for _ in range(200):
            client.data(1, one * 50, ends=False)
    began = time.monotonic()
    assert request(server, "GET", "/v2/health/ready").status == 200
    assert time.monotonic() - began < 2


def test_against_a_strict_library(server):
    """The `h2` library, which refuses every breach of a server, finds none."""
    with peer(server) as client:
        other = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        other.initiate_connection()
        expected = {}
        for number in range(10):
            stream = other.get_next_available_stream_id()
            other.send_headers(stream, headers())
            expected[stream] = floats(number * 100)
            data = message(request_for(expected[stream], model="identity-fp32"))
            other.send_data(stream, data, end_stream=True)
        client.send(other.data_to_send())
        received = dict.fromkeys(expected, b"")
        trailers = {}
        while len(trailers) < len(expected):
            for event in other.receive_data(client.connection.recv(65_536)):
                if isinstance(event, h2.events.DataReceived):
                    received[event.stream_id] += event.data
                    other.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers[event.stream_id] = dict(event.headers)
            client.send(other.data_to_send())
        for stream, values in expected.items():
            assert values.tobytes() in received[stream]
            assert trailers[stream] == {"grpc-status": "0"}
