"""What the operator set, and where: a TOML file, `BLINDAI_*` variables, flags; the later wins.

Always true: a name that nobody knows is an error in the file and told of in the environment;
a secret is shown masked; files that a setting names (keys, certificates) are read here, once.
`Settings` is the schema, `load_settings` merges, `server_config` makes what the server takes.

A nested setting is a table in the file and has two underscores in the environment:
`[limits] max_models` is `BLINDAI_LIMITS__MAX_MODELS`. Lists and tables are JSON there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Any, Final, Literal, get_type_hints
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from blindai.errors import ConfigurationError, InvalidInput
from blindai.inference.options import parse_options
from blindai.inference.records import check_name
from blindai.server.access.principal import OPERATOR, Scope
from blindai.server.access.rules import AccessRules, Holder, Issuer, Quota
from blindai.server.config import Limits, ModelToLoad, ServerConfig

if TYPE_CHECKING:
    from blindai.attestation.model import Platform

PREFIX: Final = "BLINDAI_"
# Variables of the client, of telemetry and of the file itself.
OTHER_VARIABLES: Final = frozenset(
    {"blindai_config", "blindai_disable_telemetry", "blindai_policy", "blindai_server"}
)
_MAX_FILE: Final = 1 << 20
_STRICT: Final = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Strict(BaseModel):
    model_config = _STRICT


def _mirror(name: str, of: type) -> type[BaseModel]:
    """Return a schema with the fields and defaults of a dataclass, so that none is forgotten."""
    hints = get_type_hints(of)
    known: dict[str, Any] = {
        item.name: (
            hints[item.name],
            item.default
            if item.default_factory is MISSING
            else Field(default_factory=item.default_factory),
        )
        for item in fields(of)
    }
    return create_model(name, __config__=_STRICT, **known)


LimitsSettings: Final = _mirror("LimitsSettings", Limits)
QuotaSettings: Final = _mirror("QuotaSettings", Quota)
_DEFAULT_SCOPES: Final = frozenset({Scope.RUN, Scope.LIST})


class LoadSettings(_Strict):
    """One model that is served from the start."""

    name: str
    path: Path | None = None
    url: str | None = Field(default=None, repr=False)  # its query may be a secret
    sha256: str | None = None
    options: dict[str, str | int | float] = Field(default_factory=dict)


class JwtSettings(_Strict):
    """An issuer of JWTs."""

    issuer: str
    audience: str
    keys: Path | None = None
    jwks_url: str | None = None
    tenant_claim: str = "tenant"
    tenant: str | None = None
    scopes: frozenset[Scope] = _DEFAULT_SCOPES
    leeway: float = 30.0
    max_lifetime: float = 86_400.0


class CertificateSettings(_Strict):
    """A holder of a client certificate."""

    name: str
    tenant: str = OPERATOR
    scopes: frozenset[Scope] = _DEFAULT_SCOPES


class AccessSettings(_Strict):
    """Who may do what."""

    public: tuple[str, ...] | None = None
    listed: bool | None = None
    uploads: bool = True
    api_keys: Path | None = None
    client_ca: Path | None = None
    client_crl: Path | None = None
    jwt: tuple[JwtSettings, ...] = ()
    certificates: tuple[CertificateSettings, ...] = ()
    tenants: dict[str, QuotaSettings] = Field(default_factory=dict)  # type: ignore[valid-type]


class Settings(BaseSettings):
    """Everything that an operator can set."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
    )

    platform: str | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    public_port: int = 50052
    grpc: bool = True
    grpc_port: int = 50053
    names: tuple[str, ...] = ("localhost",)
    models: Path | None = None
    load: tuple[LoadSettings, ...] = ()
    sealed_models: Path | None = None
    take_over: bool = False
    prune_after: int | None = None
    audit_log: Path | None = None
    otlp_endpoint: str | None = None
    trace_ratio: float = 0.01
    log_level: Literal["info", "warning", "error"] = "info"
    store: Path | None = None
    gpus: bool = False
    tpm: str | None = None
    ak_certificates: Path | None = None
    fetch_endorsements: bool = True
    key_lifetime: float = timedelta(days=7).total_seconds()
    threads: int = 0
    runs: int = 0
    max_batch: int = 1
    token: SecretStr | None = None
    token_file: Path | None = None
    telemetry_endpoint: str | None = None
    access: AccessSettings = Field(default_factory=AccessSettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)  # type: ignore[valid-type]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return what is passed alone: `load_settings` merges, and knows what came from where."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Effective:
    """Settings, and where each of them came from.

    Attributes:
        settings: The values.
        origins: Dotted name → "file …", "environment …" or "flag …"; others are defaults.
        unknown: Variables that look like settings and are none.
    """

    settings: Settings
    origins: Mapping[str, str]
    unknown: tuple[str, ...]

    def rows(self) -> list[tuple[str, object, str]]:
        """Return every setting: its dotted name, its value with secrets masked, its origin."""
        shown = [
            (name, _masked(value)) for name, value in _leaves(self.settings.model_dump(mode="json"))
        ]
        return [(name, value, self._origin(name)) for name, value in shown]

    def _origin(self, name: str) -> str:
        # A table that was given as a whole stands for all that is in it.
        parts = name.split(".")
        above = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.origins[each] for each in above if each in self.origins), "default")


