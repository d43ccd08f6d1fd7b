"""A sample of ONNX's own test cases through a server; `make conformance` runs them all."""

import numpy as np
import pytest

import blindai
from blindai.testing import start_server
from tests.conformance.__main__ import LIST, PAGE, write_list, write_page
from tests.conformance.cases import load_cases, sample
from tests.conformance.reference import is_expected
from tests.conformance.verdicts import REASONS, SERVED, compare, judge, load_list


@pytest.fixture(scope="module")
def cases():
    """All cases of the onnx package."""
    return load_cases()


def test_a_sample_of_200_cases_is_served_or_listed(cases):
    """With the bytes of onnxruntime in process, or with the reason in the list, by name."""
    known = load_list()
    chosen = sample(cases, 200)
    with (
        pytest.warns(blindai.SimulationWarning),
        start_server() as server,
        blindai.connect(server.address, simulation=True, token=server.token) as client,
    ):
        verdicts = {case.name: judge(case, client) for case in chosen}
    assert verdicts == {case.name: known.get(case.name, SERVED) for case in chosen}
    # The sample has some of everything: else it would show less than it says.
    assert list(verdicts.values()).count(SERVED) > 150
    assert {"does-not-load", "other-result", "no-tensor"} <= set(verdicts.values())
    assert any("INT4" in name.upper() for name in verdicts if verdicts[name] == SERVED)
    assert any("FLOAT8" in name.upper() or "E4M3" in name.upper() for name in verdicts)


def test_each_case_that_is_listed_exists(cases):
    """With a reason that is one, once; and the page shows the same list."""
    known = load_list()
    names = {case.name for case in cases}
    assert known.keys() <= names
    assert set(known.values()) <= REASONS.keys()
    verdicts = {name: known.get(name, SERVED) for name in sorted(names)}
    assert LIST.read_text() == write_list(verdicts)
    assert PAGE.read_text() == write_page(verdicts)


def test_a_bit_a_shape_and_an_output_make_a_difference():
    """What is served is compared to the last bit, also of NaN and of packed elements."""
    one = np.array([1.0, np.nan], np.float32)
    other = one.copy()
    assert compare([one], [other]) == SERVED
    other.view(np.uint32)[1] ^= 1
    assert compare([one], [other]) == "output 0 has other bytes"
    assert compare([one], [one.astype(np.float64)]) == "output 0 has other bytes"
    assert compare([one], [one.reshape(1, 2)]).startswith("output 0 has the shape (2,)")
    assert compare([one], [one, one]) == "1 outputs instead of 2"
    texts = np.array(["a", "é"], object)
    assert compare([np.array([b"a", "é".encode()], object)], [texts]) == SERVED
    assert compare([np.array([b"a", b"e"], object)], [texts]) == "output 0 has other bytes"


def test_the_reference_is_held_to_what_onnx_expects(cases):
    """A case that onnxruntime fails is not taken for one that it passes."""
    case = next(case for case in cases if case.name == "test_abs")
    (expected,) = case.expected
    assert is_expected(case, [expected])
    assert not is_expected(case, [expected + 1])
    assert not is_expected(case, [expected.astype(np.float64)])
    assert not is_expected(case, [])
