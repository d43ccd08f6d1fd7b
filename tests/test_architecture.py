"""What the design promises about the code as a whole, so that it stays true."""

import ast
import builtins
import subprocess
import sys
import typing
from functools import cache
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import blindai
from blindai import errors
from blindai.cli import EXIT_CODES, exit_code

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "blindai").rglob("*.py"))
# Modules that may touch the environment, each for one thing.
ENVIRONMENT = {
    "cli/serve.py": "hands what refuses telemetry to who decides",
    "inference/onnx.py": "turns onnxruntime's telemetry off before it is imported",
    "confinement/environment.py": "leaves it behind",
    "cli/demo.py": "keeps the tokenizer from starting threads",
    "attesters/tpm/device.py": "silences the TPM library's own log",
}
# Modules that unpack structures beside `attestation/reader.py`.
UNPACKING = {
    "attestation/reader.py": "the one place for bytes from strangers",
    "inference/arrays.py": "tensors, a gigabyte of them",
    "attesters/nitro.py": "what the kernel wrote into an ioctl",
    "server/grpc/frames.py": "HTTP/2, thousands of frames a second",
}
NETWORK = {"socket", "ssl", "http", "urllib.request", "asyncio", "aiohttp", "httpx", "requests"}


def label(path):
    """Return a source file's name inside the package."""
    return path.relative_to(ROOT / "src" / "blindai").as_posix()


@cache
def tree(path):
    """Return a source file's syntax tree."""
    return ast.parse(path.read_text("utf-8"))


