"""What the tests of sealing share: keys, models, a counter, and a way to look inside."""

import hashlib
import io

from blindai.errors import SealedDataError
from blindai.inference.vault import Vault

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
MIB = 1 << 20
# One chunk, and three of which the last is short.
SMALL = b"a small model"
LARGE = bytes(range(256)) * (2 * MIB // 256) + b"and some more"


class Counter:
    """A rollback counter in memory."""

    is_new = False

    def __init__(self, value=0):
        self.value = value

    def read(self):
        return self.value

    def advance(self):
        self.value += 1
        return self.value


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def seal(vault, data, *names, **options):
    """Seal bytes under names."""
    return vault.seal(
        io.BytesIO(data), sha256=sha256(data), size=len(data), names=names, options=options
    )


def unseal(vault, data):
    """Return what a vault gives for the model that these bytes are."""
    out = io.BytesIO()
    vault.unseal(sha256(data), out.write)
    return out.getvalue()


def file_of(folder, model):
    """Return the path of a model's sealed file."""
    return folder / f"{model.file_id.hex()}.sealed"


def contents(folder, key=KEY, **options):
    """Return name → bytes of all models of a vault, each unsealed."""
    with Vault(folder, key, **options) as vault:
        found = {}
        for model in vault.models():
            out = io.BytesIO()
            vault.unseal(model.sha256, out.write)
            assert sha256(out.getvalue()) == model.sha256
            found |= dict.fromkeys(model.names, out.getvalue())
        return found


def opens(folder, key=KEY, **options):
    """Return why a vault stays shut; "" if it does not."""
    try:
        Vault(folder, key, **options).close()
    except SealedDataError as error:
        return str(error)
    return ""
