"""Everything that reads bytes of somebody else: what it is given, and what it may raise.

One rule for all: any bytes give a value, or one of the errors that the parser announces. What
else comes out of it, a hang, an exception of a library or one of ours of another kind, is a
defect. Each target has seeds, which are what an honest peer sends, so that a fuzzer starts inside.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import hpack
import jwt
import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blindai.attestation.legacy import import_policy
from blindai.attestation.policy import Policy
from blindai.attestation.steps import Steps
from blindai.attestation.stored import StoredEvidence
from blindai.attestation.wire import dump_bundle, parse_bundle
from blindai.channel.keyset import Keyset
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import Receipt
from blindai.channel.statement import Statement
from blindai.client.answers import parse_records, parse_result
from blindai.client.http1 import parse_chunk_size, parse_head
from blindai.client.messages import Response
from blindai.client.streaming import Parts
from blindai.errors import (
    AccessDenied,
    AttestationError,
    BlindAIError,
    ConfigurationError,
    ConnectionFailed,
    EvidenceError,
    InferenceError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    PolicyError,
    SealedDataError,
)
from blindai.inference.onnx_file import load_outline
from blindai.inference.registry import Registry, dump_registry, parse_registry
from blindai.inference.sealed_file import Kind, new_header, parse_header
from blindai.platforms import VERIFIERS
from blindai.server.access.jwks import KeySet, VerificationKey, parse_key_set
from blindai.server.access.keys import parse_keys
from blindai.server.access.principal import Scope
from blindai.server.access.rules import Issuer
from blindai.server.access.tokens import Tokens
from blindai.server.encoding import CODINGS, inflate
from blindai.server.grpc.hpack import HeaderDecoder
from blindai.server.grpc.inference import open_envelope, read_call
from blindai.server.grpc.messages import message_class, parse_message
from blindai.server.grpc.request import parse_head as parse_fields
from blindai.server.limits import ByteBudget
from blindai.server.model_config import parse_config
from blindai.server.open_inference import parse_request
from blindai.server.repository import parse_index, parse_load, parse_unload
from blindai.server.streaming import parse_loop
from blindai.testing import FAKES
from tests.fuzz import connections
from tests.inference.loop_models import decoder
from tests.inference.models import add, identity
from tests.receipts import Signer
from tests.server.grpc.talk import floats, headers, request_for

NOW = datetime(2026, 11, 24, tzinfo=UTC)
REPORT_DATA = bytes(range(1, 33))


@dataclass(frozen=True, slots=True)
class Target:
    """A parser.

    Attributes:
        read: Gives it bytes.
        refuses: What it may raise.
        seeds: Returns what it takes.
    """

    read: Callable[[bytes], object]
    refuses: tuple[type[BlindAIError], ...]
    seeds: Callable[[], Iterable[bytes]]

    def try_one(self, data: bytes) -> bool:
        """Return whether some bytes were taken, and not refused."""
        try:
            self.read(data)
        except self.refuses:
            return False
        return True


@cache
def memory_file() -> tuple[int, Path]:
    """Return a file in memory, by descriptor and by path."""
    descriptor = os.memfd_create("fuzz")
    return descriptor, Path(f"/proc/self/fd/{descriptor}")


def outline(data: bytes) -> object:
    """Scan a model's file."""
    descriptor, path = memory_file()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)
    return load_outline(path)


def inflated(data: bytes) -> object:
    """Inflate a body in each coding; the first byte says in which."""
    codings = sorted(set(CODINGS) - {b"identity"})
    with ByteBudget(1 << 20).share() as share:
        coding = codings[data[0] % len(codings)] if data else codings[0]
        # Of a small body nothing goes to a thread, so no loop is needed.
        return asyncio.run(inflate(data[1:4096], coding, limit=1 << 16, share=share))


@cache
def fake(platform):
    """Return one fake vendor of a platform."""
    return FAKES[platform]()


def verify_on(platform) -> Callable[[bytes], object]:
    """Return what verifies a platform's evidence."""

    def read(data: bytes) -> object:
        evidence = parse_bundle(data).evidence
        if evidence.platform is not platform:
            return None
        verifier = VERIFIERS[platform]
        return verifier.verify(
            evidence,
            anchors=fake(platform).anchors,
            now=fake(platform).now,
            steps=Steps(verifier.STEPS),
        )

    return read


def bundles_of(platform) -> Callable[[], list[bytes]]:
    """Return what makes a bundle of a platform's genuine evidence."""

    def seeds() -> list[bytes]:
        return [dump_bundle(signer().bundle(evidence=fake(platform).attest(REPORT_DATA)))]

    return seeds


