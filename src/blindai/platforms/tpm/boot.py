"""What an event log says was booted: kernel, initrd, command line, who authorised it.

Always true here: only events of registers whose replay hardware vouches for are looked at. That
makes their digests authentic, and their data where the digest hashes it. The *label* of an
event is never hashed, and whoever controls the machine after boot can extend a register
further. So a named event is what an honest machine's log shows, and no code identity by itself:
a policy has to pin registers, and may pin events beside them.

Named events, each a digest of the replayed bank unless it says otherwise:

- `secure_boot`: the value of the variable SecureBoot, which is measured before the first
  separator of PCR 7 (PFP §3.3.4.8); its digest hashes name and value. Absent counts as 0.
- `boot_authority`: SHA-256 of the certificate that authorised the images that were started
  (EV_EFI_VARIABLE_AUTHORITY of db and of shim, PCR 7; the digest hashes it).
  Where there are several: SHA-256 over their SHA-256s, in the order of first use.
- `command_line`: `.cmdline` of a unified kernel image (systemd-stub, PCR 11); else GRUB's
  "kernel_cmdline: …" (PCR 8; the digest hashes the text); else systemd-boot's load options (PCR
  8 or 12; the digest hashes the text); else what the kernel's EFI stub measured as
  "LOADED_IMAGE::LoadOptions" (PCR 9; the label is not hashed).
- `kernel`: `.linux` of a unified kernel image; else the file that GRUB's command line names
  (PCR 9; the file name is not hashed); else the last EFI application that was started, where a
  command line was measured (PCR 4; the digest is that of the PE image).
- `initrd`: `.initrd` of a unified kernel image; else "Linux initrd" of the kernel's EFI stub; else
  the one file of GRUB's "initrd" command (PCR 9; no label is hashed).

Of the rules for a name the first that finds anything counts; if it finds two different things,
nothing is claimed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError
from blindai.platforms.tpm.eventlog import EV_NO_ACTION, Event, EventLog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# PFP §10.4.1
EV_SEPARATOR: Final = 0x04
EV_EVENT_TAG: Final = 0x06
EV_IPL: Final = 0x0D
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0

_SEPARATORS: Final = (bytes(4), b"\xff" * 4)
_GLOBAL_VARIABLE: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SHIM: Final = bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")
_OWNER_SIZE: Final = 16
_INITRD_TAG: Final = 0x8F3B22EC
_OPTIONS_TAG: Final = 0x8F3B22ED
_GRUB_OPTIONS: Final = b"kernel_cmdline: "
_GRUB_COMMAND: Final = b"grub_cmd: "
_INITRD_WORDS: Final = 2
_MAX_SHOWN: Final = 2048


@dataclass(frozen=True, slots=True)
class Layout:
    """In which register each kind of event stands: PCRs, or the RTMRs of TDX.

    Attributes:
        images: Started EFI applications.
        authority: Secure Boot's variables and certificates.
        commands: GRUB's commands.
        files: Files that GRUB read, and what the kernel's EFI stub measures.
        unified: Sections of a unified kernel image.
        options: Load options that systemd-boot measures.
    """

    images: int
    authority: int
    commands: int
    files: int
    unified: int
    options: tuple[int, ...]


PCR_LAYOUT: Final = Layout(images=4, authority=7, commands=8, files=9, unified=11, options=(8, 12))
CCEL_LAYOUT: Final = Layout(images=2, authority=1, commands=3, files=3, unified=3, options=(3,))


def named_events(
    log: EventLog,
    bank: str,
    *,
    authentic: Collection[int],
    layout: Layout = PCR_LAYOUT,
) -> dict[str, bytes]:
    """Return the claims that the log's events make; see the module on what each means.

    Args:
        log: The log.
        bank: The bank whose digests are claimed.
        authentic: The registers whose replay equals what hardware signed; events of any
            other are left out.
        layout: Which register has which events.
    """
    view = _View(log, bank, authentic)
    sections = _unified_sections(view.of(layout.unified), bank)
    typed = _grub_texts(view.of(layout.commands), _GRUB_OPTIONS, bank)
    files = view.of(layout.files)
    options = [event for register in layout.options for event in view.of(register)]
    command_line = _claim(
        sections[".cmdline"],
        [hashlib.new(bank, text).digest() for text in typed],
        _loader_options(options, bank),
        _tagged(files, _OPTIONS_TAG, bank),
    )
    kernel = _claim(
        sections[".linux"],
        [digest for text in typed for digest in _grub_file(files, text.split(b" ")[0], bank)],
        _last_image(view.of(layout.images), bank) if command_line and not typed else [],
    )
    initrd = _claim(
        sections[".initrd"],
        _tagged(files, _INITRD_TAG, bank),
        _grub_initrd(_grub_texts(view.of(layout.commands), _GRUB_COMMAND, bank), files, bank),
    )
    found = {
        "kernel": kernel,
        "initrd": initrd,
        "command_line": command_line,
        "boot_authority": _boot_authority(view.of(layout.authority), bank),
        "secure_boot": _claim(_secure_boot(view.of(layout.authority), bank)),
    }
    return {name: value for name, value in found.items() if value is not None}


def command_line_text(
    log: EventLog, bank: str, *, authentic: Collection[int], layout: Layout = PCR_LAYOUT
) -> str | None:
    """Return GRUB's kernel command line where its digest hashes it; for people to read.

    It is short, and has nothing in it that a terminal obeys.
    """
    events = _View(log, bank, authentic).of(layout.commands)
    text = _claim(_grub_texts(events, _GRUB_OPTIONS, bank))
    if text is None:
        return None
    shown = text[:_MAX_SHOWN].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


class _View:
    """The events of one bank whose digests hardware vouches for, by register."""

    def __init__(self, log: EventLog, bank: str, authentic: Collection[int]) -> None:
        self._events: dict[int, list[Event]] = {}
        for event in log.events:
            if event.kind != EV_NO_ACTION and event.register in authentic and bank in event.digests:
                self._events.setdefault(event.register, []).append(event)

    def of(self, register: int) -> list[Event]:
        return self._events.get(register, [])


def _claim(*rules: Sequence[bytes]) -> bytes | None:
    """Return what the first rule that finds anything finds, unless it contradicts itself."""
    found = next((set(rule) for rule in rules if rule), set())
    return found.pop() if len(found) == 1 else None


def _unified_sections(events: Sequence[Event], bank: str) -> dict[str, list[bytes]]:
    # systemd-stub extends the section's name and then its content: digests alone tell it.
    found: dict[str, list[bytes]] = {".linux": [], ".initrd": [], ".cmdline": []}
    names = {hashlib.new(bank, name.encode() + b"\0").digest(): name for name in found}
    for event, following in pairwise(events):
        name = names.get(event.digests[bank])
        if name is not None:
            found[name].append(following.digests[bank])
    return found


def _grub_texts(events: Sequence[Event], prefix: bytes, bank: str) -> list[bytes]:
    """Return what follows `prefix` in GRUB's events, where the digest is the hash of it."""
    found = []
    for event in events:
        if event.kind == EV_IPL and event.data.startswith(prefix):
            text = event.data.removeprefix(prefix).rstrip(b"\0")
            if event.hashes(text, bank):
                found.append(text)
    return found


