"""The same answer in any company: a token's numbers do not depend on what else is computed with it, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig, SpeculationConfig
from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.loading.reproducible import make_draft_reproducible, make_reproducible
from helix_jobs.engine.model.runner import ModelRunner
from tests.unit.engine.kernels.native_models import (
    DTYPES,
    compiled_decoder,
    compiled_engine,
    compiled_models,
    compiled_runner,
)
from tests.unit.engine.tiny_models import PROMPT, VOCAB_SIZE, request

NO_DRAFT = SpeculationConfig(depth=0, adaptive=False)
DRAFTS = SpeculationConfig(depth=4, adaptive=False, drafters=("lookup",))
# Of 16, where hidden size and number decide.
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 3}


def rows_of(runner, sequences, cuts):
    """Last hidden states ``[tokens, hidden_size]`` of each sequence, computed in chunks that all run side by side.

    Args:
        runner: One model, whose cache is written from its first block on.
        sequences: Token ids.
        cuts: For each sequence how many tokens each of its chunks has.
    """
    block_size = runner.cache.block_size
    blocks, free = [], 0
    for tokens in sequences:
        needed = -(-len(tokens) // block_size)
        blocks.append(tuple(range(free, free + needed)))
        free += needed
    done = [0] * len(sequences)
    parts = [[] for _ in sequences]
    for step in range(max(map(len, cuts))):
        active = [index for index, cut in enumerate(cuts) if step < len(cut)]
        slices = [TokenSlice(cuts[index][step], done[index], blocks[index]) for index in active]
        plan = runner.plan(slices)
        chunks = [sequences[i][done[i] : done[i] + cuts[i][step]] for i in active]
        (ready,) = runner.upload([runner.prepare(plan, chunks, [])])
        hidden = runner.decoder.forward(ready.inputs, ready.layout, runner.cache)
        for place, index in enumerate(active):
            parts[index].append(hidden[plan.offsets[place] : plan.offsets[place] + cuts[index][step]].clone())
            done[index] += cuts[index][step]
    return [torch.cat(part) for part in parts]


# The model's dtype, and the cache's.
KINDS = [(dtype, cache) for dtype in DTYPES for cache in ("auto", "int8")]
KIND_NAMES = ("float32", "float32, KV int8", "bfloat16", "bfloat16, KV int8")


@pytest.fixture(scope="module", params=KINDS, ids=KIND_NAMES)
def runner(request, compiled_folder):
    return compiled_runner(compiled_folder, *request.param)


@st.composite
def cut_sequences(draw):
    sequences = draw(
        st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=70), min_size=1, max_size=5)
    )
    cuts = []
    for tokens in sequences:
        cut, left = [], len(tokens)
        while left:
            cut.append(draw(st.integers(1, left)))
            left -= cut[-1]
        cuts.append(cut)
    return sequences, cuts


@pytest.mark.thorough(fast=2)
@settings(max_examples=40, deadline=None)
@given(cut_sequences())
def test_a_prompts_numbers_do_not_depend_on_its_chunks_or_on_others(runner, made):
    sequences, cuts = made
    together = rows_of(runner, sequences, cuts)
    for tokens, found in zip(sequences, together, strict=True):
        (alone,) = rows_of(runner, [tokens], [[len(tokens)]])
        assert torch.equal(found, alone)


@pytest.fixture
def three_threads():
    """What three threads share is cut up anywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.thorough(fast=1)
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("gemma", {"intermediate_size": 4096}),
        ("gpt2", {"n_inner": 4096, **HEADS}),
        ("gpt_neox", {"intermediate_size": 4096, **HEADS}),
        ("gpt_neox", {"intermediate_size": 4096, **HEADS, "hidden_act": "silu"}),
        ("llama", {"intermediate_size": 4096, "hidden_act": "gelu"}),
        ("llama", {"intermediate_size": 4096, "hidden_act": "relu"}),
    ],
    ids=("gemma", "gpt2", "gpt_neox", "silu without a gate", "gelu with a gate", "relu"),
)
def test_activations_do_not_depend_on_others(compiled_folder, tmp_path, architecture, overrides, dtype):
    decoder = compiled_decoder(compiled_folder, dtype, architecture=architecture, num_hidden_layers=1, **overrides)
    models = replace(compiled_models(compiled_folder, dtype), target=LoadedModel("wide", decoder))
    models = make_reproducible(models, "on", tmp_path)
    runner = ModelRunner(models.target.decoder, CacheConfig(num_blocks=20, block_size=4))
    sequences = [[(5 * i + 3 * j) % VOCAB_SIZE for j in range(4)] for i in range(16)]
    alone = [rows_of(runner, [tokens], [[4]])[0] for tokens in sequences]
    assert all(torch.isfinite(rows).all() for rows in alone)
    for count in range(2, 17):
        together = rows_of(runner, sequences[:count], [[4]] * count)
        assert all(map(torch.equal, together, alone)), count


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(("dtype", "cache_dtype"), KINDS, ids=KIND_NAMES)
def test_outputs_are_the_same_alone_in_a_batch_with_drafts_and_after_preemption(compiled_folder, dtype, cache_dtype):
    prompts = [list(PROMPT), [7], list(range(2, 33)), [4] * 40, [5, 9, 11, 3] * 6, [*range(2, 33), 8, 9]]
    requests = [request(str(index), prompt, max_tokens=24) for index, prompt in enumerate(prompts)]
    models = compiled_models(compiled_folder, dtype)
    outputs = {}
    for name, settings_ in {
        "alone": {"max_batch_size": 1, "speculation": NO_DRAFT},
        "together": {"max_batch_size": 6, "speculation": NO_DRAFT},
        "in small chunks": {"max_batch_size": 6, "speculation": NO_DRAFT, "token_budget": 7},
        "with drafts": {"max_batch_size": 6, "speculation": DRAFTS, "token_budget": 20},
        "alone with drafts": {"max_batch_size": 1, "speculation": DRAFTS},
        "preempted": {"max_batch_size": 6, "speculation": DRAFTS, "num_blocks": 24},
    }.items():
        engine = compiled_engine(models, cache_dtype=cache_dtype, **settings_)
        outputs[name] = [result.output_token_ids for result in engine.generate(requests)]
        if name == "preempted":
            assert engine.counters().preemptions > 0
        if "drafts" in name:
            assert engine.counters().accepted_tokens > 0
    assert all(found == outputs["alone"] for found in outputs.values()), outputs


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("drafts", [DRAFTS, replace(DRAFTS, drafters=())], ids=("lookup and int8", "int8"))
def test_sampled_answers_of_a_fixed_depth_are_the_same_alone_and_in_a_batch(compiled_folder, tmp_path, drafts):
    models = make_reproducible(compiled_models(compiled_folder, torch.bfloat16), "on", tmp_path)
    requests = [
        request(str(i), [(7 * i + 3 * j) % 31 + 2 for j in range(9)], seed=i, max_tokens=24, temperature=1.0)
        for i in range(12)
    ]

    def answers(given, batch_size):
        engine = compiled_engine(given, speculation=drafts, max_batch_size=batch_size)
        found = [result.output_token_ids for result in engine.generate(requests)]
        assert 0 < engine.counters().accepted_tokens < engine.counters().draft_tokens
        return found, engine.info.is_reproducible

    alone, is_promised = answers(models, 1)
    if models.draft.decoder.small_steps is not None:
        assert answers(models, 12)[0] != alone, "the control: a draft as it is loaded depends on company"
    assert not is_promised
    made = make_draft_reproducible(models, "on", tmp_path)
    alone, is_promised = answers(made, 1)
    assert is_promised
    assert answers(made, 12) == answers(made, 5) == (alone, True)


def test_an_int8_draft_gives_up_its_small_steps_only_when_asked(compiled_folder, tmp_path):
    models = make_reproducible(compiled_models(compiled_folder, torch.bfloat16), "on", tmp_path)
    if models.draft.decoder.small_steps is None:
        pytest.skip("the processor has no int8 instructions that they need")
    said = []
    kept = make_draft_reproducible(models, "auto", tmp_path, said.append)
    assert kept.draft.decoder.small_steps is not None
    assert not compiled_engine(kept, speculation=DRAFTS, max_batch_size=1).info.is_reproducible
    assert "--reproducible makes them independent" in said[0]
    made = make_draft_reproducible(models, "on", tmp_path)
    assert made.draft.decoder.small_steps is None
    assert compiled_engine(made, speculation=DRAFTS, max_batch_size=1).info.is_reproducible
