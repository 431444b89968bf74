"""A checkpoint of transformers' own looped class, as the module of a test makes it with its `make_native`."""

import pytest


@pytest.fixture
def native(request):
    return request.module.make_native()


@pytest.fixture
def folder(native, tmp_path):
    native.save_pretrained(tmp_path / "native")
    return tmp_path / "native"
