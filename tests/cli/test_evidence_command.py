"""`blindai evidence` on evidence that real hardware produced, as the files lie there."""

from __future__ import annotations

import json

import pytest

from tests.platforms.vectors import VECTORS, load_cases, requires_vectors

CHAIN = {"milan": ("ark", "ask", "asvk"), "genoa": ("ark", "ask"), "turin": ("ark", "ask")}


def arguments(case):
    """Return the command's arguments for a case of the manifest."""
    platform, extras = case["platform"], []
    for key in ("collateral", "leaf", "chain"):
        if key in case:
            extras += ["--with", VECTORS / case[key]]
    if platform == "sev-snp":
        product = next((p for p in CHAIN if p.title() in case.get("name", "")), "milan")
        for kind in CHAIN[product]:
            extras += ["--with", VECTORS / "roots" / f"amd_{kind}_{product}.pem"]
    if case.get("nonce"):
        extras += ["--nonce", f"hex:{case['nonce']}"]
    if case.get("at"):
        extras += ["--at", case["at"]]
    return ["evidence", platform, VECTORS / case["evidence"], *extras, "--json"]


CASES = [
    case
    for platform in ("sgx", "tdx", "sev-snp", "nitro", "nvidia-gpu")
    for case in load_cases(platform)
]


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_vector_from_the_shell(blindai, case):
    """Exit code, claims and weaknesses are what the manifest expects."""
    done = blindai(*arguments(case))
    document = json.loads(done.stdout)
    expect = case["expect"]
    assert document["authentic"] is (done.returncode == 0)
    assert done.returncode in (0, 3)
    if expect["outcome"] in ("genuine", "weak"):
        assert done.returncode == 0, document["error"]
    if expect["outcome"] == "reject":
        assert done.returncode == 3
        assert [step["status"] for step in document["steps"]].count("failed") == 1
    if done.returncode == 0:
        if expect["outcome"] == "weak":
            assert expect["weakness"] in document["weaknesses"]
        if "report_data" in case:
            assert document["report_data"] == case["report_data"]
        if "measurement" in case:
            assert case["measurement"] in document["measurements"].values()
        assert document["policy"] is None


@requires_vectors
def test_wrong_nonce_is_refused(blindai):
    """Another nonce than the one that the GPU signed is a BindingError."""
    case = load_cases("nvidia-gpu")[0]
    wrong = dict(case, nonce="00" * 32)
    done = blindai(*arguments(wrong))
    assert done.returncode == 3
    assert json.loads(done.stdout)["type"] == "BindingError"


@pytest.mark.parametrize(
    "options", [["--at", "yesterday"], ["--at", "2026-01-01T00:00:00"], ["--nonce", "hex:zz"]]
)
def test_wrong_options_are_settings_errors(blindai, tmp_path, options):
    """A time without a zone and a nonce that is no hexadecimal end with exit code 2."""
    path = tmp_path / "report.bin"
    path.write_bytes(b"x")
    assert blindai("evidence", "sev-snp", path, *options).returncode == 2


def test_missing_and_garbage_files(blindai, tmp_path):
    """No file is a settings error; garbage is not authentic."""
    path = tmp_path / "report.bin"
    assert blindai("evidence", "tdx", path).returncode == 2
    for content in (b"", b"garbage", bytes(5000)):
        path.write_bytes(content)
        for platform in ("sgx", "tdx", "sev-snp", "nitro", "tpm", "nvidia-gpu"):
            done = blindai("evidence", platform, path, "--json")
            assert done.returncode == 3, (platform, content[:8], done.stderr)
            document = json.loads(done.stdout)
            assert document["authentic"] is False
            assert "failed" in [step["status"] for step in document["steps"]]