def nodes(path, kind):
    """Return every node of a kind in a source file."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, kind)]


def offenders(check, *, but=()):
    """Return the source files, without those of `but`, for which `check` finds something."""
    return {
        label(path): found for path in SOURCES if label(path) not in but and (found := check(path))
    }


def test_imports_go_down_only(capsys):
    """The layers of design.md §3 hold; import-linter tells which import breaks them."""
    code = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_public_names():
    """`blindai.__all__` is sorted, complete, and importable."""
    assert blindai.__all__ == sorted(set(blindai.__all__))
    assert all(getattr(blindai, name) is not None for name in blindai.__all__)
    submodules = {label(path).split("/")[0].removesuffix(".py") for path in SOURCES}
    borrowed = {"annotations", *typing.__all__}
    found = {name for name in vars(blindai) if not name.startswith("_")}
    assert found - submodules - borrowed <= set(blindai.__all__)
    assert "verify" in found
    assert callable(blindai.verify)


def test_public_errors():
    """Every error that a user can see is a public name."""
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) <= set(blindai.__all__)
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined == set(errors.__all__)


def test_the_tree_of_errors_is_drawn():
    """The tree in the docstring of errors.py names every class, and under its parent."""
    drawn = [line for line in errors.__doc__.splitlines() if "── " in line]
    parents = ["BlindAIError"]
    for line in drawn:
        name = line.split("── ")[1].split()[0]
        depth = (line.index("── ") - 1) // 4
        del parents[depth:]
        assert getattr(errors, name).__base__.__name__ == parents[-1]
        parents.append(name)
    warnings = {"SecurityWarning", "SimulationWarning"}
    names = {line.split("── ")[1].split()[0] for line in drawn}
    assert names == set(errors.__all__) - warnings - {"BlindAIError"}


def test_errors_import_nothing():
    """errors.py is below everything, so everything can raise."""
    (path,) = [path for path in SOURCES if label(path) == "errors.py"]
    imported = [node.module for node in nodes(path, ast.ImportFrom)]
    assert set(imported) <= {"__future__", "typing", "collections.abc"}
    assert not nodes(path, ast.Import)


def test_exit_codes():
    """Each error has an exit code that says whose turn it is."""
    codes = {
        name: exit_code(getattr(errors, name)("why"))
        for name in errors.__all__
        if issubclass(getattr(errors, name), errors.BlindAIError) and name != "BlindAIError"
    }
    assert set(codes.values()) == set(EXIT_CODES.values()) == {2, 3, 4, 5}
    for name, code in codes.items():
        kind = getattr(errors, name)
        assert (code == 2) == issubclass(kind, errors.ConfigurationError)
        assert (code == 3) == issubclass(kind, errors.AttestationError)
        assert (code == 5) == issubclass(kind, errors.ConnectionFailed)


def exceptions_in(path):
    """Return the exception classes that a source file defines."""
    known = set(errors.__all__) | {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    found = []
    for node in nodes(path, ast.ClassDef):
        bases = {base.attr for base in node.bases if isinstance(base, ast.Attribute)}
        bases |= {base.id for base in node.bases if isinstance(base, ast.Name)}
        if bases & known or any(base.endswith(("Error", "Exception")) for base in bases):
            found.append(node.name)
    return found


def test_errors_are_defined_in_one_place():
    """An exception class stands in errors.py, where the tree is drawn."""
    assert not offenders(exceptions_in, but={"errors.py"})


def test_no_assert():
    """An assert vanishes with -O, and what it guarded with it."""
    assert not offenders(lambda path: nodes(path, ast.Assert))


def calls_in(path):
    """Return the names of the plain functions that a source file calls."""
    return {node.func.id for node in nodes(path, ast.Call) if isinstance(node.func, ast.Name)}


def test_no_print():
    """Output belongs to the command line."""
    command_line = {label(path) for path in SOURCES if label(path).startswith("cli/")}
    assert not offenders(lambda path: calls_in(path) & {"print"}, but=command_line)


def test_nothing_runs_data():
    """No format that can run code is read, and no text is run."""
    dangerous = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert not offenders(lambda path: imports(path) & dangerous)
    assert not offenders(lambda path: calls_in(path) & {"eval", "exec", "breakpoint"})


def attributes_in(path):
    """Return every attribute name that a source file mentions."""
    return {node.attr for node in nodes(path, ast.Attribute)}


def test_bytes_are_unpacked_in_one_place():
    """Only the bounds-checked reader unpacks what strangers sent."""
    unpacking = {"unpack", "unpack_from", "iter_unpack"}
    assert not offenders(lambda path: attributes_in(path) & unpacking, but=UNPACKING)


def test_the_environment_is_left_alone():
    """Nothing is configured, and nothing is trusted, through environment variables."""
    environment = {"environ", "environb", "getenv", "putenv"}
    assert not offenders(lambda path: attributes_in(path) & environment, but=ENVIRONMENT)


@pytest.mark.parametrize("exceptions", [ENVIRONMENT, UNPACKING])
def test_exceptions_are_needed(exceptions):
    """An exception for a module that is gone, or no longer needs it, is removed."""
    for name, reason in exceptions.items():
        path = ROOT / "src" / "blindai" / name
        assert attributes_in(path) & {"environ", "unpack", "unpack_from"}, name
        assert reason


def imports(path):
    """Return what a source file imports, by full name."""
    found = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
    for node in nodes(path, ast.ImportFrom):
        found.add(node.module or "")
        found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_verification_is_pure():
    """What verifies opens no connection, reads no clock, and rolls no dice."""
    pure = {"attestation", "platforms", "verify.py", "errors.py"}
    others = {label(path) for path in SOURCES if label(path).split("/")[0] not in pure}
    impure = NETWORK | {"time", "random", "secrets", "subprocess", "os"}
    allowed = {"attestation/policy.py"}  # os.PathLike, for type checkers
    assert not offenders(lambda path: imports(path) & impure, but=others | allowed)
    clock = {"now", "utcnow", "today"}
    assert not offenders(lambda path: attributes_in(path) & clock, but=others)


def test_words():
    """The code says parse, verify, appraise and check, each for one thing."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not offenders(
        lambda path: [n.name for n in nodes(path, functions) if "validat" in n.name.lower()]
    )
    nowhere = {"utils", "util", "helpers", "common", "manager", "factory", "misc"}
    assert not nowhere & {
        part for path in SOURCES for part in Path(label(path)).with_suffix("").parts
    }


def test_every_module_says_what_is_true():
    """A module begins with a sentence about itself."""
    assert not offenders(lambda path: not ast.get_docstring(tree(path)))


HEAVY = {"onnxruntime", "onnx", "uvicorn", "httptools", "aiohttp", "tokenizers"}


@pytest.mark.parametrize("module", ["blindai", "blindai.testing", "blindai.cli"])
def test_imports_are_light(module):
    """The client, its tests and the command line start without the server's dependencies."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())
    assert not run.stderr


def test_no_registry_is_named():
    """No file holds the address of a package registry: where packages come from is local."""
    hosts = [
        ".".join(parts).encode()
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("npmjs", "org"),
            ("crates", "io"),
            ("proxy", "golang", "org"),
            ("rubygems", "org"),
            ("docker", "io"),
        )
    ]
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        check=False,
    )
    names = [name for name in listed.stdout.decode().split("\0") if name]
    files = [ROOT / name for name in names] or [*SOURCES, ROOT / "pyproject.toml"]
    for file in files:
        if file.is_file() and file.stat().st_size < (4 << 20):
            content = file.read_bytes()
            assert not [host for host in hosts if host in content], file
