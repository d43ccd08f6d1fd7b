"""The Appraisal Policy (RFC 9334 §8.5): what a client accepts, and nothing besides.

A policy is strict where it is read: an unknown key, an unknown claim, a policy that accepts
nothing or a block that pins no code identity is refused at load. There is one rule for each
part of the claims: a measurement is one of a set, a version is at least a number, and a
weakness is refused unless it is tolerated by name.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import cbor2

from blindai.attestation.model import Platform
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import PolicyError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

POLICY_VERSION: Final = 1
MAX_POLICY_BYTES: Final = 1 << 20
_TEXT: Final = "text:"
_ACCEPT_KEYS: Final = frozenset(
    {
        "platform",
        "measurement",
        "measurements",
        "minimum",
        "chips",
        "tolerate",
        "max_age",
        "devices",
    }
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A measurement that is accepted: exact bytes, or some of their bits.

    Attributes:
        value: The bytes.
        mask: The bits of them that count; `None`: all.
    """

    value: bytes
    mask: bytes | None = None

    @classmethod
    def parse(cls, text: object, where: str) -> Self:
        """Read "hex", "sha256:hex", "hex/hex-mask" or "text:words"."""
        if not isinstance(text, str):
            msg = f"{where}: expected a hexadecimal string, found {text!r}"
            raise PolicyError(msg)
        if text.startswith(_TEXT):
            return cls(text.removeprefix(_TEXT).encode())
        value, _, mask = text.removeprefix("sha256:").partition("/")
        parsed = cls(_hex(value, where), _hex(mask, where) if mask else None)
        if not parsed.value or (parsed.mask and len(parsed.mask) != len(parsed.value)):
            msg = f"{where}: {text!r} is empty, or its mask is not as long as its value"
            raise PolicyError(msg)
        if parsed.mask is not None and not any(parsed.mask):
            msg = f"{where}: the mask of {text!r} is zero, so it would accept anything"
            raise PolicyError(msg)
        return parsed

    def matches(self, found: bytes) -> bool:
        """Return whether `found` is what this pattern accepts."""
        if self.mask is None:
            return found == self.value
        if len(found) != len(self.value):
            return False
        return all(f & m == v & m for f, v, m in zip(found, self.value, self.mask, strict=True))

    def __str__(self) -> str:
        return self.value.hex() + (f"/{self.mask.hex()}" if self.mask is not None else "")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One way to be accepted; every line of it has to hold.

    Attributes:
        platform: The only platform that this block speaks of.
        measurements: Name → what is accepted, any one of it.
        minimum: Name → smallest version accepted.
        chips: The only chips accepted; empty: any. The answer to stolen platform keys.
        tolerate: Weaknesses accepted by name; every other one is refused.
        max_age: Greatest age of the evidence in seconds, where the hardware signs a time.
        devices: Kinds of device of which at least one has to be shown along.
    """

    platform: Platform
    measurements: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)
    minimum: Mapping[str, int] = field(default_factory=dict)
    chips: tuple[bytes, ...] = ()
    tolerate: frozenset[str] = frozenset()
    max_age: int | None = None
    devices: tuple[Platform, ...] = ()

    def check(self, where: str) -> None:
        """Refuse a block that names unknown claims or pins no code identity."""
        words = VOCABULARY[self.platform]
        _refuse_unknown(where, "measurement", set(self.measurements) - words.measurements)
        _refuse_unknown(where, "version", set(self.minimum) - words.versions)
        unknown = {name for name in self.tolerate if not words.knows_weakness(name)}
        _refuse_unknown(where, "weakness", unknown)
        if any(not patterns for patterns in self.measurements.values()):
            msg = f"{where}: a measurement with an empty list would accept nothing"
            raise PolicyError(msg)
        pinned = set(self.measurements)
        if words.identity and not any(names <= pinned for names in words.identity):
            ways = " or ".join(" + ".join(sorted(names)) for names in words.identity)
            msg = (
                f"{where}: pins no code identity, so any program on a genuine {self.platform} "
                f"would be accepted; name {ways}"
            )
            raise PolicyError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the block as it stands in TOML, empty lines left out."""
        block: dict[str, Any] = {"platform": str(self.platform)}
        if self.measurements:
            block["measurements"] = {
                name: [str(pattern) for pattern in patterns]
                for name, patterns in sorted(self.measurements.items())
            }
        if self.minimum:
            block["minimum"] = dict(sorted(self.minimum.items()))
        if self.chips:
            block["chips"] = [chip.hex() for chip in self.chips]
        if self.tolerate:
            block["tolerate"] = sorted(self.tolerate)
        if self.max_age is not None:
            block["max_age"] = self.max_age
        if self.devices:
            block["devices"] = [str(device) for device in self.devices]
        return block


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client accepts.

    Attributes:
        accept: The blocks, any one of which may match.
        models: Name → SHA-256 of the weights that data may be sent to; empty: any.

    Raises:
        PolicyError: If it accepts nothing, or one of its blocks is refused.
    """

    accept: tuple[Acceptance, ...]
    models: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.accept:
            msg = "the policy accepts nothing: it needs at least one [[accept]] block"
            raise PolicyError(msg)
        for index, block in enumerate(self.accept):
            block.check(f"accept[{index}]")

    @classmethod
    def simulation(cls) -> Self:
        """Return the policy that accepts simulation, and with it: anybody. For tests only."""
        return cls((Acceptance(Platform.SIMULATION, tolerate=frozenset({"simulated"})),))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy file.

        Raises:
            PolicyError: If the file cannot be read, or says something that is refused.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_POLICY_BYTES + 1)
        except OSError as error:
            msg = f"cannot read the policy {path}: {error.strerror}"
            raise PolicyError(msg) from error
        if len(data) > MAX_POLICY_BYTES:
            msg = f"the policy {path} is larger than {MAX_POLICY_BYTES} bytes"
            raise PolicyError(msg)
        try:
            return cls.from_toml(data.decode())
        except UnicodeDecodeError as error:
            msg = f"the policy {path} is not UTF-8 text"
            raise PolicyError(msg) from error

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Parse a policy; every key has to be known.

        Raises:
            PolicyError: If it is no TOML, or says something that is refused.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            msg = f"the policy is not TOML: {error}"
            raise PolicyError(msg) from error
        except RecursionError as error:
            msg = "the policy is nested too deeply"
            raise PolicyError(msg) from error

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Build a policy from what its TOML says."""
        _refuse_unknown("policy", "key", set(document) - {"version", "accept", "models"})
        if document.get("version") != POLICY_VERSION:
            msg = f"policy: expected version = {POLICY_VERSION}, found {document.get('version')!r}"
            raise PolicyError(msg)
        blocks = _expect(document.get("accept", []), list, "accept", "[[accept]] blocks")
        models = _expect(document.get("models", {}), dict, "models", "a table")
        return cls(
            tuple(_parse_block(block, f"accept[{i}]") for i, block in enumerate(blocks)),
            {name: _parse_models(name, digests) for name, digests in models.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as plain data, in one canonical form."""
        document: dict[str, Any] = {
            "version": POLICY_VERSION,
            "accept": [block.to_dict() for block in self.accept],
        }
        if self.models:
            document["models"] = {
                name: [f"sha256:{digest.hex()}" for digest in sorted(digests)]
                for name, digests in sorted(self.models.items())
            }
        return document

    def to_toml(self) -> str:
        """Return the policy as TOML that `from_toml` reads back as an equal policy."""
        lines = [f"version = {POLICY_VERSION}"]
        for block in self.accept:
            data = block.to_dict()
            tables = {key: data.pop(key) for key in ("measurements", "minimum") if key in data}
            lines += ["", "[[accept]]"]
            lines += [f"{key} = {_toml(value)}" for key, value in data.items()]
            for name, table in tables.items():
                lines += [f"[accept.{name}]"]
                lines += [f"{_toml(key)} = {_toml(value)}" for key, value in table.items()]
        if self.models:
            lines += ["", "[models]"]
            models = self.to_dict()["models"]
            lines += [f"{_toml(name)} = {_toml(digests)}" for name, digests in models.items()]
        return "\n".join(lines) + "\n"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form: names the policy in results and receipts."""
        return hashlib.sha256(cbor2.dumps(self.to_dict(), canonical=True)).digest()


def _parse_block(data: object, where: str) -> Acceptance:
    block = _expect(data, dict, where, "a table")
    _refuse_unknown(where, "key", set(block) - _ACCEPT_KEYS)
    platform = _parse_platform(block.get("platform"), f"{where}.platform")
    named = _expect(block.get("measurements", {}), dict, f"{where}.measurements", "a table")
    if "measurement" in block:
        name = VOCABULARY[platform].shorthand() or "measurement"
        if name in named:
            msg = f"{where}: measurement and measurements.{name} say the same thing twice"
            raise PolicyError(msg)
        named = {**named, name: block["measurement"]}
    minimum = _expect(block.get("minimum", {}), dict, f"{where}.minimum", "a table")
    max_age = block.get("max_age")
    return Acceptance(
        platform=platform,
        measurements={
            name: tuple(
                Pattern.parse(text, f"{where}.measurements.{name}") for text in _listed(values)
            )
            for name, values in named.items()
        },
        minimum={
            name: _natural(value, f"{where}.minimum.{name}") for name, value in minimum.items()
        },
        chips=tuple(
            _hex(chip, f"{where}.chips")
            for chip in _expect(block.get("chips", []), list, f"{where}.chips", "a list")
        ),
        tolerate=frozenset(_strings(block.get("tolerate", []), f"{where}.tolerate")),
        max_age=None if max_age is None else _natural(max_age, f"{where}.max_age"),
        devices=tuple(
            _parse_platform(device, f"{where}.devices")
            for device in _strings(block.get("devices", []), f"{where}.devices")
        ),
    )


def _parse_models(name: str, digests: object) -> frozenset[bytes]:
    where = f"models.{name}"
    parsed = frozenset(Pattern.parse(digest, where).value for digest in _listed(digests))
    if not parsed or any(len(digest) != hashlib.sha256().digest_size for digest in parsed):
        msg = f'{where}: expected a list of "sha256:" and 64 hexadecimal digits'
        raise PolicyError(msg)
    return parsed


def _parse_platform(value: object, where: str) -> Platform:
    try:
        return Platform(str(value))
    except ValueError as error:
        msg = f"{where}: expected one of {', '.join(Platform)}, found {value!r}"
        raise PolicyError(msg) from error


def _expect(value: object, kind: type[T], where: str, what: str) -> T:
    if not isinstance(value, kind):
        msg = f"{where}: expected {what}, found {type(value).__name__}"
        raise PolicyError(msg)
    return value


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _strings(value: object, where: str) -> list[str]:
    values = _expect(value, list, where, "a list of strings")
    return [_expect(item, str, where, "a list of strings") for item in values]


def _natural(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{where}: expected a whole number of at least 0, found {value!r}"
        raise PolicyError(msg)
    return value


def _hex(text: object, where: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"([0-9a-fA-F]{2})*", text):
        msg = f"{where}: expected hexadecimal digits in pairs, found {text!r}"
        raise PolicyError(msg)
    return bytes.fromhex(text)


def _refuse_unknown(where: str, what: str, names: Iterable[str]) -> None:
    listed = sorted(names)
    if listed:
        msg = f"{where}: unknown {what} {', '.join(map(repr, listed))}"
        raise PolicyError(msg)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\u{ord(c[0]):04x}", text) + '"'
