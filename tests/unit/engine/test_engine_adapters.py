"""Adapters through the real engine: each answer is PEFT's own, whatever runs beside it, drafts or was shared."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedAdapter
from helix_jobs.engine.loading.load_engine import add_adapters
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.prefix_cache import PrefixCache
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import ErrorCode, InvalidRequestError
from tests.crossed import crossed
from tests.unit.engine.adapters import ATTENTION, EVERYTHING, peft_model, read_all
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    loaded,
    reference_greedy,
    reference_logits,
    request,
    roughen,
    tiny_model,
)

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.engine.weights.adapter import Adapter

SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": ({}, EVERYTHING),
    "gemma3_text": ({"sliding_window": 8, "layer_types": [SLIDING, FULL]}, EVERYTHING),
    "qwen3_moe": ({}, ATTENTION),
    "lfm2": ({}, ["in_proj", "out_proj", "q_proj", "v_proj", "w1", "w2"]),
}
NAMES = ("sql", "fr", "long")
BASE = None
# A family with windows frees blocks as it goes.
FEW_BLOCKS = {"gemma3_text": 16}


@functools.cache
def models(family: str) -> dict[str | None, Any]:
    """The model without an adapter, and PEFT's by the adapters' names."""
    settings, targets = FAMILIES[family]
    base = roughen(tiny_model(family, seed=3, **settings))
    return {
        BASE: base,
        "sql": peft_model(base, 1, target_modules=targets),
        "fr": peft_model(base, 2, target_modules=targets, r=3, use_rslora=True),
        "long": peft_model(base, 3, target_modules=targets[:2], rank_pattern={targets[0]: 2}),
    }


@functools.cache
def answer(family: str, adapter: str | None, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    made = models(family)[adapter]
    return reference_greedy(made, prompt, max_tokens + 1, eos_token_id=None)[:max_tokens]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@functools.cache
def _adapters(family: str, folder: Path) -> list[Adapter]:
    return [one.adapter for one in read_all(folder / family, {name: models(family)[name] for name in NAMES})]


def engine_of(
    family: str,
    folder: Path,
    draft: str = "none",
    *,
    adaptive: bool = False,
    depth: int = 4,
    num_blocks: int = 400,
    drafters: tuple[str, ...] = (),
    **config: Any,
) -> Engine:
    with_adapters = add_adapters(loaded(models(family)[BASE], draft), _adapters(family, folder))
    speculation = SpeculationConfig(depth=depth, adaptive=adaptive, drafters=drafters)
    return Engine(
        with_adapters,
        EngineConfig(speculation=speculation, **config),
        CacheConfig(num_blocks=num_blocks, block_size=4, num_snapshots=8),
    )


def prompts(count: int, shared: int = 0, longest: int = 30, seed: int = 5) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    system = tuple(rng.randrange(2, VOCAB_SIZE) for _ in range(shared))
    return [(*system, *(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randrange(1, longest)))) for _ in range(count)]


def run(
    engine: Engine, given: list[tuple[int, ...]], owners: list[str | None], max_tokens: int = 16, **params: Any
) -> list[GenerationResult]:
    results = engine.generate(
        replace(request(f"r{i}", prompt, max_tokens=max_tokens, ignore_eos=True, **params), adapter=owner)
        for i, (prompt, owner) in enumerate(zip(given, owners, strict=True))
    )
    engine.check_integrity()
    assert opened(engine).is_empty
    assert [result.adapter for result in results] == owners
    return results


def check(
    family: str, engine: Engine, given: list[tuple[int, ...]], owners: list[str | None]
) -> list[GenerationResult]:
    results = run(engine, given, owners)
    for result, prompt, owner in zip(results, given, owners, strict=True):
        assert result.output_token_ids == answer(family, owner, prompt, 16), owner
    return results


MIXED: list[str | None] = ["sql", BASE, "fr", "long", "sql", "fr", BASE, "long"]


DRAFTING: list[tuple[str, dict[str, Any]]] = [
    ("none", {"depth": 0}),
    ("same", {}),
    ("other", {"drafters": ("lookup",)}),
    ("int8", {"adaptive": True, "drafters": ("lookup",)}),
]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(("family", "draft", "settings"), crossed(FAMILIES, DRAFTING, 2))
def test_a_batch_of_three_adapters_and_the_model_itself(
    family: str, draft: str, settings: dict[str, Any], folder: Path
) -> None:
    engine = engine_of(family, folder, draft, max_batch_size=5, token_budget=24, **settings)
    check(family, engine, prompts(8), MIXED)
    if draft == "same":
        assert 0 < engine.counters().accepted_tokens < engine.counters().draft_tokens


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("family", FAMILIES)
def test_preempted_sequences_are_computed_again_with_their_adapter(family: str, folder: Path) -> None:
    engine = engine_of(family, folder, "same", max_batch_size=6, num_blocks=FEW_BLOCKS.get(family, 22))
    check(family, engine, prompts(8), MIXED)
    assert engine.counters().preemptions > 0


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_one_adapter_has_computed_is_shared_with_its_own_alone(family: str, folder: Path) -> None:
    engine = engine_of(family, folder, "same", max_batch_size=2)
    (prompt,) = prompts(1, shared=41, longest=2)
    order: list[str | None] = [BASE, "sql", "fr", "sql", "fr", BASE, "long"]
    results = [check(family, engine, [prompt], [owner])[0] for owner in order]
    hits = [result.cached_prompt_tokens for result in results]
    assert hits[:3] == [0, 0, 0]
    assert hits[6] == 0
    assert all(hits[3:6])


def test_without_a_root_of_its_own_an_adapter_would_be_served_another_s_prefix(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above fails if the root is left out: this shows that it can."""
    monkeypatch.setattr(PrefixCache, "root", lambda *_: None)
    engine = engine_of("llama", folder)
    (prompt,) = prompts(1, shared=41, longest=2)
    run(engine, [prompt], [BASE])
    (result,) = run(engine, [prompt], ["sql"])
    assert result.cached_prompt_tokens > 0
    assert result.output_token_ids != answer("llama", "sql", prompt, 16)


