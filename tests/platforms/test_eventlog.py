"""TCG event logs: replay of real ones, named events, and logs that lie."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import EvidenceError
from blindai.platforms.tpm import boot
from blindai.platforms.tpm.boot import CCEL_LAYOUT, command_line_text, named_events
from blindai.platforms.tpm.eventlog import (
    EV_NO_ACTION,
    MAX_EVENTS,
    MAX_LOG_BYTES,
    parse_event_log,
    replay,
    replay_rtmrs,
)
from blindai.testing.fake_tpm import COMMAND_LINE, boot_events, make_event_log
from tests.platforms.vectors import VECTORS, read, requires_vectors

LOGS = sorted(path.name for path in (VECTORS / "tpm" / "eventlogs").glob("*.bin"))
ALL = range(24)
USUAL = make_event_log(boot_events())


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def sha1_log(events: list[tuple[int, int, bytes]]) -> bytes:
    """Return a log in the older format, in which each digest hashes the data."""
    return b"".join(
        struct.pack("<II", register, kind)
        + hashlib.sha1(data, usedforsecurity=False).digest()
        + struct.pack("<I", len(data))
        + data
        for register, kind, data in events
    )


@requires_vectors
@pytest.mark.parametrize("name", LOGS)
def test_real_logs_replay_to_the_expected_pcrs(name: str) -> None:
    """Every log of a real machine gives the PCRs that its TPM held."""
    expected = json.loads(read("tpm/eventlogs/expected_pcrs.json"))[f"eventlogs/{name}"]
    log = parse_event_log(read(f"tpm/eventlogs/{name}"))
    assert expected
    for bank, registers in expected.items():
        replayed = replay(log, bank.lower())
        assert {i: replayed[int(i)].hex() for i in registers} == registers


@requires_vectors
@pytest.mark.parametrize(
    ("name", "events", "secure_boot"),
    [
        ("arch-linux-workstation", {"kernel", "command_line"}, b"\0"),
        ("confidential-gke-debug-251000_eventlog", {"kernel", "command_line"}, b"\1"),
        ("cos-101-amd-sev", {"kernel", "command_line"}, b"\1"),
        ("gdc-host", {"kernel", "command_line", "initrd"}, b"\0"),
        ("ubuntu-1804-amd-sev", {"kernel", "command_line", "initrd"}, b"\0"),
        ("ubuntu-2404-amd-sevsnp", {"kernel", "command_line"}, b"\0"),
    ],
)
def test_real_logs_name_what_was_booted(name: str, events: set[str], secure_boot: bytes) -> None:
    """GRUB, systemd-boot and the kernel's EFI stub are understood."""
    log = parse_event_log(read(f"tpm/eventlogs/{name}.bin"))
    found = named_events(log, "sha256", authentic=ALL)
    assert set(found) - {"boot_authority"} == events | {"secure_boot"}
    assert found["secure_boot"] == secure_boot
    assert ("boot_authority" in found) == (secure_boot == b"\1")


def test_a_usual_boot_is_named() -> None:
    """Kernel, initrd, command line, authority and Secure Boot of a GRUB machine are claimed."""
    log = parse_event_log(USUAL)
    assert named_events(log, "sha256", authentic=ALL) == {
        "kernel": digest(b"fake kernel"),
        "initrd": digest(b"fake initrd"),
        "command_line": digest(COMMAND_LINE.encode()),
        "boot_authority": digest(b"\x30\x82\x00\x04fake"),
        "secure_boot": b"\1",
    }
    assert command_line_text(log, "sha256", authentic=ALL) == COMMAND_LINE


@pytest.mark.parametrize(
    ("register", "gone"),
    [
        (7, {"secure_boot", "boot_authority"}),
        (8, {"command_line", "kernel", "initrd"}),
        (9, {"kernel", "initrd"}),
    ],
)
def test_events_of_other_registers_are_not_claimed(register: int, gone: set[str]) -> None:
    """What does not replay to the quoted value makes no claim."""
    log = parse_event_log(USUAL)
    before = named_events(log, "sha256", authentic=ALL)
    authentic = set(ALL) - {register}
    assert set(before) - set(named_events(log, "sha256", authentic=authentic)) == gone
    shown = command_line_text(log, "sha256", authentic=authentic)
    assert (shown is None) == (register == 8)


def test_data_that_its_digest_does_not_hash_is_not_claimed() -> None:
    """A command line, a switch or an authority counts only if the digest hashes it."""
    forged = [
        (7, boot.EV_EFI_VARIABLE_DRIVER_CONFIG, b"other", boot_events()[1][3]),
        (7, boot.EV_EFI_VARIABLE_AUTHORITY, b"other", boot_events()[10][3]),
        (8, boot.EV_IPL, b"init=/bin/sh", b"kernel_cmdline: quiet\0"),
    ]
    log = parse_event_log(make_event_log(forged))
    assert named_events(log, "sha256", authentic=ALL) == {}
    assert command_line_text(log, "sha256", authentic=ALL) is None


