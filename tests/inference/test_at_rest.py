"""What is remembered of sealed models beside what their owners said."""

from __future__ import annotations

import io

import pytest

from blindai.inference.at_rest import keep_model, owner_options, restore_models
from blindai.inference.engine import LoadOptions
from blindai.inference.engines import load_engine
from blindai.inference.options import ModelOptions
from blindai.inference.store import ModelStore
from blindai.inference.vault import Vault
from tests.inference.test_forms import mlp
from tests.inference.vaults import KEY


@pytest.fixture
def vault(tmp_path):
    with Vault(tmp_path / "vault", KEY) as vault:
        yield vault


class Refusing:
    """A reference that must not be asked."""

    name = "none"

    def load(self, path, options):
        pytest.fail("the reference was loaded, so something was measured")


def new_store(folder, engine=None):
    """Return a store that is empty."""
    return ModelStore(folder, engine=engine or load_engine(), options=LoadOptions(threads=1))


def put(store, options):
    """Upload a model to a store; return it."""
    with store.begin_upload("m", options=options) as upload:
        upload.write(mlp())
        return store.get(upload.commit().key)


def test_what_was_measured_comes_back(tmp_path, vault):
    """It is sealed with the model, is no option of its owner, and is not measured again."""
    options = ModelOptions(precision="int8")
    with new_store(tmp_path / "first") as store:
        before = put(store, options)
        sealed = keep_model(vault, before, options.dump())
    assert owner_options(sealed) == options.dump()
    with new_store(tmp_path / "second", Refusing()) as store:
        assert restore_models(vault, store) == []
        after = store.get("m").record
    assert (after.form, after.deviation, after.options) == (
        before.record.form,
        before.record.deviation,
        options,
    )


def test_nothing_is_to_be_remembered_of_the_reference(tmp_path, vault):
    """A model that runs as its file says has no other entries than its owner's."""
    with new_store(tmp_path / "store") as store:
        assert keep_model(vault, put(store, ModelOptions()), {}).options == {}


@pytest.mark.parametrize("measured", ["", "{}", "[" * 5000, '{"form":1}', "null"])
def test_what_cannot_be_understood_is_measured_again(tmp_path, vault, measured):
    """Whatever stands there, the model comes back in its form."""
    options = ModelOptions(precision="int8")
    with new_store(tmp_path / "first") as store:
        loaded = put(store, options)
        vault.seal(
            io.BytesIO(loaded.path.read_bytes()),
            sha256=loaded.record.sha256,
            size=loaded.record.size,
            names=["m"],
            options=options.dump() | {"measured": measured},
        )
    with new_store(tmp_path / "second") as store:
        assert restore_models(vault, store) == []
        assert 0 < store.get("m").record.deviation < 0.1
