"""Decoders with adapters: every row equals PEFT's own model, whichever adapters the rows beside it have."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig, StateConfig
from helix_jobs.engine.kernels.cpu.feed_forward import CompiledFeedForward
from helix_jobs.engine.loading.model_adapters import adapted_products, check_adapters
from helix_jobs.engine.model.adapter_plan import MOST_TOGETHER
from helix_jobs.engine.model.adapters import adaptable, with_adapters
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.schedule.state_pool import StatePool
from helix_jobs.engine.schedule.state_table import StateTable
from helix_jobs.errors import ModelError
from tests.unit.engine.adapters import ATTENTION, EVERYTHING, adapted_decoder, peft_model, read_all
from tests.unit.engine.adapters_at_random import merged, random_adapter
from tests.unit.engine.kernels.native_models import compiled_decoder
from tests.unit.engine.model.family_case import Case, error
from tests.unit.engine.model.family_cases import PLAIN_CASES
from tests.unit.engine.tiny_models import VOCAB_SIZE, copy_of, reference_logits, roughen, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from helix_jobs.engine.model.decoder import Decoder

BLOCK = 4


def prompts_of(count: int, seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 24))] for _ in range(count)]


@torch.no_grad()
def mixed_logits(decoder: Decoder, prompts: Sequence[Sequence[int]], owners: Sequence[int]) -> list[torch.Tensor]:
    """Logits of prompts packed together, each computed with one of the decoder's adapters, or with none (0)."""
    ends = [0, *itertools.accumulate(-(-len(prompt) // BLOCK) for prompt in prompts)]
    states = StateConfig(num_slots=len(prompts))
    runner, pool = ModelRunner(decoder, CacheConfig(num_blocks=ends[-1], block_size=BLOCK), states), StatePool(states)
    slices = [
        TokenSlice(len(prompt), 0, range(first, end), StateTable(pool, BLOCK).begin(0, len(prompt)), adapter=owner)
        for prompt, owner, (first, end) in zip(prompts, owners, itertools.pairwise(ends), strict=True)
    ]
    plan = runner.plan(slices)
    logits = runner.forward(plan, prompts, range(plan.num_tokens))
    assert logits is not None
    return [logits[offset : offset + len(prompt)] for offset, prompt in zip(plan.offsets, prompts, strict=True)]


def check(decoder: Decoder, models: Sequence[Any], prompts: Sequence[list[int]], owners: Sequence[int]) -> None:
    """``models[0]`` is the model without an adapter, the others PEFT's."""
    for logits, prompt, owner in zip(mixed_logits(decoder, prompts, owners), prompts, owners, strict=True):
        assert error(logits, reference_logits(models[owner], prompt)) < 3e-5, f"adapter {owner}"


@pytest.mark.thorough(fast=8)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_every_family_equals_the_merged_model_in_every_product_that_can_be_adapted(case: Case) -> None:
    """Stacked, reordered, transposed and multiplied products, low-rank queries, shared experts, recurrent layers."""
    model = case.model()
    decoder = build_decoder(copy_of(model), keeps_origins=True)
    modules = sorted(adaptable(decoder))
    adapters = [random_adapter("a", model, modules, 3), random_adapter("b", model, modules[::2], 2)]
    changed = [model, *(merged(model, adapter) for adapter in adapters)]
    prompts = prompts_of(5)
    check(with_adapters(decoder, adapters), changed, prompts, [1, 0, 2, 1, 0])
    difference = error(reference_logits(changed[1], prompts[0]), reference_logits(model, prompts[0]))
    assert difference > 0.01, "the adapter changes what the model computes"


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen3", "all-linear"),
        ("gemma3_text", "all-linear"),
        ("gpt2", ["c_attn", "c_fc"]),
        ("gpt_neox", ["query_key_value", "dense"]),
        ("phi3", ["qkv_proj", "gate_up_proj"]),
        ("qwen3_moe", ATTENTION),
        ("lfm2", ["in_proj", "q_proj", "w1", "w2"]),
    ],
)
def test_families_equal_peft(family: str, targets: Any, tmp_path: Path) -> None:
    model = roughen(tiny_model(family, seed=3))
    made = peft_model(model, target_modules=targets, spread=0.2)
    read = read_all(tmp_path, {"a": made})
    assert check_adapters("tiny", model.config, read) > 0
    check(adapted_decoder(model, read), (model, made), prompts_of(4), [1, 0, 1, 0])


@pytest.mark.thorough(fast=33)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_what_is_checked_before_weights_are_read_is_what_can_be_adapted(case: Case) -> None:
    model = case.model()
    products = list(adapted_products(describe(model.config)))
    origins = [one.modules for one in build_decoder(copy_of(model), keeps_origins=True).origins if one is not None]
    assert sorted(products) == sorted(origins)


@pytest.fixture(scope="module")
def model() -> Any:
    return roughen(tiny_model(seed=3))


@pytest.fixture(scope="module")
def adapters(model: Any) -> dict[str, Any]:
    return {
        "whole": peft_model(model, 1, target_modules=EVERYTHING),
        "attention": peft_model(model, 2, target_modules=ATTENTION, r=3, use_rslora=True),
        "pattern": peft_model(
            model,
            3,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
            alpha_pattern={"model.layers.0.self_attn.v_proj": 20},
            layers_to_transform=[1],
        ),
    }


def test_rows_of_three_adapters_and_of_none_share_a_pass(model: Any, adapters: dict[str, Any], tmp_path: Path) -> None:
    decoder = adapted_decoder(model, read_all(tmp_path, adapters))
    check(decoder, (model, *adapters.values()), prompts_of(7), [1, 2, 0, 3, 3, 1, 0])


def test_rows_without_an_adapter_are_the_model_s_own_bit_for_bit(
    model: Any, adapters: dict[str, Any], tmp_path: Path
) -> None:
    read = read_all(tmp_path, adapters)
    prompts = prompts_of(6)
    plain = mixed_logits(build_decoder(copy_of(model), keeps_origins=True), prompts, [0] * 6)
    mixed = mixed_logits(adapted_decoder(model, read), prompts, [0, 1, 0, 2, 0, 3])
    alone = mixed_logits(adapted_decoder(model, read), prompts, [0] * 6)
    assert all(torch.equal(one, other) for one, other in zip(plain, alone, strict=True))
    assert all(torch.equal(plain[i], mixed[i]) for i in (0, 2, 4))


def test_an_adapter_that_overflows_spoils_no_row_of_another(model: Any, tmp_path: Path) -> None:
    large = peft_model(model, 1, target_modules=EVERYTHING, spread=1e37)
    small = peft_model(model, 2, target_modules=EVERYTHING)
    prompts = prompts_of(4)
    logits = mixed_logits(adapted_decoder(model, read_all(tmp_path, {"l": large, "s": small})), prompts, [1, 0, 2, 1])
    assert not torch.isfinite(logits[0]).all()
    assert error(logits[1], reference_logits(model, prompts[1])) < 3e-5
    assert error(logits[2], reference_logits(small, prompts[2])) < 3e-5


def test_more_adapters_than_stand_together_are_computed_by_rows(model: Any, tmp_path: Path) -> None:
    count = 2 * MOST_TOGETHER + 3
    made = {f"a{i}": peft_model(model, i, r=1, target_modules=ATTENTION) for i in range(1, count + 1)}
    decoder = adapted_decoder(model, read_all(tmp_path, made))
    owners = [count, 0, 1, 5, count - 1, 1, MOST_TOGETHER + 1, 0, MOST_TOGETHER]
    check(decoder, (model, *made.values()), prompts_of(len(owners)), owners)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
def test_compiled_kernels_leave_no_adapter_out(
    compiled_folder: Path, tmp_path: Path, dtype: torch.dtype, *, int8: bool
) -> None:
    """Passes of a token or two as well, which an int8 model runs through compiled code in one call."""
    base = roughen(tiny_model(head_dim=16))
    made = peft_model(base, target_modules=EVERYTHING)
    (read,) = read_all(tmp_path, {"a": made})
    plain = compiled_decoder(compiled_folder, dtype, int8=int8)
    assert isinstance(plain.layers[0].feed_forward, CompiledFeedForward)
    decoder = with_adapters(plain, [read.adapter])
    bound = 0.05 if int8 or dtype is torch.bfloat16 else 3e-5
    for prompts in ([[5]], [[7, 8]], prompts_of(3)):
        owners = [1, *[0] * (len(prompts) - 1)]
        logits = mixed_logits(decoder, prompts, owners)
        assert error(logits[0], reference_logits(made, prompts[0])) < bound
        assert error(logits[0], reference_logits(base, prompts[0])) > 0.2, "the adapter matters more than rounding"
    runner = ModelRunner(decoder, CacheConfig(num_blocks=4, block_size=16))
    for owner in (0, 1):
        (ready,) = runner.upload([runner.prepare(runner.plan([TokenSlice(1, 0, [0], adapter=owner)]), [[5]], [0])])
        if decoder.small_steps is not None:
            assert decoder.small_steps.serves(ready.layout, runner.cache) is (owner == 0)


def test_an_int8_copy_holds_adapters_as_its_original_does(model: Any, adapters: dict[str, Any], tmp_path: Path) -> None:
    read = read_all(tmp_path, adapters)
    decoder = with_adapters(quantize(build_decoder(copy_of(model), keeps_origins=True)), [one.adapter for one in read])
    prompts = prompts_of(3)
    rows = zip(mixed_logits(decoder, prompts, [1, 2, 3]), prompts, adapters.values(), strict=True)
    for logits, prompt, made in rows:
        assert error(logits, reference_logits(made, prompt)) < 0.1


def test_a_weight_beyond_the_model_s_dtype_is_refused(model: Any, tmp_path: Path) -> None:
    read = read_all(tmp_path, {"large": peft_model(model, target_modules=ATTENTION, spread=1e6)})
    with pytest.raises(ModelError, match=r"adapter large: a weight of .* lies beyond the range of float16"):
        with_adapters(build_decoder(copy_of(model, torch.float16), keeps_origins=True), [one.adapter for one in read])
