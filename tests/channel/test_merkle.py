"""Merkle trees against RFC 9162: every leaf is provable, and nothing else is."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.channel.merkle import MAX_PATH, build_tree, leaf_hash, root_from_path
from blindai.errors import EvidenceError


def sha256(data):
    return hashlib.sha256(data).digest()


def test_the_tree_of_the_rfc():
    """Seven leaves have the root and the proofs that RFC 9162 §2.1.5 draws."""
    a, b, c, d, e, f, j = leaves = [leaf_hash(bytes([i])) for i in range(7)]
    assert a == sha256(b"\0" + b"\0")

    def node(left, right):
        return sha256(b"\1" + left + right)

    g, h, i = node(a, b), node(c, d), node(e, f)
    k, m = node(g, h), node(i, j)
    root, paths = build_tree(leaves)
    assert root == node(k, m)
    assert paths[0] == [b, h, m]
    assert paths[3] == [c, g, m]
    assert paths[4] == [f, j, k]
    assert paths[6] == [i, k]


@given(st.integers(1, 70), st.data())
def test_every_leaf_is_provable(size, data):
    """Each path leads to the root, from its own leaf and place only."""
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    root, paths = build_tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    assert len(paths[index]) <= MAX_PATH
    assert root_from_path(leaves[index], index, size, paths[index]) == root
    assert root_from_path(leaf_hash(b"other"), index, size, paths[index]) != root
    elsewhere = data.draw(st.integers(0, size - 1))
    if elsewhere != index:
        try:
            assert root_from_path(leaves[index], elsewhere, size, paths[index]) != root
        except EvidenceError as error:
            assert "nodes are too" in str(error)  # noqa: PT017 - either refuses


@given(st.integers(1, 40), st.data())
def test_paths_of_another_length(size, data):
    """A node more or less than the way has is refused."""
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    _, paths = build_tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    with pytest.raises(EvidenceError, match="too many"):
        root_from_path(leaves[index], index, size, [*paths[index], bytes(32)])
    if paths[index]:
        with pytest.raises(EvidenceError, match="too few"):
            root_from_path(leaves[index], index, size, paths[index][:-1])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 3), (9, 3)])
def test_places_that_are_not_there(index, size):
    """A tree has its own places only."""
    with pytest.raises(EvidenceError, match="no leaf"):
        root_from_path(bytes(32), index, size, [])


def test_a_node_is_no_leaf():
    """Two leaves' node hashed as a leaf is another hash."""
    left, right = leaf_hash(b"l"), leaf_hash(b"r")
    root, _ = build_tree([left, right])
    assert leaf_hash(left + right) != root
