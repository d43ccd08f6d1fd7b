"""ONNX's own test cases, through a real server. `python -m tests.conformance` runs them all."""
