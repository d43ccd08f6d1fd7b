"""The vocabulary of attestation: pure, and knowing of no platform.

Start at `model.py` for the nouns, `policy.py` for what a client accepts, `binding.py` for
what ties evidence to keys, and `blindai/verify.py` for the steps in their order.
"""
