"""logit_bias, min_tokens, bad_words and allowed_token_ids: greedy outputs equal transformers' own processors token for
token, sampled ones have the processed distribution, whatever is drafted, whatever else runs, and after preemption."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from helix_jobs.engine.request import FinishReason
from tests.unit.engine.g_test import SIGNIFICANT, g_test
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import EOS, VOCAB_SIZE, reference_greedy, request, tiny_engine, tiny_model

MODEL_SEED = 3
NUM_TOKENS = 18
SETUPS = {
    "no drafts": {"draft": "none", "depth": 0},
    "no drafts alone": {"draft": "none", "depth": 0, "max_batch_size": 1},
    "a draft that agrees": {"draft": "same", "depth": 4},
    "a draft that disagrees": {"draft": "other", "depth": 4},
    "lookup and a model": {"draft": "int8", "depth": 4, "drafters": ["lookup"]},
    "adaptive": {"draft": "int8", "adaptive": True, "drafters": ["lookup"]},
    "preempted": {"draft": "same", "depth": 4, "num_blocks": 21},
    "drafts that stay on the device": {"draft": "other", "depth": 4},
}


def prompts(count=6, seed=8):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(3, 14))] for _ in range(count)]


@dataclass(frozen=True)
class Case:
    """What is asked of one prompt."""

    prompt: list
    words: tuple
    biases: dict
    stop: int
    allowed: list

    def kwargs(self, *fields):
        """Fields as transformers' generate takes them."""
        found = {
            "logit_bias": {"sequence_bias": {(token,): bias for token, bias in self.biases.items()}},
            "min_tokens": {"min_new_tokens": 7},
            "bad_words": {"bad_words_ids": [list(word) for word in self.words]},
            "allowed_token_ids": {"prefix_allowed_tokens_fn": lambda *_: self.allowed},
            "repetition_penalty": {"repetition_penalty": 1.3},
        }
        return {name: value for field in fields for name, value in found[field].items()}

    def expected(self, model, *fields):
        """transformers' answer, its end token cut off."""
        kwargs = self.kwargs(*fields)
        out = reference_greedy(model, self.prompt, NUM_TOKENS, eos_token_id=[EOS, self.stop], **kwargs)
        return out[: out.index(self.stop)] if self.stop in out else out

    def request(self, name, *fields):
        found = {
            "logit_bias": tuple(self.biases.items()),
            "min_tokens": 7,
            "allowed_token_ids": self.allowed,
            "repetition_penalty": 1.3,
        }
        params = {field: found[field] for field in fields if field in found}
        made = request(name, self.prompt, max_tokens=NUM_TOKENS, stop_token_ids=(self.stop,), **params)
        return replace(made, bad_words=self.words if "bad_words" in fields else ())


FIELDS = ("logit_bias", "min_tokens", "bad_words", "allowed_token_ids")
ALL = (*FIELDS, "repetition_penalty")


def plan(model):
    """For each prompt what is asked of it, made from what the model would say: every field bites."""
    cases = []
    for index, prompt in enumerate(prompts()):
        free = reference_greedy(model, prompt, NUM_TOKENS, eos_token_id=None)
        words = (free[2:3], free[4:7], (*prompt[-2:], free[0]))  # alone, within the output, and begun in the prompt
        biases = {free[1]: -4.0, (free[3] + 1) % VOCAB_SIZE: 3.5, free[5]: 0.25, 7: -100.0}
        allowed = sorted({*range(index, VOCAB_SIZE, 2), *free[:2], EOS, free[3]})
        cases.append(Case(prompt, words, biases, stop=free[3], allowed=allowed))
    return cases


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=MODEL_SEED)


