"""What is read on the event loop: little JSON, and tensors whose bytes nobody has to look at."""

import json

import numpy as np
import pytest

from blindai.inference.tensors import DataType, from_array, to_bytes
from blindai.server.open_inference import open_envelope, parse_request, read_call
from blindai.server.service import SMALL

COUNT = 100_000


def body_of(datatype: str, size: int, spelled: str = "") -> tuple[bytes, int]:
    """Return a request of one raw tensor, and the length of its JSON."""
    entry = {
        "name": "x",
        "shape": [COUNT],
        "datatype": "?",
        "parameters": {"binary_data_size": size},
    }
    header = json.dumps({"inputs": [entry]}).replace("?", spelled or datatype).encode()
    return header + bytes(size), len(header)


@pytest.mark.parametrize("datatype", list(DataType))
def test_the_work_of_raw_tensors(datatype):
    """Only those with lengths, packed elements or forbidden bytes have to be looked at."""
    size = COUNT * 4 if datatype is DataType.BYTES else (COUNT * datatype.bits + 7) // 8
    body, length = body_of(datatype, size)
    envelope = open_envelope(body, length)
    slow = datatype.is_packed or datatype in {DataType.BYTES, DataType.BOOL}
    assert envelope.work == (len(body) if slow else length)
    assert (envelope.work > SMALL) is slow
    assert read_call(envelope).inputs[0].shape == (COUNT,)


def test_a_datatype_in_disguise_is_found_out():
    """Escapes in the JSON do not bring slow tensors onto the event loop."""
    body, length = body_of("BYTES", COUNT * 4, spelled="\\u0042YTES")
    assert open_envelope(body, length).work == len(body)


def test_json_is_all_work():
    """Each of its bytes is read."""
    body = b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}]}'
    assert open_envelope(body, None).work == len(body)


def test_both_ways_read_the_same():
    """In one step or two."""
    array = np.arange(6, dtype=np.float32)
    data = bytes(to_bytes(from_array("x", array)))
    entry = {"name": "x", "shape": [6], "datatype": "FP32"}
    entry["parameters"] = {"binary_data_size": len(data)}
    header = json.dumps({"inputs": [entry], "id": "7"}).encode()
    one = parse_request(header + data, len(header))
    two = read_call(open_envelope(header + data, len(header)))
    assert (one.id, two.id) == ("7", "7")
    np.testing.assert_array_equal(one.inputs[0].array, two.inputs[0].array)
