"""Both clients behind one face, so that each test holds for both."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import warnings

import pytest

import blindai
from tests.client.fakes import FakeServer


class Blocking:
    """An AsyncClient whose verbs can be called without await."""

    def __init__(self, *args, **kwargs):
        self._runner = asyncio.Runner()
        self._closed = False
        try:
            self.client = self._run(self._create(*args, **kwargs))
        except BaseException:
            self._runner.close()
            raise

    async def _create(self, *args, **kwargs):
        client = blindai.AsyncClient(*args, **kwargs)
        await client.connect()
        return client

    def _run(self, coroutine):
        return self._runner.run(coroutine)

    def __getattr__(self, name):
        value = getattr(self.client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self._run(value(*args, **kwargs))

    def __repr__(self):
        return repr(self.client)

    def close(self):
        # asyncio.Runner can be closed twice, but not used in between.
        if not self._closed:
            self._closed = True
            self._run(self.client.close())
            self._runner.close()


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """Return `blindai.connect`, or what does the same with an AsyncClient."""
    opened = contextlib.ExitStack()

    def connect(address, **options):
        if "policy" not in options:
            options.setdefault("simulation", True)
        make = blindai.connect if request.param == "sync" else Blocking
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", blindai.SimulationWarning)
            client = make(address, **options)
        opened.callback(client.close)
        return client

    with opened:
        yield connect


@pytest.fixture
def server():
    """Return a server with one model, "double"."""
    with FakeServer() as running:
        yield running
