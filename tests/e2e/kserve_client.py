"""Drive a server with KServe's client; run by test_other_clients.py, in the venv of that client."""

import asyncio
import json
import ssl
import sys

import httpx
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(*, binary: bool) -> InferRequest:
    array = np.array([1, 2.5], np.float32)
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput("y", parameters={"binary_data": binary})]
    return InferRequest("adder", [tensor], request_outputs=outputs)


async def main(url: str, certificate: str) -> dict:
    roots = ssl.create_default_context(cafile=certificate)
    config = RESTConfig(protocol="v2", verify=roots, retries=0)
    async with InferenceRESTClient(config) as client:
        found = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model": await client.is_model_ready(url, "adder"),
            "unknown": await client.is_model_ready(url, "nope"),
        }
        for name in ("json", "binary"):
            answer = await client.infer(url, request(binary=name == "binary"), model_name="adder")
            found[name] = answer.outputs[0].as_numpy().tolist()
        try:
            await client.infer(url, request(binary=False), model_name="nope")
        except httpx.HTTPStatusError as error:
            found["error"] = str(error).partition(",")[0]
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))  # noqa: T201 - its result
