"""A request for several choices: one prompt, n answers, each with random numbers of its own."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter

import pytest
import torch

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.sampling.random_numbers import choice_seed
from helix_jobs.engine.sampling.sampler import processed_probs
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InvalidRequestError, OutOfMemoryError
from tests.unit.engine.failing_steps import FailingStep
from tests.unit.engine.g_test import SIGNIFICANT, g_test
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import VOCAB_SIZE, reference_logits, request, tiny_engine, tiny_model

MODEL = tiny_model(seed=3)
PROMPT = [random.Random(7).randrange(1, VOCAB_SIZE) for _ in range(41)]
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 12, "ignore_eos": True}
LONG = {**SAMPLED, "max_tokens": 24}
SHORT = {**SAMPLED, "max_tokens": 3}


def outputs(result):
    return [choice.output_token_ids for choice in result.choices]


@functools.cache
def singles(n, seed=5, length=41, **engine):
    """The answers of n requests for one answer, each alone in an engine, with the seeds of n choices."""
    found = []
    for choice in range(n):
        one = request("one", PROMPT[:length], seed=choice_seed(seed, choice), **LONG)
        found.append(tiny_engine(MODEL, **engine).generate([one])[0].output_token_ids)
    return found


def count_target_tokens(engine):
    """Make an engine count the tokens that its target computes."""
    counted = Counter()
    score = opened(engine).target_pass.score

    def counting(turns, awaited):
        for turn in turns:
            counted["prompt"] += 0 if turn.is_decode else turn.num_known
        return score(turns, awaited)

    opened(engine).target_pass.score = counting
    return counted


@pytest.mark.thorough
@pytest.mark.parametrize(
    "engine",
    [
        {"draft": "none", "depth": 0},
        {"draft": "other", "depth": 4},
        {"draft": "same", "depth": 4},
        {"draft": "none", "drafters": ("lookup",), "depth": 4},
    ],
    ids=["no draft", "other draft", "same draft", "lookup"],
)
def test_each_choice_is_the_answer_to_a_single_request_with_its_random_numbers(engine):
    """Alone, in a crowd with fewer slots than choices, and in a pool too small for all of them."""
    expected = singles(6, **engine)
    assert len(set(expected)) == 6
    others = [request(f"other{i}", PROMPT[i : i + 9], seed=i, **SAMPLED) for i in range(5)]
    for settings in ({}, {"max_batch_size": 4}, {"num_blocks": 28, "max_batch_size": 6}):
        made = tiny_engine(MODEL, **engine, **settings)
        found = made.generate([*others[:2], request("many", PROMPT, seed=5, n=6, **LONG), *others[2:]])[2]
        assert outputs(found) == expected
        assert [choice.choice for choice in found.choices] == list(range(6))
        assert {choice.request_id for choice in found.choices} == {"many"}
        made.check_integrity()
        assert opened(made).is_empty
    assert made.counters().preemptions > 0


def test_the_first_choice_draws_the_numbers_of_a_request_for_one_answer():
    assert choice_seed(-3, 0) == -3
    assert [choice_seed(5, choice) for choice in (1, 2, 127)] == [
        16017809713528815384,
        4618501742958551549,
        2951467921805960418,
    ]
    assert len({choice_seed(seed, choice) for seed in range(40) for choice in range(128)}) == 40 * 128


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize(("length", "slots"), [(41, 32), (41, 3), (40, 32), (3, 32), (1, 5)])
def test_the_prompt_is_computed_once(length, slots):
    """Each further choice computes the last block's tokens alone: 1 to block_size of them."""
    engine = tiny_engine(MODEL, "none", max_batch_size=slots)
    counted = count_target_tokens(engine)
    (result,) = engine.generate([request("many", PROMPT[:length], n=128, **SHORT)])
    tail = length - (length - 1) // 4 * 4
    assert counted["prompt"] == length + 127 * tail
    assert result.prompt_tokens == length
    assert result.cached_prompt_tokens == 0
    assert engine.counters().prompt_tokens == length
    assert engine.counters().cached_prompt_tokens == 0
    assert engine.counters().completion_tokens == 128 * 3


def test_a_long_prompt_is_computed_once_in_pieces_and_beside_others():
    engine = tiny_engine(MODEL, "none", max_batch_size=80, token_budget=16)
    counted = count_target_tokens(engine)
    others = [request(f"other{i}", PROMPT[i % 30 : i % 30 + 2], seed=i, **SAMPLED) for i in range(70)]
    engine.generate([request("many", PROMPT, n=20, **SAMPLED), *others])
    assert counted["prompt"] == 41 + 19 + 2 * 70


def test_choices_that_were_overtaken_often_still_wait_for_their_prompt():
    engine = tiny_engine(MODEL, "none", max_batch_size=80)
    counted = count_target_tokens(engine)
    others = [request(f"other{i}", PROMPT[i % 30 : i % 30 + 3], **SAMPLED) for i in range(90)]
    engine.generate([request("many", PROMPT, n=20, **SAMPLED), *others])
    assert counted["prompt"] == 41 + 19 + 3 * len(others)


def test_a_later_request_shares_the_prompt_of_an_earlier_one():
    engine = tiny_engine(MODEL, "none")
    counted = count_target_tokens(engine)
    engine.generate([request("first", PROMPT, n=2, **SAMPLED)])
    (result,) = engine.generate([request("second", PROMPT, n=3, **SAMPLED)])
    assert counted["prompt"] == 41 + 1 + 3
    assert result.cached_prompt_tokens == engine.counters().cached_prompt_tokens == 40


