"""BlindAI: confidential inference. Private data in, prediction out, through an enclave.

>>> import blindai
>>> with blindai.connect("localhost:50051", policy="policy.toml") as client:
...     result = client.run_model("minilm", {"input_ids": ids})
"""
