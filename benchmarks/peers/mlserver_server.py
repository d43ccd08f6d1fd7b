"""MLServer with an onnxruntime runtime: its inference workers, one thread for each run."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload):
        feeds = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        outputs = self.session.run(None, feeds)
        names = [each.name for each in self.session.get_outputs()]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, np.asarray(value))
                for name, value in zip(names, outputs, strict=True)
            ],
        )


async def main(path, port):
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_port=port + 2,
        parallel_workers=2,
        metrics_endpoint=None,
        debug=False,
        logging_settings=None,
        environments_dir=str(Path(path).parent),
    )
    model = ModelSettings(
        name="model",
        implementation=OnnxModel,
        parameters={"uri": path},
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
