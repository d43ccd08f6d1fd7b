"""The public API's types, as a type checker has to see them. Read by mypy, never run."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import blindai
from blindai import AsyncClient, AttestationResult, Client, ModelInfo, Platform, Policy, Result
from blindai.attestation.stored import StoredEvidence
from blindai.channel.receipt_file import ReceiptFile
from blindai.inference.tensors import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


def blocking(path: Path, policy: Policy) -> None:
    assert_type(blindai.connect("host", policy="policy.toml"), Client)
    assert_type(blindai.connect("host", policy=path, trust_env=True), Client)
    with blindai.connect("host:50051", policy=policy, token="t", timeout=5) as client:
        assert_type(client, Client)
        assert_type(client.attestation, AttestationResult)
        assert_type(client.attestation.platform, Platform)
        assert_type(client.evidence, StoredEvidence)
        assert_type(client.ssl_context, ssl.SSLContext)
        assert_type(client.url, str)
        assert_type(client.models(), list[ModelInfo])
        assert_type(client.model("m").inputs, tuple[TensorSpec, ...])
        assert_type(client.upload_model(path), ModelInfo)
        assert_type(client.upload_model(b"", "m", progress=lambda sent, size: None), ModelInfo)
        assert_type(client.run_model("m", {"x": [1.0]}, outputs=["y"], timeout=1.0), Result)
        client.delete_model("m")


def results(client: Client) -> None:
    result = client.run_model("m", np.zeros(3), receipt=True)
    assert_type(result["y"], Array)
    assert_type(result[0], Array)
    assert_type(result.logits, Array)
    assert_type(result.as_numpy(), dict[str, Array])
    assert_type(result.model_sha256, str)
    assert_type(result.receipt, ReceiptFile | None)


def many(client: Client) -> None:
    inputs = (np.zeros(3) for _ in range(9))
    assert_type(client.run_many("m", inputs), Generator[Result])
    assert_type(
        client.run_many("m", [{"x": 1}], connections=8, return_exceptions=True),
        Generator[Result | blindai.InferenceError | blindai.ConnectionFailed],
    )


async def awaited(policy: Policy, path: Path) -> None:
    async with AsyncClient("host", policy=policy) as client:
        assert_type(client, AsyncClient)
        assert_type(await client.connect(), AttestationResult)
        assert_type(await client.models(), list[ModelInfo])
        assert_type(await client.run_model("m", 1.0), Result)
        assert_type(await client.upload_model(path), ModelInfo)
        assert_type(client.run_many("m", []), AsyncGenerator[Result])
        async for outcome in client.run_many("m", [], return_exceptions=True):
            assert_type(outcome, Result | blindai.InferenceError | blindai.ConnectionFailed)


def refused(client: Client) -> None:
    # What strict mypy reports as unused here, it no longer refuses.
    client.run_model("m", 1, ["y"])  # type: ignore[call-arg]
    client.run_many("m", 1)  # type: ignore[call-overload]
    blindai.connect("host", "policy.toml")  # type: ignore[call-arg]
    blindai.connect("host", polcy="policy.toml")  # type: ignore[call-arg]


def policies(path: Path) -> None:
    assert_type(Policy.load(path), Policy)
    assert_type(Policy.from_toml("version = 1"), Policy)
    assert_type(Policy.simulation(), Policy)
    assert_type(blindai.__version__, str)


def streamed(client: Client) -> None:
    state = {"past": "present"}
    found = client.stream("m", {"x": [1]}, max_steps=9, state=state, greedy={"x": "y"}, stop=2)
    assert_type(found, Generator[Result, None, str])
    with client.sequence("m", state=state) as sequence:
        assert_type(sequence.step({"x": [1]}, outputs=["y"]), Result)
        assert_type(sequence.steps, int)


async def streamed_async(client: AsyncClient) -> None:
    assert_type(client.stream("m", [1], max_steps=9), AsyncGenerator[Result])
    async with client.sequence("m", state={"past": "present"}) as sequence:
        assert_type(await sequence.step([1]), Result)
