"""Run models: tensors in, tensors out. Knows nothing of TEEs, keys or HTTP.

`tensors` is the one language for data and is all that a client imports; it needs numpy
only. `engine` says what an engine is, `onnx` is the one there is, `store` holds the models.
"""
