"""The protobuf messages, from the descriptors that `make proto` writes, in a pool of their own.

A pool of their own, because a process may have other definitions with these names: tritonclient's,
KServe's, or gRPC's own health service. protobuf refuses a second one in its default pool.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from blindai.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

# File → its descriptor, as the compiler wrote it.
FILES: Final[dict[str, bytes]] = {}
POOL: Final = DescriptorPool()


def _load() -> None:
    content = files(__package__).joinpath("proto", "descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        FILES[file.name] = file.SerializeToString()
        POOL.AddSerializedFile(FILES[file.name])


_load()


def message_class(name: str) -> Any:
    """Return the class of a message.

    Args:
        name: With its package.
    """
    return GetMessageClass(POOL.FindMessageTypeByName(name))


def parse_message(kind: Any, data: bytes | memoryview) -> Any:
    """Read a message.

    Args:
        kind: Its class.
        data: All of it.

    Raises:
        InvalidInput: Something else.
    """
    try:
        return kind.FromString(bytes(data))
    except DecodeError:
        msg = f"expected a message {kind.DESCRIPTOR.full_name}, came something else"
        raise InvalidInput(msg) from None


def fill_message(kind: Any, document: Mapping[str, object]) -> Message:
    """Return a message with what a JSON document of the same protocol says.

    Args:
        kind: Its class.
        document: What REST answers; fields that the message has not are left out.
    """
    message: Message = json_format.ParseDict(dict(document), kind(), ignore_unknown_fields=True)
    return message