@pytest.fixture(scope="module")
def planned(model):
    cases = plan(model)
    answers = [case.expected(model, *ALL) for case in cases]
    assert any(len(answer) < NUM_TOKENS for answer in answers), "some end, and not before they may"
    assert all(len(answer) >= 7 for answer in answers)
    return cases, answers


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("setup", SETUPS)
def test_greedy_equals_transformers_with_all_fields_together(model, planned, setup):
    cases, answers = planned
    engine = tiny_engine(model, **SETUPS[setup])
    if setup == "drafts that stay on the device":
        opened(engine).make_waits_dear()
    results = engine.generate(case.request(str(index), *ALL) for index, case in enumerate(cases))
    assert [result.output_token_ids for result in results] == answers
    ends = [FinishReason.LENGTH if len(answer) == NUM_TOKENS else FinishReason.STOP for answer in answers]
    assert [result.finish_reason for result in results] == ends
    engine.check_integrity()
    assert setup != "preempted" or engine.counters().preemptions > 0
    # A draft that agrees is shaped like the target, so that nothing of it is refused.
    assert setup != "a draft that agrees" or 0 < engine.counters().accepted_tokens == engine.counters().draft_tokens


@pytest.fixture(scope="module")
def expected_with(model, planned):
    """What transformers answers to the cases with some of the fields; asked once for all drafts."""
    cases, _ = planned
    return functools.cache(lambda *fields: [case.expected(model, *fields) for case in cases])


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("draft", ["none", "other"])
@pytest.mark.parametrize("field", FIELDS)
def test_greedy_equals_transformers_with_each_field(model, planned, expected_with, field, draft):
    cases, _ = planned
    engine = tiny_engine(model, draft, depth=0 if draft == "none" else 4)
    results = engine.generate(case.request(str(index), field) for index, case in enumerate(cases))
    assert [result.output_token_ids for result in results] == expected_with(field)
    assert expected_with(field) != expected_with(), "the field changes something"


@pytest.mark.thorough
def test_a_bad_word_is_not_written_by_any_part_of_a_draft(model):
    """The draft is the target itself, so that it proposes each word with the tokens before it."""
    prompt = prompts()[0]
    free = reference_greedy(model, prompt, 24, eos_token_id=None)
    engine = tiny_engine(model, "same", depth=4, eos=())
    for start in range(12):
        word = free[start : start + 3]
        made = replace(request(f"a{start}", prompt, max_tokens=24), bad_words=(word,))
        (result,) = engine.generate([made])
        out = reference_greedy(model, prompt, 24, bad_words_ids=[list(word)], eos_token_id=None)
        assert result.output_token_ids in (out, (*out, EOS))  # the reference cuts a last EOS
        assert result.output_token_ids[: start + 2] == free[: start + 2]
        assert all(out[place : place + 3] != word for place in range(len(out)))
    assert engine.counters().accepted_tokens > 0


def test_the_context_ends_an_output_before_its_least_number_of_tokens(model):
    engine = tiny_engine(model, "same", max_model_len=24)
    (result,) = engine.generate([request("a", range(1, 21), max_tokens=100, min_tokens=90)])
    assert (result.completion_tokens, result.finish_reason) == (4, FinishReason.LENGTH)


def test_ends_that_are_no_token_of_the_model_are_no_trouble(model):
    (result,) = tiny_engine(model, eos=(EOS, 10**6)).generate(
        [request("a", [3, 4, 5], max_tokens=8, min_tokens=8, stop_token_ids=(10**30,))]
    )
    assert result.completion_tokens == 8


# Where nothing is left


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("setup", ["no drafts", "a draft that agrees", "a draft that disagrees", "lookup and a model"])
def test_a_request_that_leaves_no_token_fails_alone(model, setup, temperature, caplog):
    """Only one token is allowed, and a word of five of it is bad: four come out, and no fifth."""
    engine = tiny_engine(model, **SETUPS[setup])
    stuck = request("stuck", [5, 6, 7], max_tokens=40, temperature=temperature, allowed_token_ids=[9])
    stuck = replace(stuck, bad_words=((9,) * 5,))
    others = [request(str(i), p, seed=i, max_tokens=20, temperature=temperature) for i, p in enumerate(prompts(3))]
    (failed, *fine) = engine.generate([stuck, *others])
    assert str(failed.error).startswith(
        "no token can follow the answer's first 4 tokens: allowed_token_ids and bad_words"
    )
    assert failed.error.code == "invalid_request"
    assert failed.finish_reason is None
    assert failed.output_token_ids == (9,) * 4
    assert "not finite" not in caplog.text
    alone = tiny_engine(model, **SETUPS[setup])
    assert [one.output_token_ids for one in fine] == [alone.generate([one])[0].output_token_ids for one in others]
    engine.check_integrity()


