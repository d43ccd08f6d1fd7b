"""PyTriton: Triton's own binary in front of Python, dynamic batching, one thread for each run."""

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def runner(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @batch
    def run(**feeds):
        return session.run(None, feeds)

    return run, session


def tensors(specs):
    return [
        Tensor(
            name=spec.name,
            dtype=TYPES[spec.type],
            shape=tuple(d if isinstance(d, int) else -1 for d in spec.shape[1:]),
        )
        for spec in specs
    ]


if __name__ == "__main__":
    path, port = sys.argv[1], int(sys.argv[2])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        grpc_address="127.0.0.1",
        grpc_port=port + 1,
        metrics_address="127.0.0.1",
        metrics_port=port + 2,
        log_verbose=0,
        allow_metrics=False,
    )
    instances = [runner(path) for _ in range(2)]
    session = instances[0][1]
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[run for run, _ in instances],
            inputs=tensors(session.get_inputs()),
            outputs=tensors(session.get_outputs()),
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher()),
        )
        triton.serve()
