"""The page about gRPC says what is so."""

import re

import pytest

from blindai.server.grpc.introspection import INFERENCE
from blindai.server.grpc.messages import POOL
from blindai.server.grpc.status import CODES
from blindai.testing.server import start_server
from tests.docs.pages import DOCS, blocks, rows, section
from tests.inference.models import add

PAGE = DOCS / "how-to" / "grpc.md"


@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_code(tmp_path, monkeypatch):
    """The page's code verifies, runs a model with Triton's client, and asks for health."""
    monkeypatch.chdir(tmp_path)
    names = {}
    with start_server(models={"model": add(1.0)}) as server:
        for block in blocks("python", PAGE):
            code = block.text.replace('policy="policy.toml"', "simulation=True")
            code = code.replace("localhost:50051", f"localhost:{server.port}")
            code = code.replace(
                "localhost:50053", server.grpc_address.replace("127.0.0.1", "localhost")
            )
            exec(compile(code, PAGE, "exec"), names)
        names["client"].close()
    assert names["y"].tolist() == [2.0, 3.0, 4.0]
    assert names["health"].status == 1


def test_methods():
    """Every RPC of the protocol is in the table."""
    text = section(PAGE, "## What is served")
    listed = set(re.findall(r"`(\w+)`", text))
    methods = {method.name for method in POOL.FindServiceByName(INFERENCE).methods}
    assert {name for name in methods if "SharedMemory" not in name} <= listed


def test_codes():
    """Every code that an error of ours becomes is explained; a client's own cancellation is not."""
    listed = {row[0].strip("`") for row in rows(section(PAGE, "## What is served"))}
    assert {code.name for code in CODES.values()} - {"CANCELLED", "ALREADY_EXISTS"} <= listed
