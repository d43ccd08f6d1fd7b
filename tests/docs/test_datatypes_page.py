"""The table of datatypes says what the code does."""

import re
from pathlib import Path

import onnx
from onnx import helper

from blindai.inference.datatype import DataType
from blindai.inference.onnx import _DATATYPES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "datatypes.md"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (\w+) \| `(\w+)\.(\w+)`", re.MULTILINE)


def test_each_datatype_stands_in_the_table_as_it_is():
    """With its ONNX type, its bits and its dtype, in the order of the code."""
    rows = ROW.findall(PAGE.read_text())
    assert [name for name, *_ in rows] == list(DataType)
    for name, element, bits, module, dtype in rows:
        datatype = DataType(name)
        assert bits == str(datatype.bits or "varies")
        assert (module == "numpy") == datatype.is_native
        known = dtype.removesuffix("_")
        assert datatype.numpy.name == known
        number = onnx.TensorProto.DataType.Value(element)
        if name in {"BYTES", "FP32", "FP64"}:
            plain = {"BYTES": "string", "FP32": "float", "FP64": "double"}[name]
        else:
            plain = element.lower()
        assert _DATATYPES[f"tensor({plain})"] is datatype
        if number <= onnx.TensorProto.BFLOAT16 and datatype is not DataType.BYTES:
            assert helper.tensor_dtype_to_np_dtype(number) == datatype.numpy
