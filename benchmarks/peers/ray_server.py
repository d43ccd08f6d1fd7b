"""Ray Serve: two replicas, JSON bodies."""

import signal
import sys

import numpy as np
import onnxruntime
import ray
from ray import serve


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class OnnxDeployment:
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    async def __call__(self, request):
        body = await request.json()
        feeds = {
            each["name"]: np.asarray(each["data"], each["dtype"]).reshape(each["shape"])
            for each in body["inputs"]
        }
        return {"outputs": [value.tolist() for value in self.session.run(None, feeds)]}


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=200 << 20,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(OnnxDeployment.bind(sys.argv[1]), route_prefix="/predict")
    signal.pause()
