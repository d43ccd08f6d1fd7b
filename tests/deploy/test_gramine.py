"""What can be known of the Gramine packaging without SGX."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import source_from_cache
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest

import blindai
from tests.deploy.programs import DEPLOY, load
from tests.docs.pages import ROOT

trusted_files = load("gramine/trusted_files.py")
render = load("gramine/render.py")

LOCK = ROOT / "requirements" / "server.txt"
# Made by the kernel, or in the enclave's own memory; the terminal and the network's names.
NOT_FILES = re.compile(
    r"/(proc|sys|dev|tmp|run)/|/etc/(passwd|nsswitch|resolv|hosts|host\.conf|gai)"
)
# Found outside, absent or refused inside, where everything works without: path files, the C
# library's caches and locales, and settings of the system, which the host must not choose.
NOT_NEEDED = re.compile(
    r"\.(pth|cache)$|/_distutils_hack/|/locale|/zoneinfo|/etc/ssl/openssl\.cnf$|/os-release$"
)
OPENED = re.compile(r'^(?:\[pid +\d+\] |\d+ +)?openat\([^"]*"(/[^"]+)"[^)]*\) = \d+', re.MULTILINE)


@pytest.fixture(scope="module")
def collected():
    """Return the list for the environment that runs these tests."""
    return trusted_files.collect(Path(sys.executable), LOCK)


def test_everything_that_a_server_opens_is_listed(collected, tmp_path):
    """From its start through an upload to a prediction and its end."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy, sys\n"
        "from blindai.testing.server import start_server\n"
        "from blindai import connect\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "with start_server() as server:\n"
        "    with connect(server.address, simulation=True, token=server.token) as client:\n"
        "        client.upload_model(sys.argv[1], name='m')\n"
        "        client.run_model('m', {'x': numpy.ones((1, 4), numpy.float32)})\n"
    )
    model, trace = tmp_path / "model.onnx", tmp_path / "trace"
    model.write_bytes(identity())
    command = ["strace", "-f", "-qq", "-e", "trace=openat", "-o", str(trace), sys.executable]
    command += ["-I", "-B", str(program), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    opened = {str(Path(path).resolve()) for path in OPENED.findall(trace.read_text())}
    # Bytecode is not there inside: its source is read instead, and has to be.
    opened = {source_from_cache(path) if path.endswith(".pyc") else path for path in opened}
    opened = {path for path in opened if Path(path).is_file() and not NOT_FILES.match(path)}
    # This package is installed in place here; where it is served, it is a wheel with a RECORD.
    source = str(Path(blindai.__file__).parent)
    own = {path for path in opened if path.startswith((source, str(tmp_path)))}
    unexpected = opened - own - set(collected.hashes)
    unexpected = {path for path in unexpected if not NOT_NEEDED.search(path)}
    assert len(opened & set(collected.hashes)) > 200
    assert not unexpected


def identity() -> bytes:
    """Return a model that returns its four inputs."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - where it is needed

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "m", [x], [y])
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def test_hashes_are_of_the_files(collected):
    """A sample of the list is hashed again, by other means."""
    some = sorted(collected.hashes)[:: max(1, len(collected.hashes) // 20)]
    done = subprocess.run(["sha256sum", *some], capture_output=True, text=True, check=True)
    assert dict(reversed(line.split(maxsplit=1)) for line in done.stdout.splitlines()) == {
        path: collected.hashes[path] for path in some
    }
    assert not any(path.endswith(".pyc") for path in collected.hashes)


def package(folder: Path, name: str, version: str, **files: str) -> Path:
    """Make an installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]
    for file, text in files.items():
        path = folder / f"{file}.py"
        path.write_text(text)
        digest = trusted_files._record_digest(trusted_files.sha256(path))
        lines.append(f"{path.name},{digest},{len(text)}")
    (info / "RECORD").write_text("\n".join(lines) + "\n")
    return folder


def test_package_as_locked(tmp_path):
    """All of its files are listed, each with the hash that its RECORD names."""
    found = trusted_files.package_files(package(tmp_path, "a-b", "1", x="1", y="2"), "a-b", {"1"})
    assert {Path(path).name for path in found} == {"METADATA", "RECORD", "x.py", "y.py"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: {"2"}, "expected version 2, came 1"),
        (lambda folder: (folder / "x.py").write_text("evil") and {"1"}, "not the file that was"),
        (lambda folder: (folder / "x.py").unlink() or {"1"}, "which is not there"),
    ],
)
def test_package_not_as_locked(tmp_path, spoil, says):
    """Another version, a changed file and a missing one end the build."""
    folder = package(tmp_path, "a-b", "1", x="1")
    versions = spoil(folder)
    with pytest.raises(trusted_files.NotAsLockedError, match=says):
        trusted_files.package_files(folder, "a-b", versions)


def test_missing_package(tmp_path):
    """What the lock file names has to be installed."""
    with pytest.raises(trusted_files.NotAsLockedError, match="not installed"):
        trusted_files.package_files(tmp_path, "numpy", {"1"})


def test_no_lock():
    """A file that pins nothing is no lock."""
    with pytest.raises(trusted_files.NotAsLockedError, match="pins packages"):
        trusted_files.pinned("numpy>=2\n")


def test_manifest_renders(collected):
    """It is TOML; nothing in it is left to the host, and every file has a hash."""
    trusted = json.loads(collected.to_json())
    gramine = SimpleNamespace(libos="/g/libsysdb.so", runtimedir=lambda: "/g/runtime")
    options = render.parse_arguments(["trusted.json"])
    text = (
        jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        .from_string(render.TEMPLATE.read_text())
        .render(render.variables(trusted, options), gramine=gramine)
    )
    manifest = tomllib.loads(text)
    assert manifest["sgx"]["debug"] is False
    assert manifest["sgx"]["remote_attestation"] == "dcap"
    assert "file_check_policy" not in manifest["sgx"]  # strict, unless it is said otherwise
    assert not [key for key in manifest["loader"] if key.startswith("insecure__")]
    assert "allowed_files" not in manifest["sgx"]
    own, hashed = manifest["sgx"]["trusted_files"][:2], manifest["sgx"]["trusted_files"][2:]
    assert all(each["uri"].startswith("file:/g/") for each in own)
    assert {each["uri"][5:]: each["sha256"] for each in hashed} == collected.hashes
    assert manifest["loader"]["argv"][:6] == ["python3", "-I", "-B", "-m", "blindai", "serve"]
    assert manifest["libos"]["entrypoint"] == trusted["python"]
    size = manifest["sgx"]["enclave_size"]
    assert size.endswith("G")
    assert int(size[:-1]).bit_count() == 1


def test_makefile_names_what_is_there():
    """Every file that the Makefile takes from the repository exists."""
    text = (DEPLOY / "gramine" / "Makefile").read_text()
    named = set(re.findall(r"\$\(ROOT\)/([\w/.]+)", text))
    assert named
    assert all((ROOT / each).exists() for each in named)
    for command in re.findall(r"pip install.*", text):
        assert "--require-hashes" in command or "--no-deps" in command