def test_secure_boot_counts_before_the_separator_only() -> None:
    """A switch that the running system measures afterwards says nothing."""
    events = boot_events(secure_boot=False)
    late = boot_events(secure_boot=True)[1]
    log = parse_event_log(make_event_log([*events, late]))
    assert named_events(log, "sha256", authentic=ALL)["secure_boot"] == b"\0"
    log = parse_event_log(make_event_log([late, *events]))
    assert "secure_boot" not in named_events(log, "sha256", authentic=ALL)


def test_an_absent_switch_counts_as_off() -> None:
    """Firmware without Secure Boot measures the variable with no value."""
    register, kind, _, data = boot_events()[1]
    empty = data[:24] + bytes(8) + data[32:-1]
    log = parse_event_log(make_event_log([(register, kind, empty, empty)]))
    assert named_events(log, "sha256", authentic=ALL)["secure_boot"] == b"\0"


def test_two_command_lines_are_not_claimed() -> None:
    """What contradicts itself is left out, not chosen from."""
    other = (8, boot.EV_IPL, b"init=/bin/sh", b"kernel_cmdline: init=/bin/sh\0")
    log = parse_event_log(make_event_log([*boot_events(), other]))
    assert "command_line" not in named_events(log, "sha256", authentic=ALL)


def test_several_authorities_are_digested_in_order() -> None:
    """An authority that is added changes the claim."""
    events = boot_events()
    register, kind, _, data = events[10]
    other = data[:-4] + b"next"
    log = parse_event_log(make_event_log([*events, (register, kind, other, other)]))
    pair = digest(b"\x30\x82\x00\x04fake") + digest(b"\x30\x82\x00\x04next")
    assert named_events(log, "sha256", authentic=ALL)["boot_authority"] == digest(pair)


def test_unified_kernel_images_are_named() -> None:
    """Each section's name is measured before its content, so digests alone tell them."""
    sections = {".linux": b"kernel", ".cmdline": b"quiet", ".initrd": b"initrd"}
    events = [
        (11, boot.EV_IPL, measured, b"any label")
        for name, content in sections.items()
        for measured in (name.encode() + b"\0", content)
    ]
    found = named_events(parse_event_log(make_event_log(events)), "sha256", authentic=ALL)
    assert found == {
        "kernel": digest(b"kernel"),
        "command_line": digest(b"quiet"),
        "initrd": digest(b"initrd"),
    }


def test_what_is_shown_of_a_command_line_is_printable() -> None:
    """Nothing in a command line reaches a terminal as a command."""
    text = b"a\x1b[2Jb\nc"
    log = parse_event_log(
        make_event_log([(8, boot.EV_IPL, text, b"kernel_cmdline: " + text + b"\0")])
    )
    shown = command_line_text(log, "sha256", authentic=ALL)
    assert shown is not None
    assert shown.isprintable()


def test_older_logs_replay_too() -> None:
    """A log without a header has one bank, SHA-1, and its first event counts."""
    log = parse_event_log(sha1_log([(0, 8, b"version"), (0, 4, bytes(4))]))
    held = bytes(20)
    for data in (b"version", bytes(4)):
        inner = hashlib.sha1(data, usedforsecurity=False).digest()
        held = hashlib.sha1(held + inner, usedforsecurity=False).digest()
    assert replay(log, "sha1") == {0: held}
    with pytest.raises(EvidenceError, match="no sha256 digest"):
        replay(log, "sha256")


def test_the_startup_locality_is_where_pcr_0_begins() -> None:
    """A TPM started at locality 3 begins PCR 0 with 3, and the log has to say so first."""
    locality = (0, EV_NO_ACTION, b"", b"StartupLocality\0\3")
    event = (0, 8, b"version", b"version")
    log = parse_event_log(make_event_log([locality, event]))
    assert replay(log, "sha256")[0] == digest(bytes(31) + b"\3" + digest(b"version"))
    with pytest.raises(EvidenceError, match="locality"):
        replay(parse_event_log(make_event_log([event, locality])), "sha256")


@pytest.mark.parametrize("padding", [b"\xff" * 4096, bytes(4096), b"\xff" * 3])
def test_a_ccel_replays_to_rtmrs(padding: bytes) -> None:
    """The indexes of a CCEL are those of measurement registers; its area is padded."""
    events = [(1, 4, bytes(4), bytes(4)), (3, 13, b"kernel", b"/vmlinuz\0")]
    log = parse_event_log(make_event_log(events, ["sha384"]) + padding)
    expected = hashlib.sha384(bytes(48) + hashlib.sha384(b"kernel").digest()).digest()
    rtmrs = replay_rtmrs(log)
    assert set(rtmrs) == {0, 2}
    assert rtmrs[2] == expected


