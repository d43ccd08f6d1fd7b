"""The Appraisal Policy (RFC 9334 §8.5): what a client accepts, and nothing besides.

A policy is strict where it is read: an unknown key, an unknown claim, a policy that accepts
nothing or a block that pins no code identity is refused at load. There is one rule for each
part of the claims: a measurement is one of a set, a version is at least a number, and a
weakness is refused unless it is tolerated by name.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import cbor2

from blindai.attestation.model import DEVICE_PLATFORMS, Platform
from blindai.attestation.signed import SIGNATURE_SIZE, SUFFIX, check_policy_signature
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

T = TypeVar("T")

POLICY_VERSION: Final = 1
MAX_POLICY_BYTES: Final = 1 << 20
_TEXT: Final = "text:"
_SHA256: Final = "sha256:"
_DIGEST_SIZE: Final = hashlib.sha256().digest_size
# The shortest digest that hardware measures with: SHA-1, in a TPM.
_SHORTEST_MEASUREMENT: Final = 20
_MAX_NATURAL: Final = (1 << 64) - 1
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

    def __post_init__(self) -> None:
        if not self.value:
            msg = "a measurement is empty"
            raise PolicyError(msg)
        if self.mask is not None and len(self.mask) != len(self.value):
            msg = f"a mask of {len(self.mask)} bytes for a value of {len(self.value)}"
            raise PolicyError(msg)
        if self.mask is not None and not any(self.mask):
            msg = "a mask of zeros would accept anything"
            raise PolicyError(msg)

    @classmethod
    def parse(cls, text: object, where: str) -> Self:
        """Read "hex", "sha256:hex", "hex/hex-mask" or "text:words"."""
        if not isinstance(text, str):
            msg = f"{where}: expected a hexadecimal string, found {text!r}"
            raise PolicyError(msg)
        try:
            if text.startswith(_TEXT):
                return cls(text.removeprefix(_TEXT).encode())
            if text.startswith(_SHA256):
                return cls(_sha256(text, where))
            value, slash, mask = text.partition("/")
            return cls(_hex(value, where), _hex(mask, where) if slash else None)
        except (PolicyError, UnicodeEncodeError) as error:
            msg = f"{where}: {text!r}: {error}"
            raise PolicyError(msg) from error

    @property
    def pins(self) -> bool:
        """Whether only one program, that really was measured, can match this."""
        if self.mask is not None and any(byte != 0xFF for byte in self.mask):  # noqa: PLR2004
            return False
        return len(self.value) < _SHORTEST_MEASUREMENT or any(self.value)

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
        if any(not chip for chip in self.chips) or (
            self.chips and "chip_id" not in words.measurements
        ):
            msg = f"{where}.chips: an empty chip id, or a {self.platform} has none"
            raise PolicyError(msg)
        if strange := set(self.devices) - DEVICE_PLATFORMS - {Platform.SIMULATION}:
            _refuse_unknown(f"{where}.devices", "device", strange)
        # A register of zeros is one that nothing was measured into, and part of a digest can
        # be found by trying: neither says what runs.
        pinned = {
            name
            for name, patterns in self.measurements.items()
            if all(pattern.pins for pattern in patterns)
        }
        if words.identity and not any(names <= pinned for names in words.identity):
            ways = " or ".join(" + ".join(sorted(names)) for names in words.identity)
            msg = (
                f"{where}: pins no code identity, so any program on a genuine {self.platform} "
                f"would be accepted; name {ways}, in full and not zero"
            )
            raise PolicyError(msg)
        if "ak-not-certified" in self.tolerate and "ak" not in pinned:
            msg = (
                f"{where}: tolerates ak-not-certified, so anybody's software key would pass for "
                "a TPM; pin the key: measurements.ak"
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
        if all(block.platform in DEVICE_PLATFORMS for block in self.accept):
            msg = "the policy accepts no server: attached devices alone cannot be one"
            raise PolicyError(msg)
        for name, digests in self.models.items():
            if not digests or any(len(digest) != _DIGEST_SIZE for digest in digests):
                msg = f"models.{name}: expected at least one SHA-256 digest, and nothing else"
                raise PolicyError(msg)

    @classmethod
    def simulation(cls) -> Self:
        """Return the policy that accepts simulation, and with it: anybody. For tests only."""
        return cls((Acceptance(Platform.SIMULATION, tolerate=frozenset({"simulated"})),))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, signed_by: Ed25519PublicKey | None = None
    ) -> Self:
        """Read a policy file.

        Args:
            path: The file.
            signed_by: If given, the file's name with `.sig` added has to hold its signature
                by this key.

        Raises:
            PolicyError: If a file cannot be read, or is not signed by that key, or says
                something that is refused.
        """
        data = _read(Path(path), MAX_POLICY_BYTES)
        if signed_by is not None:
            signature = _read(Path(f"{os.fspath(path)}{SUFFIX}"), SIGNATURE_SIZE)
            check_policy_signature(data, signature, signed_by)
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
        except ValueError as error:  # Python refuses to read or show integers of 4,300 digits
            msg = f"the policy holds a number that is too large: {error}"
            raise PolicyError(msg) from error

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Build a policy from what its TOML says."""
        _refuse_unknown("policy", "key", set(document) - {"version", "accept", "models"})
        version = document.get("version")
        if type(version) is not int or version != POLICY_VERSION:
            msg = f"policy: expected version = {POLICY_VERSION}, found {version!r}"
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


def _read(path: Path, at_most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(at_most + 1)
    except OSError as error:
        msg = f"cannot read the policy {path}: {error.strerror}"
        raise PolicyError(msg) from error
    if len(data) > at_most:
        msg = f"{path} is larger than {at_most} bytes"
        raise PolicyError(msg)
    return data


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
    chips = _expect(block.get("chips", []), list, f"{where}.chips", "a list")
    if "chips" in block and not chips:
        msg = f"{where}.chips: an empty list would accept every chip; leave the line out for that"
        raise PolicyError(msg)
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
        chips=tuple(_hex(chip, f"{where}.chips") for chip in chips),
        tolerate=frozenset(_strings(block.get("tolerate", []), f"{where}.tolerate")),
        max_age=None if max_age is None else _natural(max_age, f"{where}.max_age"),
        devices=tuple(
            _parse_platform(device, f"{where}.devices")
            for device in _strings(block.get("devices", []), f"{where}.devices")
        ),
    )


def _parse_models(name: str, digests: object) -> frozenset[bytes]:
    return frozenset(_sha256(digest, f"models.{name}") for digest in _listed(digests))


def _sha256(text: object, where: str) -> bytes:
    digest = _hex(text.removeprefix(_SHA256) if isinstance(text, str) else text, where)
    if len(digest) != _DIGEST_SIZE:
        msg = f'{where}: expected "sha256:" and 64 hexadecimal digits, found {text!r}'
        raise PolicyError(msg)
    return digest


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
    if type(value) is not int or not 0 <= value <= _MAX_NATURAL:
        msg = f"{where}: expected a whole number from 0 to 2^64 - 1, found {value!r}"
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
