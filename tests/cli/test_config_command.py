"""`blindai config` and `blindai keys`: shown, checked, made and revoked."""

import json

import pytest

from tests.cli.conftest import blindai_command


def test_show(tmp_path, monkeypatch):
    """Every setting is shown with its origin, secrets masked."""
    monkeypatch.setenv("BLINDAI_TOKEN", "not-to-be-shown-ever")
    monkeypatch.setenv("BLINDAI_PROT", "1")
    path = tmp_path / "b.toml"
    path.write_text("port = 1234\n")
    shown = blindai_command("config", "show", "--config", path)
    assert shown.returncode == 0
    assert f"= 1234  # file {path}" in shown.stdout
    assert "not-to-be-shown-ever" not in shown.stdout
    assert "BLINDAI_PROT" in shown.stderr
    listed = json.loads(blindai_command("config", "show", "--config", path, "--json").stdout)
    values = {each["name"]: each["value"] for each in listed["settings"]}
    assert (values["port"], values["token"]) == (1234, "**********")
    assert listed["unknown"] == ["BLINDAI_PROT"]


def test_the_file_can_be_a_variable(tmp_path, monkeypatch):
    """BLINDAI_CONFIG names the file, too."""
    path = tmp_path / "b.toml"
    path.write_text("port = 1234\n")
    monkeypatch.setenv("BLINDAI_CONFIG", str(path))
    assert "1234" in blindai_command("config", "show").stdout


def test_check(tmp_path):
    """Settings that can be used have a digest, the same each time."""
    path = tmp_path / "b.toml"
    path.write_text("[access]\npublic = []\n")
    one, two = (blindai_command("config", "check", "--config", path, "--json") for _ in range(2))
    assert one.returncode == 0
    assert len(json.loads(one.stdout)["digest"]) == 64
    assert one.stdout == two.stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot = 1", "prot"),
        ('token = "short"', "16 or more"),
        ('platform = "toaster"', "platform"),
        ('models = "/nowhere"', "/nowhere"),
        ('[[load]]\nname = "m"\npath = "/nowhere/m.onnx"', "/nowhere/m.onnx"),
        ('[access]\napi_keys = "/nowhere/keys.json"', "/nowhere/keys.json"),
    ],
)
def test_check_fails(tmp_path, text, reason):
    """What a server could not start with ends with 2 and the reason."""
    path = tmp_path / "b.toml"
    path.write_text(text)
    done = blindai_command("config", "check", "--config", path)
    assert done.returncode == 2
    assert reason in done.stderr


def test_keys(tmp_path):
    """A key is shown when it is made, and never again; revoked, it stays in the list."""
    path = tmp_path / "keys.json"
    made = json.loads(
        blindai_command("keys", "api", "create", "--file", path, "--name", "ward", "--json").stdout
    )
    assert made["scopes"] == ["list", "run"]
    listed = blindai_command("keys", "api", "list", "--file", path)
    assert made["id"] in listed.stdout
    assert made["key"] not in listed.stdout + path.read_text()
    assert blindai_command("keys", "api", "revoke", "--file", path, made["id"]).returncode == 0
    again = json.loads(blindai_command("keys", "api", "list", "--file", path, "--json").stdout)
    assert [(key["id"], key["state"]) for key in again["keys"]] == [(made["id"], "revoked")]


def test_keys_without_a_file_or_tenant(tmp_path):
    """Where nothing says in which file, or the tenant is none of the settings, nothing is made."""
    assert blindai_command("keys", "api", "list").returncode == 2
    config = tmp_path / "b.toml"
    config.write_text(f'[access]\napi_keys = "{tmp_path}/k.json"\n[access.tenants.acme]\n')
    arguments = ("keys", "api", "create", "--config", config, "--name", "x", "--tenant")
    assert blindai_command(*arguments, "amce").returncode == 2
    assert not (tmp_path / "k.json").exists()
    assert blindai_command(*arguments, "acme").returncode == 0
