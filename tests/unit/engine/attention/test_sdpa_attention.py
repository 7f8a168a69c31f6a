"""Torch's fused attention in place of plain products: the same results, and only where a trial says it pays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig
from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.loading import attention_trial
from helix_jobs.engine.loading.attention_trial import is_faster, pays, with_faster_attention
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.assembly import build_decoder
from tests.unit.engine.devices.simulated_directml import SimulatedDirectml, built_on_device
from tests.unit.engine.tiny_models import (
    ARCHITECTURES,
    CPU,
    VOCAB_SIZE,
    as_loaded,
    copy_of,
    loaded,
    ragged_logits,
    reference_logits,
    roughen,
    tiny_model,
)

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.attention.backend import AttentionBackend
    from helix_jobs.engine.model.decoder import Decoder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK, BLOCKS, HEAD_DIM = 4, 120, 16


def slices_of(seed: int) -> list[TokenSlice]:
    """A ragged step: decodes, drafts and chunks, over scattered blocks, some of which sequences share."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    scattered = torch.randperm(BLOCKS, generator=generator).tolist()
    shared, free = scattered[:9], scattered[9:]
    made = []
    for new in (1, 1, 5, 1, 5, number(2, 30), 1, number(60, 90)):
        start = number(0, 9 * BLOCK)  # within a block as well as where one begins
        used = -(-(start + new) // BLOCK)
        # Blocks that are full before the step may be another sequence's too; those that are written are its own.
        blocks = shared[: start // BLOCK]
        while len(blocks) < used:
            blocks.append(free.pop())
        made.append(TokenSlice(new, start, blocks))
    return made


def attended(backend: AttentionBackend, seed: int, dtype: torch.dtype) -> torch.Tensor:
    spec, slices = backend.spec, slices_of(seed)
    generator = torch.Generator().manual_seed(seed)
    cache = PagedKVCache(spec.geometry, CacheConfig(num_blocks=BLOCKS, block_size=BLOCK), dtype, CPU)
    for pool in (*cache.keys, *cache.values):
        pool.copy_(torch.randn(pool.shape, generator=generator))
    plan = backend.plan(slices, cache)
    layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
    latent = spec.layers[0].latent
    width = (spec.num_heads + 2 * spec.geometry.layers[0].num_kv_heads) * HEAD_DIM
    if latent is not None:
        num_heads, plain_dim, rank = latent.keys.shape
        width = num_heads * (plain_dim + latent.rotary_dim) + rank + latent.rotary_dim
    rows = torch.randn((plan.num_tokens, width), generator=generator)
    return backend.begin(layout, cache).attend(0, rows.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (8, 1)])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("window", [None, 6])
def test_it_attends_as_plain_products_do(
    dtype: torch.dtype, heads: int, kv_heads: int, seed: int, window: int | None
) -> None:
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=kv_heads, head_dim=HEAD_DIM)
    spec = AttentionSpec(geometry=geometry, num_heads=heads, layers=(LayerAttention(0.3, window=window),))
    plain, fused = (attended(backend, seed, dtype) for backend in (DenseAttention(spec), SdpaAttention(spec)))
    assert fused.dtype == dtype
    assert fused.shape == plain.shape
    # Both round their results once; what is summed before that rounds less.
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(fused, plain, rtol=rounding, atol=rounding)


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
def test_it_attends_to_latents_of_bfloat16() -> None:
    decoder = build_decoder(copy_of(roughen(tiny_model("youtu", num_hidden_layers=1)), torch.bfloat16))
    spec = decoder.attention.spec
    plain, fused = (attended(backend, 0, torch.bfloat16) for backend in (DenseAttention(spec), SdpaAttention(spec)))
    assert fused.shape == plain.shape
    # The sums of latents are rounded, and what is made of them once more.
    rounding = 8 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(fused, plain, rtol=rounding, atol=rounding * float(plain.abs().max()))


def with_sdpa(decoder: Decoder) -> Decoder:
    return replace(decoder, attention=SdpaAttention(decoder.attention.spec))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_transformers(architecture: str) -> None:
    model = tiny_model(architecture, seed=3)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 3, 90, 33, 3)]
    found = ragged_logits(with_sdpa(build_decoder(copy_of(model))), prompts, chunk=40)
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([(1.0, 0.5), (2.0, 1.0)], True),
        ([(1.0, 0.97), (2.0, 1.97)], False),  # next to nothing
        ([(1.0, 1.2), (9.0, 3.0)], False),  # one kind of step takes longer
        ([(1.0, 1.05), (9.0, 3.0)], True),
    ],
)
def test_a_trial_pays_where_all_steps_together_are_faster_and_none_is_slower(
    seconds: list[tuple[float, float]], *, expected: bool
) -> None:
    assert pays(seconds) is expected