def _grub_file(files: Sequence[Event], path: bytes, bank: str) -> list[bytes]:
    return [
        event.digests[bank]
        for event in files
        if path and event.kind == EV_IPL and event.data.rstrip(b"\0") == path
    ]


def _grub_initrd(commands: Sequence[bytes], files: Sequence[Event], bank: str) -> list[bytes]:
    words = [text.split() for text in commands]
    return [
        digest
        for word in words
        if len(word) == _INITRD_WORDS and word[0] == b"initrd"
        for digest in _grub_file(files, word[1], bank)
    ]


def _loader_options(events: Sequence[Event], bank: str) -> list[bytes]:
    # systemd-boot measures UTF-16 with its end and, in some versions, logs it one byte short.
    return [
        event.digests[bank]
        for event in events
        if event.kind == EV_IPL
        and event.data[1:2] == b"\0"
        and any(event.hashes(event.data + end, bank) for end in (b"", b"\0", b"\0\0"))
    ]


def _tagged(events: Sequence[Event], tag: int, bank: str) -> list[bytes]:
    wanted = tag.to_bytes(4, "little")
    return [
        event.digests[bank]
        for event in events
        if event.kind == EV_EVENT_TAG and event.data[:4] == wanted
    ]


def _last_image(events: Sequence[Event], bank: str) -> list[bytes]:
    images = [e.digests[bank] for e in events if e.kind == EV_EFI_BOOT_SERVICES_APPLICATION]
    return images[-1:]


def _secure_boot(events: Sequence[Event], bank: str) -> list[bytes]:
    found = []
    for event in events:
        if any(event.hashes(separator, bank) for separator in _SEPARATORS):
            break
        variable = _variable(event, bank, EV_EFI_VARIABLE_DRIVER_CONFIG)
        if variable is not None and variable[:2] == (_GLOBAL_VARIABLE, "SecureBoot"):
            found.append(variable[2] or b"\0")
    return found


def _boot_authority(events: Sequence[Event], bank: str) -> bytes | None:
    authorities: dict[bytes, None] = {}
    for event in events:
        variable = _variable(event, bank, EV_EFI_VARIABLE_AUTHORITY)
        if variable is None:
            continue
        owner, name, value = variable
        certificate = _certificate(value)
        if certificate is not None and owner in (_IMAGE_SECURITY, _SHIM):
            authorities[hashlib.sha256(certificate).digest()] = None
        elif (owner, name) == (_IMAGE_SECURITY, "db"):
            # An image that is allowed by its own hash has no certificate to speak of.
            authorities[hashlib.sha256(value).digest()] = None
    if len(authorities) <= 1:
        return next(iter(authorities), None)
    return hashlib.sha256(b"".join(authorities)).digest()


def _variable(event: Event, bank: str, kind: int) -> tuple[bytes, str, bytes] | None:
    """Return owner, name and value of UEFI_VARIABLE_DATA (PFP §10.2.6), if it is authentic."""
    if event.kind != kind or not event.hashes(event.data, bank):
        return None
    reader = Reader(event.data, "UEFI variable")
    try:
        owner = reader.take(16, "VariableName")
        characters, size = reader.u64("UnicodeNameLength"), reader.u64("VariableDataLength")
        name = reader.take(2 * characters, "UnicodeName").decode("utf-16-le", "replace")
        return owner, name, reader.take(size, "VariableData")
    except EvidenceError:
        return None  # measured, but no variable: it makes no claim


def _certificate(value: bytes) -> bytes | None:
    # The firmware measures EFI_SIGNATURE_DATA, owner first; shim the certificate alone.
    for start in (0, _OWNER_SIZE):
        der = value[start:]
        if der[:2] == b"\x30\x82" and int.from_bytes(der[2:4]) + 4 == len(der):
            return der
    return None