@cache
def signer() -> Signer:
    """Return a server that signs receipts."""
    return Signer()


def stored() -> tuple:
    """Return what is stored of a verification."""
    return signer().shown, bytes(32), signer().certificate


EC_KEY, ED_KEY = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
PEM = EC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def verify_token(data: bytes) -> object:
    """Verify a JWT."""
    issuer = Issuer(
        name="https://id.example", audience="blindai", keys=PEM, scopes=frozenset(Scope)
    )
    keys = (
        VerificationKey("one", "ES256", EC_KEY.public_key()),
        VerificationKey("two", "EdDSA", ED_KEY.public_key()),
    )
    return Tokens([(issuer, KeySet(keys))]).verify(data, now=NOW.timestamp())


def tokens() -> list[bytes]:
    """Return tokens, good ones."""
    claims = {
        "iss": "https://id.example",
        "aud": "blindai",
        "exp": int(NOW.timestamp()) + 600,
        "scope": "run upload",
        "tenant": "acme",
    }
    return [
        jwt.encode(claims, EC_KEY, "ES256").encode(),
        jwt.encode(claims, ED_KEY, "EdDSA", headers={"kid": "two"}).encode(),
    ]


def infer_json(data: bytes) -> object:
    """Read a request of the Open Inference Protocol; two bytes say where its JSON ends."""
    length = int.from_bytes(data[:2], "little")
    return parse_request(data[2:], length or None)


def with_length(document: dict, *tensors: bytes) -> bytes:
    """Return a request as `infer_json` takes it."""
    text = json.dumps(document).encode()
    return (len(text) if tensors else 0).to_bytes(2, "little") + text + b"".join(tensors)


def requests() -> list[bytes]:
    """Return requests: JSON, binary, strings, parameters."""
    x = {"name": "x", "datatype": "FP32", "shape": [2]}
    text = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    size = {"parameters": {"binary_data_size": 8}}
    step = {"sequence_id": 3, "sequence_start": True, "sequence_state": '{"h": "n"}'}
    return [
        with_length({"inputs": [x | {"data": [1.5, 2]}], "parameters": {"timeout": 9}}),
        with_length({"inputs": [x | size]}, bytes(8)),
        with_length({"inputs": [text], "outputs": [{"name": "y"}], "id": "7"}),
        with_length({"inputs": [x | {"data": [1, 2]}], "parameters": step}),
    ]


def read_grpc(data: bytes) -> object:
    """Read a request over gRPC."""
    return read_call(open_envelope(data), 3.0)


def loop(data: bytes) -> object:
    """Read what a streamed answer is asked for with."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return parse_loop(value, 1000)


def fields(data: bytes) -> object:
    """Decode header fields, block after block, and read the head of a call."""
    decoder_ = HeaderDecoder(4096)
    # Twice: what the first block put into the table, the second finds there.
    return [parse_fields(decoder_.decode(data)) for _ in range(2)]


def text_of(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """Return what gives a reader of text the text that bytes are, if they are any."""

    def decode(data: bytes) -> object:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        return read(text)

    return decode


POLICY = b"""version = 1
[[accept]]
platform = "sev-snp"
measurement = ["%s"]
minimum = { bootloader = 7, snp = 14 }
tolerate = ["smt"]
[models]
"m" = ["sha256:%s"]
""" % (b"ab" * 48, b"cd" * 32)
LEGACY = b'mr_enclave = "%s"\nallow_debug = false\n' % (b"ab" * 32)
API_KEYS = b"""{"version": 1, "keys": [{"id": "a", "name": "b", "sha256": "c", "scopes": ["run"],
"created": "2026-01-01T00:00:00Z"}]}"""
JWKS = jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key())


def answer(body: bytes, json_length: int = 0) -> Response:
    """Return a server's answer with a body, whose JSON is all of it or a part."""
    fields_ = {"content-type": "application/json"}
    if json_length:
        fields_["inference-header-content-length"] = str(json_length)
    return Response(200, fields_, memoryview(bytearray(body)))


def load_bodies() -> list[bytes]:
    """Return what asks to load a model."""
    return [b'{"parameters": {"config": "{}", "file:1/model.onnx": "CAo="}}', b"{}"]


