"""Fixtures of the server tests: a real server with tiny models."""

import pytest

from blindai.testing.server import start_server
from tests.inference.models import ELEMENTS, identity, slow


@pytest.fixture(scope="module")
def server():
    """A server with one model for each datatype, and a slow one."""
    models = {f"identity-{datatype.lower()}": identity(datatype) for datatype in ELEMENTS}
    with start_server(models=models | {"slow": slow()}) as running:
        yield running
