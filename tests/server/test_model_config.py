"""Model configurations: what is told is true, and what cannot be had is refused."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.records import ModelRecord
from blindai.inference.tensors import DataType, TensorSpec
from blindai.server.model_config import (
    ConfigWish,
    backend_of,
    check_config,
    describe_config,
    parse_config,
    type_name,
)

RECORD = ModelRecord(
    ("m",),
    "ab" * 32,
    1,
    (TensorSpec("x", DataType.BYTES, ("n", 3)),),
    (TensorSpec("y", DataType.FP8E5M2, None),),
    "onnxruntime 1.2.3",
    datetime(2026, 1, 1, tzinfo=UTC),
)


def test_description():
    """Shapes are whole and unbatched; types have Triton's names, where they have one."""
    assert describe_config("m", RECORD) == {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": [{"name": "x", "data_type": "TYPE_STRING", "dims": (-1, 3)}],
        "output": [{"name": "y", "data_type": "TYPE_INVALID", "dims": (-1,)}],
    }


def test_types():
    """The protocol's own types keep their names, and ours have none."""
    assert type_name(DataType.BF16) == "TYPE_BF16"
    assert type_name(DataType.UINT64) == "TYPE_UINT64"
    assert type_name(DataType.INT4) == "TYPE_INVALID"


def test_a_description_is_taken_back():
    """What a server told can be sent back to it with the model."""
    wish = parse_config(json.dumps(describe_config("m", RECORD)))
    assert wish == ConfigWish("m", "onnxruntime_onnx", "onnxruntime")
    check_config(wish, "m", backend_of(RECORD))
    check_config(parse_config("{}"), "m", backend_of(RECORD))


@pytest.mark.parametrize(
    "config",
    [
        {"name": "other"},
        {"backend": "python"},
        {"platform": "tensorflow_savedmodel"},
        {"backend": "../../onnxruntime"},
        {"max_batch_size": 8},
        {"max_batch_size": -1},
        {"dynamic_batching": {}},
        {"default_model_filename": "../x"},
        {"instance_group": []},
        {"input": "x"},
        [],
        None,
        "onnx",
    ],
)
def test_what_cannot_be_had(config):
    """A configuration that would not be kept is refused."""
    with pytest.raises(InvalidInput, match="config"):
        check_config(parse_config(json.dumps(config)), "m", "onnxruntime")


def test_deep_nesting():
    """Nesting beyond measure is refused like other nonsense."""
    with pytest.raises(InvalidInput):
        parse_config('{"input":[{"x":' + "[" * 100_000)


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_garbage(text):
    """Whatever the text, it is a configuration or InvalidInput."""
    with suppress(InvalidInput):
        assert isinstance(parse_config(text), ConfigWish)