def test_a_ccel_names_events_in_its_own_registers() -> None:
    """The same boot is named from RTMRs, where several PCRs share one register."""
    place = {0: 1, 7: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 8: 3, 9: 3}
    events = [(place[pcr], kind, content, data) for pcr, kind, content, data in boot_events()]
    log = parse_event_log(make_event_log(events, ["sha384"]))
    found = named_events(log, "sha384", authentic=range(1, 5), layout=CCEL_LAYOUT)
    assert set(found) == {"kernel", "initrd", "command_line", "boot_authority", "secure_boot"}


def test_registers_out_of_range_are_refused() -> None:
    """An event of a register that no platform has is refused, one that extends nothing is not."""
    none = (0xFFFFFFFF, EV_NO_ACTION, b"", b"trust point")
    assert replay(parse_event_log(make_event_log([none])), "sha256") == {}
    with pytest.raises(EvidenceError, match="no register"):
        replay(parse_event_log(make_event_log([(32, 8, b"", b"")])), "sha256")


def test_logs_are_bounded() -> None:
    """Too many bytes or events are refused before anything is made of them."""
    with pytest.raises(EvidenceError, match="at most"):
        parse_event_log(bytes(MAX_LOG_BYTES + 1))
    many = sha1_log([(0, 8, b"")]) * (MAX_EVENTS + 1)
    assert len(many) < MAX_LOG_BYTES
    with pytest.raises(EvidenceError, match="events"):
        parse_event_log(many)


def test_long_zeros_are_read_in_one_go() -> None:
    """Many events that look like padding take no more time than others."""
    event = struct.pack("<III", 0, 0, 0) + struct.pack("<I", 180) + bytes(180)
    log = make_event_log([]) + event * 19_000 + b"\1" * 16
    start = time.process_time()
    with pytest.raises(EvidenceError):
        parse_event_log(log)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "spec",
    [
        struct.pack("<I", 0),
        struct.pack("<I", 9),
        struct.pack("<IHHHH", 2, 11, 32, 11, 32),
        struct.pack("<IHH", 1, 11, 20),
        struct.pack("<IHH", 1, 0x99, 65),
        struct.pack("<IHH", 1, 0x12, 32) + b"\0",
        struct.pack("<IHH", 1, 11, 32) + b"\4ab",
        struct.pack("<IHH", 1, 11, 32) + b"\0\0",
    ],
)
def test_headers_that_lie_are_refused(spec: bytes) -> None:
    """Doubled, oversized and unknown algorithms, and wrong lengths, are refused."""
    header = b"Spec ID Event03\0" + bytes(8) + spec
    with pytest.raises(EvidenceError):
        parse_event_log(struct.pack("<II20sI", 0, EV_NO_ACTION, b"", len(header)) + header)


@pytest.mark.parametrize(
    "event",
    [
        struct.pack("<III", 0, 8, 3),
        struct.pack("<IIIH", 0, 8, 1, 0x0C) + bytes(48) + bytes(4),
        struct.pack("<IIIH", 0, 8, 2, 11) + bytes(32) + struct.pack("<H", 11) + bytes(36),
        struct.pack("<IIIH", 0, 8, 1, 11) + bytes(32) + struct.pack("<I", 5) + b"four",
        struct.pack("<IIIH", 0, 8, 1, 11) + bytes(32) + struct.pack("<I", 0xFFFFFFFF),
    ],
)
def test_events_that_lie_are_refused(event: bytes) -> None:
    """Unannounced or doubled digests, and lengths beyond the log, are refused."""
    with pytest.raises(EvidenceError):
        parse_event_log(make_event_log([]) + event)


def test_logs_of_every_length_raise_evidence_errors_only() -> None:
    """A log that ends early is refused, unless it ends between two events."""
    whole = parse_event_log(USUAL).events
    for size in range(0, len(USUAL), 7):
        try:
            log = parse_event_log(USUAL[:size])
        except EvidenceError:
            continue
        assert log.events == whole[: len(log.events)]


def test_random_mutants_raise_evidence_errors_only() -> None:
    """Whatever is changed in a log, it is read and replayed, or refused as malformed."""
    chosen = random.Random(7)
    for _ in range(400):
        data = bytearray(USUAL)
        for _ in range(chosen.randint(1, 3)):
            start = chosen.randrange(len(data))
            data[start : start + chosen.randint(0, 4)] = chosen.randbytes(chosen.randint(0, 4))
        try:
            log = parse_event_log(bytes(data))
            for bank in log.banks:
                replay(log, bank)
                named_events(log, bank, authentic=ALL)
        except EvidenceError:
            continue


@given(st.binary(max_size=400))
def test_garbage_is_malformed(data: bytes) -> None:
    """Any bytes give a log or `EvidenceError`, with and without a header."""
    for content in (data, make_event_log([]) + data):
        try:
            log = parse_event_log(content)
            named_events(log, log.banks[0], authentic=ALL)
        except EvidenceError:
            continue