def test_two_names_of_one_adapter_share_what_it_computed(folder: Path) -> None:
    (adapter, *_) = _adapters("llama", folder)
    both = [adapter, replace(adapter, name="again")]
    engine = Engine(
        add_adapters(loaded(models("llama")[BASE]), both),
        EngineConfig(speculation=SpeculationConfig(depth=0)),
        CacheConfig(num_blocks=100, block_size=4),
    )
    (prompt,) = prompts(1, shared=41, longest=2)
    run(engine, [prompt], ["sql"])
    (result,) = run(engine, [prompt], ["again"])
    assert result.cached_prompt_tokens > 0
    assert result.output_token_ids == answer("llama", "sql", prompt, 16)


def test_all_choices_of_a_request_have_its_adapter(folder: Path) -> None:
    engine = engine_of("llama", folder, "same")
    prompt = prompts(1)[0]
    (result,) = run(engine, [prompt], ["fr"], n=3)
    assert {choice.output_token_ids for choice in result.choices} == {answer("llama", "fr", prompt, 16)}
    assert [choice.adapter for choice in result.choices] == ["fr"] * 3


def test_log_probabilities_of_prompt_and_answer_are_the_adapter_s(folder: Path) -> None:
    engine = engine_of("llama", folder, "same")
    prompt = prompts(1, shared=10)[0]
    for owner in (BASE, "sql"):
        (result,) = run(engine, [prompt], [owner], logprobs=1, prompt_logprobs=1)
        ids = [*prompt, *result.output_token_ids]
        expected = reference_logits(models("llama")[owner], ids).log_softmax(-1)
        assert result.prompt_logprobs is not None
        assert result.logprobs is not None
        told = [one.logprob for one in [*result.prompt_logprobs, *result.logprobs][1:]]
        right = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
        assert told == pytest.approx(right, abs=1e-3)


