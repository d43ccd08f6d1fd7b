"""Receipts as a server would sign them, without a server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import numpy as np

from blindai.attestation.policy import Policy
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.receipts import sign
from blindai.channel.statement import Kind, Statement, digest_evidence, digest_tensor
from blindai.inference.tensors import from_array, to_bytes
from blindai.receipt import verify_receipt
from tests.servers import NONCE, Server

MODEL = b"the bytes of a model"
REQUEST = b"the body of a request"
RESPONSE = b"the body of an answer"
INPUTS = {
    "ids": np.array([[1, 2, 3]], np.int64),
    "mask": np.array([[1, 1, 0]], np.int64),
    "text": np.array([b"a", b"bc"], object),
}
OUTPUTS = {"logits": np.array([[0.25, -1.5]], np.float32)}
CLIENT_NONCE = bytes(range(100, 132))


def digests(arrays):
    """Return what stands for arrays in a receipt."""
    tensors = [from_array(name, value) for name, value in arrays.items()]
    return tuple(digest_tensor(t.name, t.datatype, t.shape, to_bytes(t)) for t in tensors)


class Signer(Server):
    """A server that signs receipts, a minute after it was verified."""

    def __init__(self, vendor=None, **changes):
        super().__init__(vendor, **changes)
        self.shown = self.bundle()
        self.time = self.now + timedelta(minutes=1)

    def statement(self, **changes):
        """Return what an honest server states of the run above, but for `changes`."""
        platform = self.vendor.platform
        honest = Statement(
            kind=Kind.RUN,
            model_sha256=hashlib.sha256(MODEL).digest(),
            model_form="onnx.fp32",
            inputs=digests(INPUTS),
            outputs=digests(OUTPUTS),
            request_sha256=hashlib.sha256(REQUEST).digest(),
            response_sha256=hashlib.sha256(RESPONSE).digest(),
            nonce=CLIENT_NONCE,
            time=self.time,
            server_version="1.0.0",
            platform=platform,
            keyset_sha256=hashlib.sha256(self.keyset).digest(),
            evidence_sha256=digest_evidence(self.shown),
            simulated=platform == "simulation",
        )
        return replace(honest, **changes)

    def file(self, *receipts, **changes):
        """Return a file of `receipts`; without any, of an honest one, but for `changes`."""
        signed = receipts or (sign(self.statement(**changes), self.keys.receipt),)
        return ReceiptFile(signed, self.shown, NONCE)

    @property
    def anchors(self):
        """The roots that the test trusts."""
        return {self.vendor.platform: tuple(self.vendor.anchors)}

    def verify_receipt(self, file=None, policy=None, **held):
        """Verify a file as somebody does who holds `held`."""
        return verify_receipt(
            file or self.file(),
            policy or Policy.simulation(),
            **{"anchors": self.anchors} | held,
        )


HELD = {
    "model": MODEL,
    "inputs": INPUTS,
    "outputs": OUTPUTS,
    "request": REQUEST,
    "response": RESPONSE,
    "nonce": CLIENT_NONCE,
}
