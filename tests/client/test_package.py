"""What `import blindai` gives, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import blindai
from blindai.verify import verify


def test_every_public_name_is_there():
    """`__all__` is sorted, complete and importable; nothing else is promised."""
    assert blindai.__all__ == sorted(set(blindai.__all__))
    assert all(getattr(blindai, name) is not None for name in blindai.__all__)
    assert set(blindai.__all__) <= set(dir(blindai))


def test_verify_is_the_function():
    """`blindai.verify` can be called, whatever way it was imported."""
    assert blindai.verify is verify
    assert callable(blindai.verify)


def test_every_error_is_public():
    """Whoever catches an error finds it at the top."""
    assert set(blindai.errors.__all__) <= set(blindai.__all__)


def test_import_stays_light():
    """No asyncio client, no terminal, no inference engine: who needs them imports them later."""
    code = "import sys, json, blindai; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(output.stdout))
    assert loaded & {"aiohttp", "asyncio", "rich", "onnx", "onnxruntime", "uvicorn"} == set()
