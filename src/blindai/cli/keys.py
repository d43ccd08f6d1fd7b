"""`blindai keys api`: make, list and revoke API keys, in the file that a server reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from blindai.cli.config import config_option, load
from blindai.cli.options import json_option
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from blindai.server.access.keys import KeyRecord

# As blindai.server.access.principal.Scope, which is in an extra.
_SCOPES: Final = ("run", "upload", "delete", "list", "admin")

_file_option = click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the keys; by default the setting access.api_keys.",
)


@click.group()
def keys() -> None:
    """Manage who may use a server."""


@keys.group()
def api() -> None:
    """Make, list and revoke API keys; a running server follows within two seconds."""


@api.command()
@config_option
@_file_option
@click.option("--name", required=True, help="For people: whose key it is.")
@click.option("--tenant", default="", help="Whose models it uses; by default the operator's.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(_SCOPES),
    multiple=True,
    default=("run", "list"),
    show_default=True,
    help="What it opens; may be given several times.",
)
@click.option(
    "--expires-in-days",
    type=click.FloatRange(0, 36_500, min_open=True),
    default=90.0,
    show_default=True,
    help="When it ends.",
)
@click.option("--never-expires", is_flag=True, help="Let it hold until it is revoked.")
@json_option
def create(
    config_file: Path | None,
    file: Path | None,
    *,
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    expires_in_days: float,
    never_expires: bool,
    as_json: bool,
) -> None:
    """Make an API key and show it, once: only its SHA-256 is kept."""
    path = _path(config_file, file, tenant)
    from blindai.server.access.keys import create_key  # noqa: PLC0415 - an extra
    from blindai.server.access.principal import parse_scopes  # noqa: PLC0415

    record, token = create_key(
        path,
        name=name,
        scopes=parse_scopes(scopes),
        now=_now(),
        tenant=tenant,
        lifetime=None if never_expires else timedelta(days=expires_in_days),
    )
    if as_json:
        click.echo(json.dumps(_describe(record) | {"key": token}))
        return
    click.echo(f"id:      {record.id}")
    click.echo(f"expires: {_when(record.expires)}")
    click.echo(f"key (shown once): {token}")


@api.command("list")
@config_option
@_file_option
@json_option
def list_(config_file: Path | None, file: Path | None, *, as_json: bool) -> None:
    """List the API keys, without the keys themselves."""
    path = _path(config_file, file)
    from blindai.server.access.keys import load_keys  # noqa: PLC0415 - an extra

    records = sorted(load_keys(path).values(), key=lambda record: record.created)
    if as_json:
        click.echo(json.dumps({"keys": [_describe(record) for record in records]}))
        return
    for record in records:
        whose = record.tenant or "(operator)"
        what = ",".join(sorted(record.scopes))
        state = record.state(_now())
        ends = f"until {_when(record.expires)}" if state == "valid" else ""
        click.echo(f"{record.id}  {state:<8} {whose}  {what}  {record.name!r} {ends}".rstrip())


@api.command()
@config_option
@_file_option
@click.argument("key_id", metavar="ID")
@json_option
def revoke(config_file: Path | None, file: Path | None, key_id: str, *, as_json: bool) -> None:
    """Revoke the API key named ID, for good."""
    path = _path(config_file, file)
    from blindai.server.access.keys import revoke_key  # noqa: PLC0415 - an extra

    record = revoke_key(path, key_id, now=_now())
    if as_json:
        click.echo(json.dumps(_describe(record)))
        return
    click.echo(f"revoked: {record.id} ({record.name!r})")


def _path(config_file: Path | None, file: Path | None, tenant: str = "") -> Path:
    """Return where the keys are; where settings name tenants, refuse one that is none of them."""
    settings = load(config_file).settings
    path = file or settings.access.api_keys
    if path is None:
        msg = "expected --file, or the setting access.api_keys"
        raise ConfigurationError(msg)
    known = settings.access.tenants
    if tenant and known and tenant not in known:
        msg = f"--tenant: expected one of {', '.join(sorted(known))}, came {tenant[:80]!r}"
        raise ConfigurationError(msg)
    return path


def _describe(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "scopes": sorted(record.scopes),
        "state": record.state(_now()),
        "created": record.created.isoformat(),
        "expires": None if record.expires is None else record.expires.isoformat(),
        "revoked": None if record.revoked is None else record.revoked.isoformat(),
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _when(moment: datetime | None) -> str:
    return "never" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
