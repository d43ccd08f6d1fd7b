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


LATER = {
    "aiohttp",
    "asyncio",
    "concurrent.futures",
    "dcap_qvl",
    "http.client",
    "jwt",
    "onnx",
    "onnxruntime",
    "rich",
    "tpm2_pytss",
    "uvicorn",
    "xml.etree.ElementTree",
}


def imported_by(code):
    """Return the modules that a new interpreter has after running some code."""
    code = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return set(json.loads(output.stdout))


def test_import_stays_light():
    """Who needs the asyncio client, a terminal or a platform's verifier imports it later."""
    loaded = imported_by("import blindai")
    assert loaded & LATER == set()
    assert {name for name in loaded if name.startswith("blindai.platforms.")} == {
        "blindai.platforms.base"
    }
    assert not any(name.startswith("blindai.endorsements") for name in loaded)


def test_a_verifier_brings_its_own_libraries_only():
    """Asking for one platform's verifier imports that platform, and Intel's library for Intel's."""
    code = "from blindai.platforms import VERIFIERS; VERIFIERS['{}']"
    assert "dcap_qvl" not in imported_by(code.format("nitro"))
    assert "dcap_qvl" in imported_by(code.format("sgx"))
