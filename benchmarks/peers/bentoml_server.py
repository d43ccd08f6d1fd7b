"""BentoML: two workers, JSON bodies."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=2, traffic={"timeout": 60}, metrics={"enabled": False})
class OnnxService:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    def predict(self, inputs: list[dict]) -> dict:
        feeds = {
            each["name"]: np.asarray(each["data"], each["dtype"]).reshape(each["shape"])
            for each in inputs
        }
        return {"outputs": [value.tolist() for value in self.session.run(None, feeds)]}
