"""Small images of every kind that can be measured, made from parts that a test chooses."""

import hashlib
import json
import uuid
import zlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

HEADER = bytes.fromhex("06000000e10000000000010000000000")
HEADER_2 = bytes.fromhex("01010000600000006000000001000000")


def little(value, size):
    return value.to_bytes(size, "little")


def kernel(code=b"code", *, signatures=b""):
    """Return a kernel that is an EFI application: a setup header, PE headers and two sections."""
    image = bytearray(0x400)
    image[:2] = b"MZ"
    image[0x3C:0x40] = little(0x40, 4)
    image[0x40:0x44] = b"PE\0\0"
    image[0x46:0x48] = little(2, 2)  # sections
    image[0x54:0x56] = little(0xA0, 2)  # size of the optional header
    optional = 0x58
    image[optional : optional + 2] = little(0x20B, 2)
    image[optional + 60 : optional + 64] = little(0x400, 4)
    body = code.ljust(0x100, b"\0")
    end = 0x400 + 2 * len(body)
    image[optional + 144 : optional + 152] = little(end, 4) + little(len(signatures), 4)
    sections = optional + 0xA0
    # The second section stands first in the file: they are hashed by where they are.
    for number, offset in enumerate((0x400 + len(body), 0x400)):
        at = sections + 40 * number + 16
        image[at : at + 8] = little(len(body), 4) + little(offset, 4)
    image[0x202:0x208] = b"HdrS" + little(0x20F, 2)
    image[0x22C:0x230] = little(0x7FFFFFFF, 4)
    image[0x236] = 0x7F
    return bytes(image) + body + b"x" * len(body) + signatures


def machine(folder, *, linux=None, initrd=b"initrd", command_line="console=ttyS0", golden=()):
    """Write the folder of a machine image."""
    folder.mkdir(exist_ok=True)
    files = {
        "vmlinuz": linux or kernel(),
        "initrd": initrd,
        "cmdline": command_line.encode(),
        "root.img": b"root",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = {
        "format": "blindai-machine",
        "version": 1,
        "files": {n: {"sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
        "golden": list(golden),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def eif(*sections, version=4):
    """Return an enclave image file of (kind, content) sections."""
    head = b".eif" + version.to_bytes(2) + bytes(2 + 8 + 8 + 2) + len(sections).to_bytes(2)
    head += bytes(2 * 8 * 32 + 4)
    body = b"".join(
        kind.to_bytes(2) + bytes(2) + len(content).to_bytes(8) + content
        for kind, content in sections
    )
    return head + zlib.crc32(head + body).to_bytes(4) + body


def sigstruct(key, *, enclave=b"\x11" * 32, product=7, version=3, attributes=0x04):
    """Return the SIGSTRUCT of an enclave, signed by an RSA-3072 key with exponent 3."""
    head = HEADER + bytes(8) + HEADER_2 + bytes(88)
    body = bytes(28) + little(attributes, 8) + bytes(24) + enclave + bytes(32)
    body += little(product, 2) + little(version, 2)
    signature = key.sign(head + body, padding.PKCS1v15(), hashes.SHA256())
    numbers = key.public_key().public_numbers()
    return (
        head + little(numbers.n, 384) + little(numbers.e, 4) + signature[::-1]
        + body + bytes(12) + bytes(768)
    )  # fmt: skip


def guid(text):
    return uuid.UUID(text).bytes_le


def _entry(name, content):
    return content + little(len(content) + 18, 2) + guid(name)


def firmware(*, tdx=(), snp=(), content=b"\xf1"):
    """Return firmware whose tables list TDX sections and SEV-SNP sections.

    Args:
        tdx: (offset, size, address, room, attributes) each.
        snp: (address, size, kind) each.
        content: What it is filled with.
    """
    size = 0x4000
    image = bytearray((content * size)[:size])
    places = {}
    if tdx:
        table = b"TDVF" + little(16 + 32 * len(tdx), 4) + little(1, 4) + little(len(tdx), 4)
        for offset, length, address, room, attributes in tdx:
            table += little(offset, 4) + little(length, 4) + little(address, 8) + little(room, 8)
            table += little(0, 4) + little(attributes, 4)
        image[0x3000 : 0x3000 + len(table)] = table
        places["e47a6535-984a-4798-865e-4685a7bf8ec2"] = little(size - 0x3000, 4)
    if snp:
        table = b"ASEV" + little(16 + 12 * len(snp), 4) + little(1, 4) + little(len(snp), 4)
        for address, length, kind in snp:
            table += little(address, 4) + little(length, 4) + little(kind, 4)
        image[0x3400 : 0x3400 + len(table)] = table
        places["dc886566-984a-4798-a75e-5585a7bf67cc"] = little(size - 0x3400, 4)
        places["7255371f-3a3b-4b04-927b-1da6efa8d454"] = little(0x10C00, 4) + little(0x400, 4)
        places["00f771de-1a7e-4fcb-890e-68c77e2fb44e"] = little(0x80B004, 4)
    entries = b"".join(_entry(name, value) for name, value in places.items())
    footer = little(len(entries) + 18, 2) + guid("96b582de-1fb2-45f7-baea-a366c55a082d")
    end = size - 32
    image[end - len(entries) - 18 : end] = entries + footer
    return bytes(image)
