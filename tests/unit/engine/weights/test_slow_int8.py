"""Where int8 products are slow, no draft uses them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helix_jobs.engine.kernels.cpu.int8_linear import CompiledInt8Linear
from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.loading.load_engine import without_slow_int8
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.weights import int8_linear
from helix_jobs.engine.weights.int8_linear import Int8Linear
from tests.unit.engine.tiny_models import copy_of, loaded, tiny_model


def with_int8_draft(*, is_copy):
    model = tiny_model()
    draft = LoadedModel("small", quantize(build_decoder(copy_of(model))), is_int8=True, is_copy=is_copy)
    return replace(loaded(model, "none"), draft=draft)


@pytest.fixture
def is_slow(monkeypatch):
    monkeypatch.setattr(int8_linear, "packs_int8", lambda: False)


@pytest.fixture
def is_fast(monkeypatch):
    monkeypatch.setattr(int8_linear, "packs_int8", lambda: True)


@pytest.mark.usefixtures("is_slow")
def test_a_copy_of_the_target_is_left_out():
    told = []
    models = without_slow_int8(with_int8_draft(is_copy=True), told.append)
    assert models.draft is None
    assert told == [
        "going on without the int8 draft: without VNNI or compiled kernels it is slower than its target here"
    ]


@pytest.mark.usefixtures("is_slow")
def test_another_draft_model_is_widened():
    told = []
    models = without_slow_int8(with_int8_draft(is_copy=False), told.append)
    assert models.draft is not None
    assert not models.draft.is_int8
    assert models.draft.dtype_name == "float32"
    assert not any(isinstance(linear, Int8Linear) for linear in models.draft.decoder.linears())
    assert told == ["draft small computes in float32: int8 is slow here"]


@pytest.mark.usefixtures("is_fast")
@pytest.mark.parametrize("is_copy", [True, False])
def test_where_int8_is_fast_the_draft_stays_as_it_is(is_copy):
    models = with_int8_draft(is_copy=is_copy)
    assert without_slow_int8(models, pytest.fail) is models


@pytest.mark.usefixtures("is_slow")
def test_compiled_kernels_make_it_fast():
    models = with_int8_draft(is_copy=True)

    class Kernels:
        has_byte_products = True

    decoder = models.draft.decoder.with_linears(lambda linear: CompiledInt8Linear(linear, Kernels()))
    models = replace(models, draft=replace(models.draft, decoder=decoder))
    assert without_slow_int8(models, pytest.fail) is models


@pytest.mark.usefixtures("is_slow")
def test_without_an_int8_draft_nothing_changes():
    models = loaded(tiny_model(), "none")
    assert without_slow_int8(models, pytest.fail) is models
