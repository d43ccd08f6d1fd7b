"""LitServe: two workers, JSON bodies, as its documentation shows."""

import sys

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request):
        return {
            each["name"]: np.asarray(each["data"], each["dtype"]).reshape(each["shape"])
            for each in request["inputs"]
        }

    def predict(self, feeds):
        return self.session.run(None, feeds)

    def encode_response(self, outputs):
        return {"outputs": [value.tolist() for value in outputs]}


if __name__ == "__main__":
    server = litserve.LitServer(OnnxApi(sys.argv[1]), accelerator="cpu", workers_per_device=2)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