LIST = b'{"models": [{"name": "m", "sha256": "%s", "size": 1, "inputs": [], "outputs": []}]}' % (
    b"ab" * 32
)
RESULT = b"""{"model_name": "m", "parameters": {"sha256": "%s", "form": "onnx.fp32"},
"outputs": [{"name": "y", "datatype": "FP32", "shape": [1],
"parameters": {"binary_data_size": 4}}]}""" % (b"ab" * 32)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: application/json"
STREAM_PART = b"%b\x04%b%babcd" % (len(RESULT).to_bytes(4, "little"), bytes(7), RESULT)

TARGETS: dict[str, Target] = {
    "http1": Target(connections.feed_http1, (), connections.http1_seeds),
    "http2": Target(connections.feed_http2, (), connections.http2_seeds),
    "hpack": Target(
        fields, (InvalidInput, LimitExceeded), lambda: [hpack.Encoder().encode(headers())]
    ),
    "grpc-infer": Target(
        read_grpc,
        (InvalidInput,),
        lambda: [request_for(floats(4)).SerializeToString()],
    ),
    "protobuf": Target(
        lambda data: parse_message(message_class("inference.RepositoryModelLoadRequest"), data),
        (InvalidInput,),
        lambda: [request_for(np.zeros(1)).SerializeToString()],
    ),
    "infer": Target(infer_json, (InvalidInput,), requests),
    "loop": Target(
        loop, (InvalidInput,), lambda: [b'{"max_steps": 9, "state": {"a": "b"}, "stop": [1]}']
    ),
    "load": Target(parse_load, (InvalidInput,), load_bodies),
    "unload": Target(parse_unload, (InvalidInput,), load_bodies),
    "index": Target(parse_index, (InvalidInput,), lambda: [b'{"ready": true}']),
    "model-config": Target(
        text_of(parse_config), (InvalidInput,), lambda: [b'{"max_batch_size": 0}']
    ),
    "inflate": Target(
        inflated, (InvalidInput, LimitExceeded), lambda: [b"\x00\x78\x9c\x03\x00\x00\x00\x00\x01"]
    ),
    "onnx": Target(outline, (InvalidModel,), lambda: [identity(), add(), decoder()]),
    "bundle": Target(parse_bundle, (EvidenceError,), lambda: [dump_bundle(signer().shown)]),
    "keyset": Target(Keyset.parse, (EvidenceError,), lambda: [signer().keyset]),
    "stored": Target(
        StoredEvidence.parse, (EvidenceError,), lambda: [StoredEvidence(*stored()).dump()]
    ),
    "statement": Target(Statement.parse, (EvidenceError,), lambda: [signer().statement().dump()]),
    "receipt": Target(
        Receipt.parse, (EvidenceError,), lambda: [signer().file().receipts[0].dump()]
    ),
    "receipt-file": Target(ReceiptFile.parse, (EvidenceError,), lambda: [signer().file().dump()]),
    "jwt": Target(verify_token, (AccessDenied,), tokens),
    "jwks": Target(
        parse_key_set,
        (ConfigurationError,),
        lambda: [b'{"keys": [%s]}' % JWKS.encode(), PEM],
    ),
    "api-keys": Target(parse_keys, (ConfigurationError,), lambda: [API_KEYS]),
    "policy": Target(text_of(Policy.from_toml), (PolicyError,), lambda: [POLICY]),
    "legacy-policy": Target(text_of(import_policy), (PolicyError,), lambda: [LEGACY]),
    "sealed-header": Target(
        parse_header, (SealedDataError,), lambda: [new_header(Kind.MODEL, 1, 9).to_bytes()]
    ),
    "sealed-registry": Target(
        parse_registry, (SealedDataError,), lambda: [dump_registry(Registry(1, []))]
    ),
    "answer-head": Target(parse_head, (ConnectionFailed,), lambda: [HEAD]),
    "answer-chunk": Target(parse_chunk_size, (ConnectionFailed,), lambda: [b"1f;a=b"]),
    "answer-models": Target(
        lambda data: parse_records(answer(data)), (InferenceError,), lambda: [LIST]
    ),
    "answer-result": Target(
        lambda data: parse_result(answer(data[2:], int.from_bytes(data[:2], "little"))),
        (InferenceError,),
        lambda: [len(RESULT).to_bytes(2, "little") + RESULT + b"abcd"],
    ),
    "answer-stream": Target(
        lambda data: list(Parts(1 << 16).feed(data)),
        (InferenceError, AccessDenied),
        lambda: [STREAM_PART],
    ),
    **{
        f"evidence-{platform}": Target(
            verify_on(platform), (AttestationError,), bundles_of(platform)
        )
        for platform in sorted(VERIFIERS)
    },
}