def test_options_are_scored_by_the_adapter(folder: Path) -> None:
    engine = engine_of("llama", folder)
    scores = []
    for name in (BASE, "sql", "fr"):
        asking = replace(asked(adapter=name), score_choices=ScoreChoices(options=("ab", "cd", "x")))
        encoded = engine.encode(asking)
        (result,) = engine.generate([asking])
        assert result.adapter == name
        assert result.scores is not None
        for option, tokens in zip(result.scores, encoded.option_token_ids, strict=True):
            ids, first = [*encoded.prompt_token_ids, *tokens], len(encoded.prompt_token_ids)
            expected = reference_logits(models("llama")[name], ids).log_softmax(-1)
            total = sum(float(expected[place - 1, ids[place]]) for place in range(first, len(ids)))
            assert result.scores[option]["sum"] == pytest.approx(total, abs=1e-3)
        scores.append([one["sum"] for one in result.scores.values()])
    assert scores[0] != scores[1] != scores[2]


def test_sampled_answers_are_the_same_in_mixed_company(folder: Path) -> None:
    """In float32 nothing rounds so far apart that another token is drawn."""
    given, sampled = prompts(8), {"temperature": 0.8, "top_p": 0.9}
    mixed = run(engine_of("llama", folder, depth=0, max_batch_size=8), given, MIXED, **sampled)
    alone = run(engine_of("llama", folder, depth=0, max_batch_size=1), given, MIXED, **sampled)
    assert [one.output_token_ids for one in mixed] == [one.output_token_ids for one in alone]


# Which adapter answers


def asked(**fields: Any) -> Request:
    return Request(request_id="r", prompt="hello", seed=0, sampling_params=SamplingParams(max_tokens=4), **fields)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, None),
        ({"adapter": "fr"}, "fr"),
        ({"model": "fr"}, "fr"),
        ({"model": "gpt-4o"}, None),
        ({"model": "gpt-4o", "adapter": "sql"}, "sql"),
        ({"model": "fr", "adapter": "sql"}, "sql"),
    ],
)
def test_a_request_chooses_by_adapter_or_by_model(fields: dict[str, str], chosen: str | None, folder: Path) -> None:
    engine = engine_of("llama", folder)
    assert engine.info.adapters == NAMES
    assert engine.encode(asked(**fields)).adapter == chosen
    (result,) = engine.generate([asked(**fields)])
    assert result.adapter == chosen


def test_an_unknown_adapter_fails_its_request_alone_and_names_those_that_are_there(folder: Path) -> None:
    engine = engine_of("llama", folder)
    good, bad = engine.generate([asked(adapter="sql"), replace(asked(adapter="sgl"), request_id="bad")])
    assert good.error is None
    assert bad.error is not None
    assert bad.error.code is ErrorCode.INVALID_REQUEST
    assert str(bad.error) == "adapter: 'sgl' is not loaded; give one of fr, long, sql, or remove the field"


def test_without_adapters_the_message_says_how_to_give_one(folder: Path) -> None:
    engine = Engine(loaded(models("llama")[BASE]), EngineConfig(), CacheConfig(num_blocks=40, block_size=4))
    with pytest.raises(InvalidRequestError, match="start the worker with --adapter NAME=DIRECTORY"):
        engine.encode(asked(adapter="sql"))
    with pytest.raises(InvalidRequestError, match="is not this engine's"):
        engine.add_request(replace(request("r", [3, 4]), adapter="sql"))
    assert engine.encode(asked(model="sql")).adapter is None


def test_the_draft_of_an_adapted_target_has_no_adapter(folder: Path) -> None:
    engine = engine_of("llama", folder, "int8")
    assert opened(engine).target.decoder.adapters is not None
    models_with = add_adapters(loaded(models("llama")[BASE], "int8"), _adapters("llama", folder))
    assert models_with.draft is not None
    assert models_with.draft.decoder.adapters is None
    assert [*models_with.adapters] == [LoadedAdapter(one.name, one.digest) for one in _adapters("llama", folder)]


@torch.no_grad()
def test_a_pass_without_adapters_after_one_with_them_is_the_model_s_own(folder: Path) -> None:
    engine = engine_of("llama", folder)
    given = prompts(3)
    check("llama", engine, given, ["sql"] * 3)
    check("llama", engine, given, [BASE] * 3)
