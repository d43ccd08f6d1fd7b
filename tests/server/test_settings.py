"""File, environment, flags: the later wins, and what nobody knows is told of."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError
from blindai.server.access.principal import Scope
from blindai.server.config import Limits
from blindai.server.settings import Settings, load_settings, server_config, variable
from tests.docs.pages import blocks
from tests.server.access.test_tokens import PEM

SHA = "ab" * 32


@pytest.fixture
def write(tmp_path):
    """Return what writes a file of settings."""

    def write_text(text):
        path = tmp_path / "blindai.toml"
        path.write_text(text)
        return path

    return write_text


def config(effective):
    """Return what the server takes."""
    return server_config(effective.settings, Platform.SIMULATION)


def test_nothing_set():
    """Without settings the server is as it is by default, and open to run and list."""
    found = config(load_settings())
    assert found.limits == Limits()
    assert (found.port, found.grpc_port, found.access.public) == (50051, 50053, None)
    assert found.access.open_scopes == {Scope.RUN, Scope.LIST}


def test_the_later_wins(write, monkeypatch):
    """A variable counts more than the file, a flag more than both; each value has its origin."""
    path = write("port = 1\npublic_port = 2\ngrpc_port = 3\n[limits]\nmax_models = 4\n")
    monkeypatch.setenv("BLINDAI_PUBLIC_PORT", "20")
    monkeypatch.setenv("BLINDAI_GRPC_PORT", "30")
    monkeypatch.setenv("BLINDAI_LIMITS__MAX_QUEUE", "50")
    effective = load_settings(path, {"grpc_port": 300})
    found = config(effective)
    assert (found.port, found.public_port, found.grpc_port) == (1, 20, 300)
    assert (found.limits.max_models, found.limits.max_queue) == (4, 50)
    origins = {name: origin for name, _, origin in effective.rows()}
    assert origins["port"] == origins["limits.max_models"] == f"file {path}"
    assert origins["public_port"] == "environment BLINDAI_PUBLIC_PORT"
    assert origins["limits.max_queue"] == "environment BLINDAI_LIMITS__MAX_QUEUE"
    assert origins["grpc_port"] == "flag --grpc-port"
    assert origins["limits.max_models"] != origins["host"] == "default"


def test_every_limit_can_be_set(write):
    """Each limit of the server is a setting, by its own name."""
    text = "\n".join(f"{item.name} = 7" for item in fields(Limits))
    found = config(load_settings(write(f"[limits]\n{text}\n")))
    assert found.limits == Limits(**{item.name: 7 for item in fields(Limits)})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_variable(name, monkeypatch):
    """No variable of a setting is told of as unknown."""
    monkeypatch.setenv(variable(name), "{}")
    try:
        unknown = load_settings().unknown
    except ConfigurationError as error:
        assert name in str(error)  # noqa: PT017 - either is right
    else:
        assert unknown == ()


def test_misspelt(write, monkeypatch):
    """A misspelt name is an error in the file, and told of in the environment."""
    with pytest.raises(ConfigurationError, match=r"limits\.max_modles.*no such setting"):
        load_settings(write("[limits]\nmax_modles = 4\n"))
    monkeypatch.setenv("BLINDAI_LIMITS__MAX_MODLES", "4")
    with pytest.raises(ConfigurationError, match="max_modles"):
        load_settings()
    monkeypatch.delenv("BLINDAI_LIMITS__MAX_MODLES")
    monkeypatch.setenv("BLINDAI_PROT", "4")
    assert load_settings().unknown == ("BLINDAI_PROT",)


@pytest.mark.parametrize(
    "text",
    [
        'port = "x"',
        "port = 70000",
        "port = 50052",
        "names = 5",
        "key_lifetime = 1e300",
        "max_batch = 0",
        "[limits]\nmax_models = 0",
        '[[load]]\nname = "m"',
        '[[load]]\nname = "../m"\npath = "m.onnx"',
        '[[load]]\nname = "m"\nurl = "https://x.example/m"',
        f'[[load]]\nname = "m"\nurl = "http://x.example/m"\nsha256 = "{SHA}"',
        f'[[load]]\nname = "m"\nurl = "https://me:pw@x.example/m"\nsha256 = "{SHA}"',
        '[[load]]\nname = "m"\npath = "m"\nsha256 = "AB"',
        '[[load]]\nname = "m"\npath = "m"\noptions = {precision = "fp1"}',
        '[[load]]\nname = "m"\npath = "a"\n[[load]]\nname = "m"\npath = "b"',
        '[access]\nclient_ca = "/nowhere/ca.pem"',
        '[[access.certificates]]\nname = "x"',
        '[[access.jwt]]\nissuer = "i"',
        '[[access.jwt]]\nissuer = "i"\naudience = "a"',
        '[[access.jwt]]\nissuer = "i"\naudience = "a"\nkeys = "/nowhere"',
        '[[access.jwt]]\nissuer = "i"\naudience = "a"\njwks_url = "https://x"\nscopes = ["root"]',
        "[access.tenants.acme]\nmax_bytes = 0",
        "[access.tenants.acme]\nmax_bytes = 8589934592",
        "port = ",
    ],
)
def test_settings_that_cannot_be(write, text):
    """What cannot be used is refused with our error, before anything starts."""
    with pytest.raises(ConfigurationError):
        config(load_settings(write(text)))


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file(tmp_path, content):
    """Whatever the file holds, it is settings or the one error."""
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    try:
        assert isinstance(load_settings(path).settings, Settings)
    except ConfigurationError as error:
        assert str(error)  # noqa: PT017 - either is right


def test_secrets_are_masked(write):
    """Neither a token nor the query of an address is shown, nor quoted in an error."""
    secret = "very-secret-very-secret"
    text = f'token = "{secret}"\n[[load]]\nname = "m"\nsha256 = "{SHA}"\n'
    path = write(f'{text}url = "https://x.example/m?sig={secret}"\n')
    effective = load_settings(path)
    assert secret not in str(effective.rows())
    assert secret not in repr(effective)
    assert config(effective).load[0].url.endswith(secret)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(f'port = "{secret}"\ntoken = ["{secret}"]\n'))
    assert secret not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(f'"{secret}" {secret}\n'))
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "public", "listed"),
    [
        ("", None, True),
        ('public = ["a"]', {"a"}, True),
        ('public = ["*"]', None, True),
        ("public = []", set(), True),
        ("[access.tenants.acme]", set(), False),
        ('public = ["*"]\n[access.tenants.acme]', None, False),
        ('public = ["*"]\nlisted = true\n[access.tenants.acme]', None, True),
    ],
)
def test_what_is_public(write, text, public, listed):
    """With tenants nothing is public, and nothing listed, unless the operator says so."""
    found = config(load_settings(write(f"[access]\n{text}\n"))).access
    assert (found.public, found.listed) == (public, listed)


def test_access_in_full(write, tmp_path):
    """All that can be said of access arrives where it is decided."""
    keys = tmp_path / "keys.pem"
    keys.write_bytes(PEM)
    found = config(
        load_settings(
            write(
                f"""
                [access]
                uploads = false
                api_keys = "{tmp_path}/keys.json"
                client_ca = "{keys}"
                [access.tenants.acme]
                rate = 2.5
                [[access.jwt]]
                issuer = "https://id.example"
                audience = "blindai"
                keys = "{keys}"
                tenant = "acme"
                scopes = ["run", "upload"]
                [[access.certificates]]
                name = "lab.example"
                tenant = "acme"
                """
            )
        )
    ).access
    assert found.issuers[0].keys == found.client_ca == PEM
    assert found.issuers[0].scopes == {Scope.RUN, Scope.UPLOAD}
    assert found.holders[0].scopes == {Scope.RUN, Scope.LIST}
    assert found.tenants["acme"].rate == 2.5
    assert not found.uploads


def test_digest_says_who_may_do_what(write):
    """Access and pinned models change the digest that clients see; rates do not."""
    base = config(load_settings()).digest()
    for text in (
        "[access]\nuploads = false",
        "[access]\npublic = []",
        f'[[load]]\nname = "m"\npath = "m"\nsha256 = "{SHA}"',
    ):
        assert config(load_settings(write(text))).digest() != base
    one = config(load_settings(write("[access.tenants.acme]\nrate = 1"))).digest()
    assert config(load_settings(write("[access.tenants.acme]\nrate = 2"))).digest() == one


EXAMPLES = [
    block for block in blocks("toml") if block.page.name in {"access.md", "configuration.md"}
]


@pytest.mark.parametrize("block", EXAMPLES, ids=[block.label for block in EXAMPLES])
def test_every_example_loads(write, block):
    """What the pages show as settings are settings; files that they name aside."""
    assert load_settings(write(block.text.replace("…", ""))).origins


def test_page_has_every_setting():
    """The reference names each setting, and nothing that is none."""
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    shown = {name.strip("`") for row in rows for name in row.split(", ")}
    known = {f"{name}" for name in Settings.model_fields} - {"access", "limits", "load"}
    known |= {f"limits.{item.name}" for item in fields(Limits)}
    assert known <= shown