@pytest.mark.thorough
def test_stop_strings_and_processors_are_each_choice_s_own():
    params = {**SAMPLED, "max_tokens": 30, "stop": ("e", "s,"), "repetition_penalty": 1.3, "presence_penalty": 0.5}
    engine = tiny_engine(MODEL, "other", max_batch_size=3)
    (result,) = engine.generate([request("many", PROMPT, seed=5, n=4, **params)])
    alone = [
        tiny_engine(MODEL, "other").generate([request("one", PROMPT, seed=choice_seed(5, i), **params)])[0]
        for i in range(4)
    ]
    assert [c.output_text for c in result.choices] == [one.output_text for one in alone]
    assert [c.finish_reason for c in result.choices] == [one.finish_reason for one in alone]
    assert len({c.completion_tokens for c in result.choices}) > 1
    assert not engine._stop_watches


def test_greedy_choices_are_all_the_same_answer():
    engine = tiny_engine(MODEL, "other")
    (result,) = engine.generate([request("many", PROMPT, n=3, max_tokens=9)])
    (alone,) = engine.generate([request("one", PROMPT, max_tokens=9)])
    assert outputs(result) == [alone.output_token_ids] * 3


def test_abort_ends_all_choices():
    engine = tiny_engine(MODEL, "none", max_batch_size=2)
    engine.add_request(request("many", PROMPT, n=4, **SAMPLED))
    for _ in range(15):  # the first two have ended, the others run
        assert not engine.step()
    assert engine.running() == ["many"]
    engine.abort("many")
    (result,) = engine.step()
    assert result.finish_reason is FinishReason.ABORTED
    assert result.error is None
    assert [len(o) for o in outputs(result)][:2] == [12, 12]
    assert {c.finish_reason for c in result.choices[2:]} == {FinishReason.ABORTED}
    assert not engine.has_unfinished()
    assert opened(engine).is_empty


def test_a_request_is_refused_while_one_of_its_choices_is_held():
    engine = tiny_engine(MODEL, "none")
    engine.add_request(request("many", PROMPT, n=2, **SAMPLED))
    for name in ("many", "many#1"):
        with pytest.raises(InvalidRequestError, match="already in the engine"):
            engine.add_request(request(name, PROMPT, **SAMPLED))
    engine.generate([])
    assert engine.generate([request("many", PROMPT, n=2, **SAMPLED)])[0].siblings


def test_a_choice_that_fails_ends_the_others_and_the_request():
    """The third choice breaks each step that it is in; a neighbour is spared."""
    engine = tiny_engine(MODEL, "none", max_batch_size=8)
    opened(engine).replace_step(FailingStep, lambda s: any(d.sequence.choice == 2 for d in s.decodes))
    neighbour = request("neighbour", PROMPT[:9], seed=5, **{**SAMPLED, "max_tokens": 30})
    result, beside = engine.generate([request("many", PROMPT, n=4, **SAMPLED), neighbour])
    assert isinstance(result.error, OutOfMemoryError)
    assert result.finish_reason is None
    assert len(result.choices) == 4
    assert beside.error is None
    assert beside.completion_tokens == 30
    engine.check_integrity()
    assert opened(engine).is_empty


def test_a_choice_that_is_not_finite_fails_the_request():
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    engine = tiny_engine(model, "none", eos=())
    prompt = [token for token in PROMPT if token != 30]
    (result,) = engine.generate([request("many", prompt, n=12, **{**SAMPLED, "max_tokens": 40, "temperature": 2.0})])
    assert "not finite" in str(result.error)
    assert sum(c.error is not None for c in result.siblings) <= 11
    assert opened(engine).is_empty


def test_a_prompt_that_fits_no_pool_fails_once():
    engine = tiny_engine(MODEL, "none", num_blocks=8)
    (result,) = engine.generate([request("many", PROMPT, n=3, **SAMPLED)])
    assert isinstance(result.error, OutOfMemoryError)
    assert len(result.choices) == 3


def test_choices_that_outgrow_the_pool_are_computed_one_by_one():
    """No room for two beside each other: each is preempted or waits, and the prompt's blocks stay."""
    engine = tiny_engine(MODEL, "none", num_blocks=18)
    (result,) = engine.generate([request("many", PROMPT, seed=5, n=6, **LONG)])
    assert outputs(result) == singles(6, draft="none", depth=0)


@pytest.mark.thorough
@pytest.mark.parametrize("draft", ["none", "other"])
def test_the_choices_have_the_target_s_distribution(draft):
    """The first two tokens of many choices; the wrong temperature must fail."""
    params = {"temperature": 0.8, "max_tokens": 2, "ignore_eos": True}
    engine = tiny_engine(MODEL, draft, max_batch_size=128)
    results = engine.generate([request(f"many{i}", PROMPT[:9], seed=i, n=128, **params) for i in range(12)])
    counts = torch.zeros(VOCAB_SIZE, VOCAB_SIZE)
    for first, second in itertools.chain.from_iterable(map(outputs, results)):
        counts[first, second] += 1
    right, wrong = joint_probs(0.8), joint_probs(1.2)
    assert g_test(counts.flatten(), right.flatten()) > SIGNIFICANT
    assert g_test(counts.flatten(), wrong.flatten()) < SIGNIFICANT


def joint_probs(temperature):
    """Of the first token and the second, ``[vocab_size, vocab_size]``, from transformers' logits."""
    params = SamplingParams(temperature=temperature)
    firsts = [[*PROMPT[:9], token] for token in range(VOCAB_SIZE)]
    (first,) = processed_probs(reference_logits(MODEL, PROMPT[:9])[-1:], [params])
    second = processed_probs(torch.stack([reference_logits(MODEL, ids)[-1] for ids in firsts]), [params] * VOCAB_SIZE)
    return first[:, None] * second