@pytest.fixture
def brief_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial times each kind of step once: nothing here depends on how long one takes."""
    monkeypatch.setattr(attention_trial, "_ROUNDS", 1)
    monkeypatch.setattr(attention_trial, "_CALLS", 1)


@pytest.mark.usefixtures("brief_trials")
@pytest.mark.parametrize("is_taken", [True, False])
def test_the_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_taken: bool) -> None:
    monkeypatch.setattr(attention_trial, "pays", lambda seconds: len(seconds) == 4 and is_taken)
    decoder = build_decoder(tiny_model())
    told: list[str] = []
    assert is_faster(decoder, tmp_path, told.append) is is_taken
    assert told == ["trying which attention is faster here, once for this model"]
    assert is_faster(decoder, tmp_path, pytest.fail) is is_taken
    (kept,) = tmp_path.iterdir()
    assert all(mine > 0 and theirs > 0 for mine, theirs in json.loads(kept.read_text())["seconds"])
    kept.write_text("[]")
    assert is_faster(decoder, tmp_path, told.append) is is_taken
    assert len(told) == 2


@pytest.mark.usefixtures("brief_trials")
def test_a_cache_of_8_bits_is_a_trial_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trial, "pays", lambda seconds: len(seconds) == 4)
    decoder = build_decoder(tiny_model())
    told: list[str] = []
    for dtype in ("auto", "int8", "auto", "int8"):
        assert is_faster(decoder, tmp_path, told.append, dtype)
    assert len(told) == len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("brief_trials")
@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")
def test_latent_attention_is_tried_with_its_own_keys(tmp_path: Path) -> None:
    is_faster(build_decoder(tiny_model("youtu")), tmp_path, lambda _: None)
    (kept,) = tmp_path.iterdir()
    assert len(json.loads(kept.read_text())["seconds"]) == 4, "the results agree"


def failing(error: Exception) -> object:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_an_operator_that_fails_is_not_taken_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_trial.SdpaAttention, "begin", failing(NotImplementedError("no kernel")))
    decoder = build_decoder(tiny_model())
    assert not is_faster(decoder, tmp_path, lambda _: None)
    assert not is_faster(decoder, tmp_path, pytest.fail)


def test_a_trial_that_found_no_memory_is_repeated_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_trial.SdpaAttention, "begin", failing(torch.cuda.OutOfMemoryError("out of memory")))
    assert not is_faster(build_decoder(tiny_model()), tmp_path, lambda _: None)
    assert not list(tmp_path.iterdir())


def test_results_that_differ_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def attend(self, _layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return qkv.new_zeros((len(qkv), 48))

    monkeypatch.setattr(attention_trial.SdpaAttention, "begin", lambda *_: Wrong())
    monkeypatch.setattr(attention_trial, "pays", lambda _: True)
    assert not is_faster(build_decoder(tiny_model()), tmp_path, lambda _: None)


def test_on_the_cpu_and_on_directml_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trial, "is_faster", failing(AssertionError("tried")))
    models = loaded(tiny_model(), "same")
    assert with_faster_attention(models, tmp_path) is models
    with SimulatedDirectml():
        there = replace(models, target=LoadedModel("tiny", built_on_device(copy_of(tiny_model()))), draft=None)
        assert with_faster_attention(there, tmp_path) is there


@pytest.mark.usefixtures("brief_trials")
def test_where_it_pays_target_and_draft_attend_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trial, "_DEVICES", ("cpu",))
    monkeypatch.setattr(attention_trial, "pays", lambda _: True)
    models = loaded(tiny_model(), as_loaded("draft", tiny_model(num_attention_heads=2)))
    changed = with_faster_attention(models, tmp_path)
    assert changed.draft is not None
    assert {changed.target.decoder.attention.kernels, changed.draft.decoder.attention.kernels} == {"torch sdpa"}
    assert changed.target.decoder.layers is models.target.decoder.layers
    assert len(list(tmp_path.iterdir())) == 2
    again = with_faster_attention(changed, tmp_path, pytest.fail)
    assert again.target.decoder.attention is changed.target.decoder.attention, "nothing is tried or made again"


def test_compiled_attention_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled(DenseAttention):
        kernels = "compiled"

    monkeypatch.setattr(attention_trial, "_DEVICES", ("cpu",))
    monkeypatch.setattr(attention_trial, "pays", lambda _: True)
    models = loaded(tiny_model())
    decoder = models.target.decoder
    models = replace(
        models, target=replace(models.target, decoder=replace(decoder, attention=Compiled(decoder.attention.spec)))
    )
    assert with_faster_attention(models, tmp_path, pytest.fail).target.decoder.attention.kernels == "compiled"
