"""Merkle trees: one signature for many statements, and a short proof for each of them.

Leaves and nodes are hashed under different prefixes, so no node passes for a leaf. Sizes are
signed beside the root: a proof holds for one place in one tree.

Specification: RFC 9162 §2.1.1 (the tree), §2.1.3 (inclusion proofs), with SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_SIZE: Final = 32
# No tree of more leaves than this is ever signed, so no proof has more nodes than its logarithm.
MAX_LEAVES: Final = 1 << 16
MAX_PATH: Final = 16
_LEAF: Final = b"\0"
_NODE: Final = b"\1"


def leaf_hash(data: bytes) -> bytes:
    """Return the 32 bytes that stand for `data` in a tree."""
    return hashlib.sha256(_LEAF + data).digest()


def build_tree(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    """Return the root of a tree, and each leaf's path to it.

    Args:
        leaves: Their hashes, in order; at least one.

    Returns:
        The root, and for each leaf the nodes that prove it, from the leaf upwards.
    """
    paths: list[list[bytes]] = [[] for _ in leaves]
    return _subtree(leaves, paths, 0, len(leaves)), paths


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a proof leads to; whether it is the signed one is for the caller.

    Args:
        leaf: The hash of the statement.
        index: Its place in the tree, from 0.
        size: Number of leaves of the tree.
        path: The nodes beside the way up.

    Raises:
        EvidenceError: If a tree of this size has no such place, or its path is another length.
    """
    if not 0 <= index < size:
        msg = f"inclusion proof: no leaf {index} in a tree of {size}"
        raise EvidenceError(msg)
    node, place, last = leaf, index, size - 1
    for beside in path:
        if last == 0:
            msg = f"inclusion proof: {len(path)} nodes are too many for leaf {index} of {size}"
            raise EvidenceError(msg)
        if place & 1 or place == last:
            node = _node_hash(beside, node)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            node = _node_hash(node, beside)
        place, last = place >> 1, last >> 1
    if last:
        msg = f"inclusion proof: {len(path)} nodes are too few for leaf {index} of {size}"
        raise EvidenceError(msg)
    return node


def _subtree(leaves: Sequence[bytes], paths: list[list[bytes]], start: int, end: int) -> bytes:
    if end - start == 1:
        return leaves[start]
    # The largest power of two below the number of leaves.
    middle = start + (1 << (end - start - 1).bit_length() - 1)
    left = _subtree(leaves, paths, start, middle)
    right = _subtree(leaves, paths, middle, end)
    for path in paths[start:middle]:
        path.append(right)
    for path in paths[middle:end]:
        path.append(left)
    return _node_hash(left, right)


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