def load_settings(file: Path | None = None, flags: Mapping[str, object] | None = None) -> Effective:
    """Merge what a file, the environment and flags say; the later wins.

    Args:
        file: TOML; `None`: there is none.
        flags: Of the command line, by the names of settings; those that were given only.

    Raises:
        ConfigurationError: A file that cannot be read, a name that nobody knows, or a value that
            cannot be. Values are not quoted.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is not None:
        _merge(merged, _load_file(file), lambda _: f"file {file}", origins)
    environment = EnvSettingsSource(Settings)
    try:
        said = environment()
    except SettingsError as error:
        msg = f"environment: {error}: expected JSON for a list or a table"
        raise ConfigurationError(msg) from error
    _merge(merged, said, lambda name: f"environment {variable(name)}", origins)
    _merge(merged, dict(flags or {}), lambda name: f"flag --{name.replace('_', '-')}", origins)
    known = {PREFIX.lower() + name for name in Settings.model_fields}
    unknown = [
        name.upper()
        for name in environment.env_vars
        if name.startswith(PREFIX.lower())
        and name.split("__")[0] not in known
        and name not in OTHER_VARIABLES
    ]
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise _explain(error, origins) from error
    return Effective(settings, origins, tuple(sorted(unknown)))


def server_config(settings: Settings, platform: Platform) -> ServerConfig:
    """Return what the server takes.

    Args:
        settings: What the operator set.
        platform: That was found, or that they named.

    Raises:
        ConfigurationError: Values that contradict each other, or a file that cannot be read.
    """
    days = settings.prune_after
    return ServerConfig(
        platform=platform,
        host=settings.host,
        port=settings.port,
        public_port=settings.public_port,
        grpc_port=settings.grpc_port if settings.grpc else None,
        names=settings.names,
        models=settings.models,
        sealed=settings.sealed_models,
        take_over=settings.take_over,
        audit_log=settings.audit_log,
        otlp_endpoint=settings.otlp_endpoint,
        trace_ratio=settings.trace_ratio,
        prune_after=None if days is None else _span("prune_after", days=days),
        gpus=settings.gpus,
        store=settings.store,
        key_lifetime=_span("key_lifetime", seconds=settings.key_lifetime),
        threads=settings.threads,
        runs=settings.runs,
        max_batch=settings.max_batch,
        access=access_rules(settings.access),
        load=tuple(_model(each) for each in settings.load),
        limits=Limits(**settings.limits.model_dump()),  # type: ignore[attr-defined]
    )


def access_rules(access: AccessSettings) -> AccessRules:
    """Return who may do what.

    Where nothing is said of what is public, all of the operator's models are, unless somebody
    but the operator can prove who they are: then none is.

    Raises:
        ConfigurationError: Values that contradict each other, or a file that cannot be read.
    """
    is_open = not (access.api_keys or access.jwt or access.certificates or access.tenants)
    read = (access.client_ca, access.client_crl, *(each.keys for each in access.jwt))
    public = frozenset(access.public) if access.public is not None else frozenset[str]()
    everything = is_open if access.public is None else "*" in public
    return AccessRules(
        public=None if everything else public,
        listed=is_open if access.listed is None else access.listed,
        uploads=access.uploads,
        api_keys=access.api_keys,
        issuers=tuple(
            Issuer(
                name=each.issuer,
                keys=_read(each.keys, "access.jwt.keys"),
                **each.model_dump(exclude={"issuer", "keys"}),
            )
            for each in access.jwt
        ),
        client_ca=_read(access.client_ca, "access.client_ca"),
        client_crl=_read(access.client_crl, "access.client_crl"),
        holders=tuple(Holder(**each.model_dump()) for each in access.certificates),
        tenants={name: Quota(**each.model_dump()) for name, each in access.tenants.items()},  # type: ignore[attr-defined]
        files=tuple(path for path in read if path is not None),
    )


def variable(name: str) -> str:
    """Return the variable of a setting, by its dotted name."""
    return PREFIX + name.replace(".", "__").upper()


def _model(each: LoadSettings) -> ModelToLoad:
    options = {name: str(value) for name, value in each.options.items()}
    try:
        check_name(each.name)
        parse_options(options)
    except InvalidInput as error:
        msg = f"load {each.name[:128]!r}: {error}"
        raise ConfigurationError(msg) from error
    if each.url is not None and urlsplit(each.url).username is not None:
        msg = f"load {each.name!r}: expected a url without a user's name or password"
        raise ConfigurationError(msg)
    return ModelToLoad(
        name=each.name, path=each.path, url=each.url, sha256=each.sha256, options=options
    )


def _span(setting: str, **length: float) -> timedelta:
    try:
        return timedelta(**length)
    except (OverflowError, ValueError) as error:
        (unit, number), *_ = length.items()
        msg = f"{setting}: expected {unit}, came {number}"
        raise ConfigurationError(msg) from error


def _load_file(path: Path) -> dict[str, Any]:
    content = _read(path, "--config")
    try:
        return tomllib.loads((content or b"").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        # Without the parser's words: they may quote the file.
        line = f" in line {error.lineno}" if hasattr(error, "lineno") else ""
        msg = f"{path}: expected TOML{line}"
        raise ConfigurationError(msg) from error


def _read(path: Path | None, setting: str) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        msg = f"{setting}: cannot read {path}: {error.strerror}"
        raise ConfigurationError(msg) from error
    if len(content) > _MAX_FILE:
        msg = f"{setting}: expected at most {_MAX_FILE} bytes in {path}, came more"
        raise ConfigurationError(msg)
    return content


def _merge(
    into: dict[str, Any],
    said: Mapping[str, Any],
    origin: Any,
    origins: dict[str, str],
    prefix: str = "",
) -> None:
    """Lay what was said later over what was said before; tables are merged, lists replaced."""
    for key, value in said.items():
        name = f"{prefix}{key}"
        before = into.get(key)
        if isinstance(value, Mapping) and isinstance(before, dict | None) and value:
            inner = dict(before or {})
            _merge(inner, value, origin, origins, f"{name}.")
            into[key] = inner
        else:
            into[key] = value
            origins[name] = origin(name)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, value))
    return found


def _masked(value: Any) -> Any:
    """Return a value without what may be a secret: the query of an address is one, often."""
    if isinstance(value, list):
        return [_masked(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _masked(each) for key, each in value.items()}
    if isinstance(value, str) and value.startswith(("https://", "http://")) and "?" in value:
        return value.partition("?")[0] + "?**********"
    return value


def _explain(error: ValidationError, origins: Mapping[str, str]) -> ConfigurationError:
    """Return our error for pydantic's, with the setting and where it came from."""
    lines = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        name = ".".join(str(part) for part in each["loc"])
        where = next(
            (origins[key] for key in (name, name.rpartition(".")[0]) if key in origins), ""
        )
        what = "no such setting" if each["type"] == "extra_forbidden" else each["msg"]
        lines.append(f"{name}{f' ({where})' if where else ''}: {what}")
    return ConfigurationError("; ".join(lines))
