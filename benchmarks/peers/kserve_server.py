"""KServe's Python server: one worker for each core, one thread for each run."""

import sys

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class OnnxModel(Model):
    def __init__(self, path):
        super().__init__("model")
        self.path = path
        self.load()

    def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        self.ready = True
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        feeds = {each.name: each.as_numpy() for each in payload.inputs}
        outputs = []
        for spec, value in zip(
            self.session.get_outputs(), self.session.run(None, feeds), strict=True
        ):
            output = InferOutput(name=spec.name, shape=list(value.shape), datatype="FP32")
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or "0", model_name="model", infer_outputs=outputs
        )


if __name__ == "__main__":
    path, port = sys.argv[1], int(sys.argv[2])
    server = ModelServer(
        http_port=port,
        grpc_port=port + 1,
        workers=1,
        enable_grpc=False,
        enable_docs_url=False,
        access_log_format=None,
    )
    server.start([OnnxModel(path)])
