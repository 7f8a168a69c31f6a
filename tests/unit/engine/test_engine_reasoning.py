"""A thinking budget closes the thinking exactly where a person's own count would, whatever drafts and batches do."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from transformers import LogitsProcessorList

from helix_jobs.engine.reasoning import place_of
from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.sampling.reasoning_budget import ReasoningBudget
from tests.crossed import crossed
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.reasoning_models import FIRST, SECOND, THIRD, BudgetByHand, many_tokens, one_token
from tests.unit.engine.tiny_models import reference_greedy, request, tiny_engine, tiny_model

MAX_TOKENS = 16
FORMS = {
    "one token": (one_token, (FIRST,), (FIRST,)),
    "many tokens": (many_tokens, (FIRST, SECOND, THIRD), (SECOND, THIRD)),
}


def thinking(name, prompt, budget, form, **params):
    plain = request(name, prompt, max_tokens=MAX_TOKENS, **params)
    return dataclasses.replace(plain, is_chat=True, reasoning=form, max_reasoning_tokens=budget)


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3)


def prompts():
    return [list(range(2, 2 + length)) for length in (3, 12, 18, 25)]


@functools.cache
def counted_by_hand(model, kind, budget):
    """What transformers answers the prompts under a budget; the drafts share it."""
    _, closing, end = FORMS[kind]
    answers = []
    for prompt in prompts():
        by_hand = BudgetByHand(len(prompt), budget, closing, end, starts_open=True)
        answers.append(reference_greedy(model, prompt, MAX_TOKENS, logits_processor=LogitsProcessorList([by_hand])))
    return answers


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("budget", "draft"), crossed([0, 1, 5, 100], [("none",), ("same",), ("int8",), ("other",)], 2))
def test_a_greedy_budget_equals_transformers_with_a_processor_of_its_own(model, kind, draft, budget):
    make, closing, _ = FORMS[kind]
    answers = counted_by_hand(model, kind, budget)
    engine = tiny_engine(model, draft, max_batch_size=3)
    asked = [thinking(str(i), p, budget, make(starts_open=True)) for i, p in enumerate(prompts())]
    assert [result.output_token_ids for result in engine.generate(asked)] == answers
    if budget < 100:
        assert all(answer[budget : budget + len(closing)] == closing for answer in answers if len(answer) > budget)


@pytest.mark.parametrize(("num_blocks", "token_budget"), [(14, 1024), (400, 7)])
def test_a_preempted_thinking_is_closed_at_the_same_place(model, num_blocks, token_budget):
    form = many_tokens(starts_open=True)
    asked = [thinking(str(i), p, 6, form) for i, p in enumerate(prompts())]
    alone = [tiny_engine(model, "none").generate([one])[0].output_token_ids for one in asked]
    engine = tiny_engine(model, "other", num_blocks=num_blocks, token_budget=token_budget, max_batch_size=5)
    assert [result.output_token_ids for result in engine.generate(asked)] == alone
    if num_blocks < 100:
        assert engine.counters().preemptions > 0


@pytest.mark.parametrize("is_spelt", [False, True], ids=["tokens", "text"])
@pytest.mark.parametrize("max_tokens", [4, 5, 6])
def test_a_closing_that_max_tokens_cuts_is_no_part_of_the_thinking(model, max_tokens, is_spelt):
    budget, form = 4, dataclasses.replace(many_tokens(starts_open=True), is_spelt=is_spelt)
    asked = thinking("a", prompts()[1], budget, form)
    cut = dataclasses.replace(asked, sampling_params=dataclasses.replace(asked.sampling_params, max_tokens=max_tokens))
    engine = tiny_engine(model, "none")
    (whole,), (result,) = engine.generate([asked]), engine.generate([cut])
    assert whole.output_token_ids[:max_tokens] == result.output_token_ids
    assert result.output_token_ids[budget:] == form.closings[0][: max_tokens - budget]
    assert (result.reasoning_tokens, result.output_text) == (budget, "")
    assert result.reasoning_text == opened(engine).codec.decode(result.output_token_ids[:budget])


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("draft", ["none", "same", "other"])
def test_a_sampled_thinking_keeps_its_budget(model, draft):
    form = many_tokens(starts_open=True)
    engine = tiny_engine(model, draft, max_batch_size=8)
    asked = [thinking(str(s), prompts()[2], 4, form, seed=s, temperature=1.5) for s in range(40)]
    asked = [dataclasses.replace(one, seed=number) for number, one in enumerate(asked)]
    lengths = set()
    for result in engine.generate(asked):
        place = place_of(result.output_token_ids, form)
        thought = place.stop - place.start
        assert thought <= 4
        if thought == 4 and place.answer:
            assert result.output_token_ids[4:7] == form.closings[0]
        lengths.add(len(result.output_token_ids))
    assert len(lengths) > 1, "some answers end by themselves"


@pytest.mark.parametrize("draft", ["none", "same"])
def test_lookup_drafts_are_verified_under_the_budget(model, draft):
    prompt = [4, 6, 8, 10] * 6
    by_hand = BudgetByHand(len(prompt), 3, (FIRST,), (FIRST,), starts_open=True)
    expected = reference_greedy(model, prompt, MAX_TOKENS, logits_processor=LogitsProcessorList([by_hand]))
    engine = tiny_engine(model, draft, drafters=("lookup",), depth=5)
    (result,) = engine.generate([thinking("a", prompt, 3, one_token(starts_open=True))])
    assert result.output_token_ids == expected


def test_a_model_that_opens_no_thinking_is_left_alone(model):
    prompt = prompts()[1]
    plain = reference_greedy(model, prompt, MAX_TOKENS)
    (result,) = tiny_engine(model).generate([thinking("a", prompt, 0, one_token())])
    assert result.output_token_ids == plain
    assert (result.reasoning_text, result.reasoning_tokens) == (None, 0)


def test_stop_strings_end_the_answer_and_not_the_thinking(model):
    prompt, form = prompts()[2], one_token(starts_open=True)
    (free,) = tiny_engine(model).generate([thinking("a", prompt, 6, form)])
    ids = free.output_token_ids
    assert ids[6] == FIRST, "the budget is spent"
    assert FinishReason.LENGTH is free.finish_reason
    text, thought = free.output_text, free.reasoning_text
    assert thought is not None
    assert free.reasoning_tokens == 6
    stop = text[3:5]
    assert stop not in text[:3]
    (stopped,) = tiny_engine(model).generate([thinking("a", prompt, 6, form, stop=(stop, thought))])
    assert (stopped.output_text, stopped.reasoning_text) == (text[:3], thought)
    assert stopped.finish_reason is FinishReason.STOP
    # Without the thinking apart the same stop string ends the output at once.
    plain = dataclasses.replace(thinking("a", prompt, 6, None, stop=(thought[:2],)), max_reasoning_tokens=None)
    (cut,) = tiny_engine(model).generate([plain])
    assert len(cut.output_token_ids) <= 3


def test_a_budget_never_keeps_the_argmax():
    assert not ReasoningBudget(3, one_token()).keeps_argmax
