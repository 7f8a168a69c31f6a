"""Row tiles: what a trial finds out about products, and what tiles make of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helix_jobs.engine.config import SpeculationConfig
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.loading.product_trials import TIMED_ROWS, ShapeTrial, slowdown
from helix_jobs.engine.loading.reproducible import ACCEPTED_SLOWDOWN, make_reproducible
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.rounding import TRIED_ROWS, cancelling_operands, rounding_classes
from helix_jobs.engine.weights.row_tiles import ANY_ROWS, RowTiles, candidates
from helix_jobs.errors import ConfigurationError
from tests.unit.engine.kernels.native_models import DTYPES, compiled_engine, compiled_models
from tests.unit.engine.tiny_models import loaded as loaded_models
from tests.unit.engine.tiny_models import request, tiny_model

ROWS = torch.randn((3, 40), generator=torch.Generator().manual_seed(3))
WEIGHT = torch.randn((24, 40), generator=torch.Generator().manual_seed(2))
NO_DRAFT = SpeculationConfig(depth=0, adaptive=False)
DRAFTS = SpeculationConfig(depth=4, adaptive=False, drafters=("lookup",))


def rounding_at(limit):
    """A product that sums in another order from ``limit`` rows on, as kernels for many rows do."""

    def product(rows):
        # Row by row, so that the product beneath adds no dependence of its own.
        exact = torch.stack([(row.double() * WEIGHT.double()).sum(dim=1) for row in rows])
        return (exact * (1.0 if len(rows) < limit else 1.0 + 2e-3)).float()

    return product


def by_place(rows):
    return rounding_at(10_000)(rows) * torch.arange(len(rows)).div(7).floor().mul(1e-3).add(1.0)[:, None]


@pytest.mark.parametrize("limit", [3, 4, 20, 33, 129, 256, 10_000])
def test_a_trial_finds_where_the_rounding_changes(limit):
    classes = rounding_classes(rounding_at(limit), ROWS)
    assert classes == tuple(0 if count < limit else 1 for count in TRIED_ROWS)


def test_a_product_that_rounds_by_the_place_of_a_row_is_found():
    classes = rounding_classes(by_place, ROWS)
    assert None in classes
    assert all(name is None for count, name in zip(TRIED_ROWS, classes, strict=True) if count > 9)


def in_order(weight, order):
    """A product that sums its inputs in float32 one by one, in this order."""

    def product(rows):
        total = torch.zeros((len(rows), len(weight)))
        for column in order:
            total += rows[:, column, None].float() * weight[:, column].float()
        return total.to(rows.dtype)

    return product


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
def test_the_trials_operands_show_any_other_order_of_summation(dtype):
    weight, rows = cancelling_operands(70, 513, dtype)
    assert weight.shape == (70, 513)
    usual = in_order(weight, range(513))(rows)
    for other in (reversed(range(513)), [*range(256, 513), *range(256)], [*range(0, 513, 2), *range(1, 513, 2)]):
        found = in_order(weight, list(other))(rows)
        assert (found != usual).float().mean() > 0.3, "many results change, not one in ten thousand"


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((0, 0, 0, 0, 0), (ANY_ROWS,)),
        ((0, 0, 0, 1, 1), (RowTiles(most=8), RowTiles(least=16))),
        ((0, 1, 1, 1, 1), (RowTiles(least=4),)),
        ((0, 0, 1, 0, 0), (RowTiles(most=4), RowTiles(least=16))),
        ((0, 0, 0, 1, 2), (RowTiles(most=8),)),
        ((0, 0, None, None, None), (RowTiles(most=4),)),
        ((None, None, None, None, None), ()),
        ((None, None, None, 0, 0), (RowTiles(least=16),)),
    ],
)
def test_tiles_stay_within_one_class(classes, expected):
    assert candidates(classes, (2, 4, 8, 16, 32)) == expected


@pytest.mark.parametrize("tiles", [RowTiles(most=32), RowTiles(least=33), RowTiles(most=4)])
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 34, 64, 65, 100])
def test_in_tiles_a_row_rounds_alike_in_any_number(tiles, count):
    product = rounding_at(33)
    rows = torch.randn((100, 40))
    everything = tiles.apply(product, rows)
    found = tiles.apply(product, rows[:count])
    assert found.shape == (count, 24)
    assert torch.equal(found, everything[:count])


def test_a_sum_is_computed_in_the_same_tiles():
    residual, rows = torch.randn((70, 24)), torch.randn((70, 40))
    product = rounding_at(33)
    summed = RowTiles(most=32).apply(lambda base, part: base + product(part), residual, rows)
    assert torch.equal(summed, residual + RowTiles(most=32).apply(product, rows))


@pytest.fixture
def kernels_change_at_six_rows(monkeypatch):
    """Products as on a processor whose kernels for more than five rows round otherwise."""
    product, total = DenseLinear._product, DenseLinear._sum

    def coarse(result, rows):
        return result if len(rows) < 6 else (result.float() * (1 + 2**-7)).to(result.dtype)

    monkeypatch.setattr(DenseLinear, "_product", lambda self, rows: coarse(product(self, rows), rows))
    monkeypatch.setattr(
        DenseLinear, "_sum", lambda self, base, rows: base + coarse(total(self, torch.zeros_like(base), rows), rows)
    )


def outputs(models, **settings):
    requests = [request(str(i), [(7 * i + 3 * j) % 31 + 2 for j in range(3 + 5 * i)], max_tokens=24) for i in range(8)]
    return [result.output_token_ids for result in compiled_engine(models, **settings).generate(requests)]


@pytest.mark.thorough(fast=1)
@pytest.mark.usefixtures("kernels_change_at_six_rows")
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
def test_answers_become_independent_of_their_company(compiled_folder, tmp_path, dtype):
    plain = compiled_models(compiled_folder, dtype)
    ways = (
        {"max_batch_size": 1, "speculation": NO_DRAFT},
        {"max_batch_size": 8, "speculation": NO_DRAFT},
        {"max_batch_size": 8, "speculation": DRAFTS, "token_budget": 20},
    )
    assert len({str(outputs(plain, **way)) for way in ways}) > 1, "the control: these products do depend on company"
    tiled = make_reproducible(compiled_models(compiled_folder, dtype), "on", tmp_path)
    assert tiled.target.is_reproducible
    assert len({str(outputs(tiled, **way)) for way in ways}) == 1


def test_an_int8_target_becomes_independent_when_asked(compiled_folder, tmp_path):
    models = compiled_models(compiled_folder, torch.bfloat16, int8=True)
    assert not make_reproducible(models, "auto", tmp_path).target.is_reproducible
    sure = make_reproducible(models, "on", tmp_path)
    assert sure.target.is_reproducible
    alone = outputs(sure, max_batch_size=1, speculation=NO_DRAFT)
    assert outputs(sure, max_batch_size=8, speculation=DRAFTS) == alone


def test_the_cost_is_that_of_the_whole_model_in_its_worst_mix():
    kept = ShapeTrial(ANY_ROWS, seconds=(1.0,) * 5, plain_seconds=(1.0,) * 5)
    slow_alone = ShapeTrial(
        RowTiles(least=36), seconds=tuple(3.0 if rows == 2 else 1.0 for rows in TIMED_ROWS), plain_seconds=(1.0,) * 5
    )
    faster = ShapeTrial(None, has_matrix_tiles=True, seconds=(0.5,) * 5, plain_seconds=(1.0,) * 5)
    assert slowdown({(8, 8): kept}, {(8, 8): 4}) == 1.0
    assert slowdown({(8, 8): kept, (9, 9): slow_alone}, {(8, 8): 3, (9, 9): 1}) == pytest.approx(1.5)
    assert slowdown({(8, 8): kept, (9, 9): faster}, {(8, 8): 3, (9, 9): 1}) == 1.0


@pytest.mark.usefixtures("kernels_change_at_six_rows")
def test_what_costs_too_much_has_to_be_asked_for(compiled_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("helix_jobs.engine.loading.reproducible.slowdown", lambda *_: ACCEPTED_SLOWDOWN + 0.3)
    said: list[str] = []
    models = compiled_models(compiled_folder, torch.float32)
    assert not make_reproducible(models, "auto", tmp_path, said.append).target.is_reproducible
    assert len(said) == 2
    assert said[0].startswith("trying how this machine's matrix products round")
    assert said[1].endswith("--reproducible makes them independent, with products that take up to 1.35 times as long")
    assert make_reproducible(models, "on", tmp_path, said.append).target.is_reproducible


def test_a_trial_is_made_once_for_a_machine(compiled_folder, tmp_path, monkeypatch):
    models = compiled_models(compiled_folder, torch.float32)
    first = make_reproducible(models, "on", tmp_path)
    (file,) = tmp_path.glob("products-*.json")
    assert all(row["most"] is None or row["most"] >= 2 for row in json.loads(file.read_text()))

    def refuse(*_):
        pytest.fail("tried again")

    monkeypatch.setattr("helix_jobs.engine.loading.product_trials.rounding_classes", refuse)
    again = make_reproducible(models, "on", tmp_path)
    assert again.target.is_reproducible == first.target.is_reproducible


def test_a_home_that_moves_to_another_processor_is_tried_again(compiled_folder, tmp_path, monkeypatch):
    models = compiled_models(compiled_folder, torch.float32)
    make_reproducible(models, "on", tmp_path)
    monkeypatch.setattr(
        "helix_jobs.engine.loading.product_trials.processor_features", lambda: "flags: another processor's"
    )
    make_reproducible(models, "on", tmp_path)
    assert len(list(tmp_path.glob("products-*.json"))) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "5",
        "[]",
        '[{"least": 2}]',
        '[{"least": "a", "most": null, "matrix": false, "seconds": [0,0,0,0,0], "plain": [0,0,0,0,0]}]',
        '[{"least": 2, "most": null, "matrix": 5, "seconds": [0,0,0,0,0], "plain": [0,0,0,0,0]}]',
        '[{"least": 2, "most": null, "matrix": false, "seconds": [0], "plain": [0]}]',
        "[" * 5000,
    ],
)
def test_a_damaged_file_is_made_again(compiled_folder, tmp_path, content):
    models = compiled_models(compiled_folder, torch.float32)
    make_reproducible(models, "on", tmp_path)
    (file,) = tmp_path.glob("products-*.json")
    sound = file.read_text()
    file.write_text(content)
    make_reproducible(models, "on", tmp_path)
    assert [row["least"] for row in json.loads(file.read_text())] == [row["least"] for row in json.loads(sound)]


def test_products_that_round_by_place_are_refused_when_asked_for(compiled_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "helix_jobs.engine.loading.product_trials.rounding_classes", lambda *given: (None,) * len(given[2])
    )
    models = compiled_models(compiled_folder, torch.float32)
    assert not make_reproducible(models, "auto", tmp_path).target.is_reproducible
    with pytest.raises(ConfigurationError, match=r"--reproducible cannot be had here: .* place of a row"):
        make_reproducible(models, "on", tmp_path)


def test_without_compiled_kernels_it_is_refused(tmp_path):
    models = loaded_models(tiny_model(), None)
    assert make_reproducible(models, "auto", tmp_path) is models
    with pytest.raises(ConfigurationError, match=r"without compiled kernels .* install a C\+\+ compiler"):
        make_reproducible(models, "on", tmp_path)


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="these models are served with transformers 5")
@pytest.mark.parametrize("architecture", ["youtu", "gemma4_text"])
def test_with_attention_that_no_compiled_kernel_computes_it_is_refused(tmp_path, architecture):
    models = loaded_models(tiny_model(architecture), None)
    assert make_reproducible(models, "auto", tmp_path) is models
    with pytest.raises(ConfigurationError, match="its attention is not computed by compiled kernels; go on without it"):
        make_reproducible(models, "on", tmp_path)


def test_off_the_cpu_it_is_refused(tmp_path):
    models = loaded_models(tiny_model(), None)
    decoder = replace(models.target.decoder, device=torch.device("meta"))
    elsewhere = replace(models, target=replace(models.target, decoder=decoder))
    with pytest.raises(ConfigurationError, match="it is for the CPU, and the device is"):
        make_reproducible(elsewhere, "on", tmp_path)