def test_a_request_of_which_no_answer_can_begin_is_told_so(model):
    """Only the end is allowed, and not yet."""
    made = request("a", [5, 6, 7], max_tokens=9, allowed_token_ids=[EOS], min_tokens=2)
    (result,) = tiny_engine(model, "same", depth=4).generate([made])
    assert str(result.error).startswith("no token can begin the answer: allowed_token_ids and min_tokens")


def test_an_output_that_ends_before_the_dead_end_succeeds(model):
    """The stop token is the last that may be chosen; the positions drafted behind it do not matter."""
    engine = tiny_engine(model, "same", depth=4, eos=())
    made = request("a", [5, 6, 7], max_tokens=40, allowed_token_ids=[9, 11], stop_token_ids=[11], min_tokens=4)
    (result,) = engine.generate([replace(made, bad_words=((9,) * 5, (11, 9), (11, 11)))])
    assert result.error is None
    assert (result.output_token_ids, result.finish_reason) == ((9,) * 4, FinishReason.STOP)


# Sampled


SMALL = 9


def processed(model, ids, num_prompt, params, words):
    """The distribution of the next token by transformers' own processors in transformers' order, ``[SMALL]``."""
    scores = model(torch.tensor([ids])).logits[:, -1].float()
    chain = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token,): bias for token, bias in params["logit_bias"]}),
            RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]),
            NoBadWordsLogitsProcessor([list(word) for word in words]),
            MinNewTokensLengthLogitsProcessor(num_prompt, params["min_tokens"], list(params["stop_token_ids"])),
            PrefixConstrainedLogitsProcessor(lambda _, __: list(params["allowed_token_ids"]), 1),
        ]
    )
    scores = chain(torch.tensor([ids]), scores)
    return torch.softmax(scores[0] / params["temperature"], dim=0).double().numpy()


def counted(model, draft, params, words, prompt, *, count=1000):
    engine = tiny_engine(model, draft, eos=(), depth=2, max_batch_size=64, num_blocks=700)
    made = [replace(request(str(i), prompt, seed=i, **params), bad_words=words) for i in range(count)]
    pairs = np.zeros((SMALL, SMALL))
    for result in engine.generate(made):
        pairs[result.output_token_ids[0], result.output_token_ids[1]] += 1
    return pairs.reshape(-1)


@pytest.mark.thorough
@pytest.mark.parametrize("draft", ["none", "other"])
def test_samples_have_the_processed_distribution(draft):
    model = tiny_model(seed=4, vocab_size=SMALL)
    prompt, words = [1, 2, 3, 4], ((4, 7), (3, 5), (2, 6), (6, 6))
    params = {
        "temperature": 1.2,
        "max_tokens": 4,
        "min_tokens": 2,
        "stop_token_ids": (1,),
        "logit_bias": ((2, 1.5), (3, -1.0), (8, 0.5)),
        "allowed_token_ids": (1, 2, 3, 5, 6, 7, 8),
        "repetition_penalty": 1.2,
    }
    first = processed(model, prompt, 4, params, words)
    joint = np.stack([first[t] * processed(model, [*prompt, t], 4, params, words) for t in range(SMALL)]).reshape(-1)
    assert g_test(counted(model, draft, params, words, prompt), joint) > SIGNIFICANT
    if draft == "none":
        return
    # The control: with another bias the distribution is another, and the test sees it.
    other = {**params, "logit_bias": ((2, 0.5), (3, -1.0), (8, 0.5))}
    assert g_test(counted(model, draft, other, words, prompt), joint) < 1e-6
