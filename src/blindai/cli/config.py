"""`blindai config`: what a server would be told, and whether it could start with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from blindai.attestation.model import Platform
from blindai.cli.options import json_option
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.server.settings import Effective

CONFIG_VARIABLE: Final = "BLINDAI_CONFIG"

config_option: Final = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar=CONFIG_VARIABLE,
    help=f"Settings as TOML; or {CONFIG_VARIABLE}. Variables BLINDAI_* and flags count more.",
)


@click.group()
def config() -> None:
    """Show and check the settings of a server, from a file and the environment."""


@config.command()
@config_option
@json_option
def show(config_file: Path | None, *, as_json: bool) -> None:
    """Show every setting, where it came from, and secrets masked."""
    effective = load(config_file)
    rows = effective.rows()
    if as_json:
        listed = [{"name": name, "value": value, "origin": origin} for name, value, origin in rows]
        click.echo(json.dumps({"settings": listed, "unknown": list(effective.unknown)}))
        return
    width = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        text = f"{name:<{width}} = {json.dumps(value)}"
        where = "" if origin == "default" else f"  # {origin}"
        click.echo(text + click.style(where, fg="cyan"))
    _warn(effective)


@config.command()
@config_option
@json_option
def check(config_file: Path | None, *, as_json: bool) -> None:
    """Check the settings, and the files that they name, without starting a server.

    Ends with 2 and the reason where a server could not start with them. A value that depends on
    the machine, such as its trusted hardware, is looked at when the server starts.
    """
    effective = load(config_file)
    found = _check(effective)
    if as_json:
        click.echo(json.dumps({"digest": found.hex(), "unknown": list(effective.unknown)}))
        return
    _warn(effective)
    click.echo(f"settings can be used; what clients see of them has the digest {found.hex()}")


def load(config_file: Path | None, flags: dict[str, object] | None = None) -> Effective:
    """Return the settings that count.

    Raises:
        ConfigurationError: They cannot be used, or the server is not installed.
    """
    try:
        from blindai.server.settings import load_settings  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        msg = f"the server needs {error.name}; install it with: pip install 'blindai[server]'"
        raise ConfigurationError(msg) from error
    return load_settings(config_file, flags)


def fetch_keys(url: str) -> bytes:
    """Return the key set at an https address; bounded, and no redirect is followed."""
    from blindai.endorsements import HttpsGet  # noqa: PLC0415 - when it is needed
    from blindai.server.access.jwks import MAX_SET_BYTES  # noqa: PLC0415 - an extra

    return HttpsGet(max_bytes=MAX_SET_BYTES).get(url).body


def _check(effective: Effective) -> bytes:
    """Return the digest of a configuration that could be used."""
    from blindai.channel.tls import check_authorities  # noqa: PLC0415
    from blindai.server.access import Access, generate_token  # noqa: PLC0415
    from blindai.server.settings import server_config  # noqa: PLC0415

    settings = effective.settings
    platform = settings.platform or Platform.SIMULATION
    if platform not in set(Platform):
        msg = f"platform: expected one of {', '.join(Platform)}, came {platform[:40]!r}"
        raise ConfigurationError(msg)
    found = server_config(settings, Platform(platform))
    token = settings.token.get_secret_value() if settings.token else generate_token()
    Access(token, found.access, fetch=fetch_keys)
    if found.access.client_ca is not None:
        check_authorities(found.access.client_ca, found.access.client_crl)
    _check_paths("models", [found.models], Path.is_dir, "a folder")
    _check_paths("load", [each.path for each in found.load], Path.is_file, "a file")
    return found.digest()


def _check_paths(
    setting: str, paths: list[Path | None], exists: Callable[[Path], bool], what: str
) -> None:
    for path in paths:
        if path is not None and not exists(path):
            msg = f"{setting}: expected {what} at {path}"
            raise ConfigurationError(msg)


def _warn(effective: Effective) -> None:
    for name in effective.unknown:
        click.secho(f"{name} is set and is no setting: it changes nothing", fg="yellow", err=True)
