"""Sampled outputs have the target's own distribution, and depend on nothing but the request."""

from __future__ import annotations

import bisect
import itertools
import random

import numpy as np
import pytest
import torch

from helix_jobs.engine.sampling import verification
from helix_jobs.engine.sampling.logits_processors import processors_of, shape_logits
from helix_jobs.engine.sampling.random_numbers import Purpose, uniform
from helix_jobs.engine.sampling.sampler import processed_probs
from helix_jobs.engine.sampling.verification import SampledRow, verify_sampled
from helix_jobs.engine.sampling_params import SamplingParams
from tests.unit.engine.g_test import SIGNIFICANT, g_test
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import request, tiny_engine, tiny_model

VOCAB = 9


def random_rows(count, seed, concentration=0.7):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([concentration] * VOCAB, size=count)).float()


def drafts(kind, target):
    """Draft distributions that always, sometimes or never agree with the target's rows."""
    if kind == "always":
        return target.clone()
    if kind == "sometimes":
        return random_rows(len(target), seed=5)
    never = torch.zeros_like(target)
    for row, probs in zip(never, target, strict=True):
        row[int(probs.argmin())] = 1.0
    return never


def emitted_tokens(target, draft, trials, *, one_hot=False):
    """First emitted tokens and, given the first, second emitted tokens of many verified steps of depth 2.

    Rows of ``target``: the distribution after the prompt, and after any first token (a Markov chain forgets the rest).
    """
    first, second = np.zeros(VOCAB), np.zeros(VOCAB)
    cumulative = torch.cumsum(draft[:2].double(), 1).tolist()
    certain = [int(row.argmax()) for row in draft[:2]]
    rows = [
        SampledRow(
            draft_ids=certain
            if one_hot
            else [bisect.bisect(row, uniform(seed, p, Purpose.DRAFT) * row[-1]) for p, row in enumerate(cumulative)],
            first_row=0,
            first_draft_row=None if one_hot else 0,
            accept_uniforms=[uniform(seed, p, Purpose.ACCEPT) for p in range(2)],
            final_uniforms=[uniform(seed, p, Purpose.FINAL) for p in range(3)],
        )
        for seed in range(trials)
    ]
    for verdict in verify_sampled(rows, target, None if one_hot else draft):
        first[verdict.token_ids[0]] += 1
        if len(verdict.token_ids) > 1:
            second[verdict.token_ids[1]] += 1
    return first, second


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("one_hot", [False, True], ids=["drawn", "one-hot"])
@pytest.mark.parametrize("kind", ["never", "sometimes", "always"])
def test_verified_tokens_follow_the_target(kind, one_hot):
    target = random_rows(3, seed=1)
    draft = drafts(kind, target)
    first, second = emitted_tokens(target, draft, 4000, one_hot=one_hot)
    assert g_test(first, target[0]) > SIGNIFICANT
    assert second.sum() > 100 or kind == "never"
    if second.sum() > 100:
        assert g_test(second, target[1]) > SIGNIFICANT


def test_the_g_test_sees_a_broken_verification(monkeypatch):
    """The control: accept every draft token, and the distribution is the draft's."""
    target = random_rows(3, seed=1)
    monkeypatch.setattr(verification, "_count_accepted", lambda row, *_: len(row.draft_ids))
    first, _ = emitted_tokens(target, drafts("sometimes", target), 4000)
    assert g_test(first, target[0]) < 1e-9


def test_the_g_test_sees_a_missing_residual(monkeypatch):
    target = random_rows(3, seed=1)
    monkeypatch.setattr(verification, "_residual", lambda probs, *_: probs)
    first, _ = emitted_tokens(target, drafts("sometimes", target), 4000)
    assert g_test(first, target[0]) < 1e-6


CASES = {
    "temperature": {"temperature": 1.3},
    "cold": {"temperature": 0.5},
    "top-k": {"temperature": 1.0, "top_k": 4},
    "top-p": {"temperature": 1.2, "top_p": 0.8},
    "all": {"temperature": 0.9, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
    "penalties": {"temperature": 1.0, "presence_penalty": 0.8, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
}


@pytest.fixture(scope="module")
def small_vocabulary():
    return tiny_model(seed=4, vocab_size=VOCAB)


# What shapes a distribution does not know who drafts: every case meets a draft that is right at times, and the cases
# that shape in every way meet the others as well.
@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("case", "draft"),
    [
        *((case, "other") for case in CASES),
        *itertools.product(["temperature", "all", "penalties"], ["same", "none"]),
    ],
)
def test_engine_s_samples_follow_the_target(small_vocabulary, case, draft):
    """Two tokens of 1,500 requests against the exact joint distribution of the target, enumerated token by token."""
    params = CASES[case]
    prompt = [1, 2, 3, 4]
    engine = tiny_engine(small_vocabulary, draft, eos=(), depth=2, max_batch_size=64, num_blocks=600)
    results = engine.generate(request(str(i), prompt, seed=i, max_tokens=3, **params) for i in range(1500))
    counts = np.zeros((VOCAB, VOCAB))
    for result in results:
        counts[result.output_token_ids[0], result.output_token_ids[1]] += 1
    joint = exact_joint(small_vocabulary, prompt, SamplingParams(**params))
    assert g_test(counts.reshape(-1), joint.reshape(-1)) > SIGNIFICANT
    third = np.zeros((VOCAB, VOCAB))
    for result in results:
        third[result.output_token_ids[0], result.output_token_ids[2]] += 1
    if case == "temperature":
        assert (
            g_test(third.reshape(-1), exact_third(small_vocabulary, prompt, SamplingParams(**params)).reshape(-1))
            > SIGNIFICANT
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("case", "draft"),
    [("temperature", "same"), ("temperature", "other"), ("penalties", "same"), ("penalties", "other"), ("all", "same")],
)
def test_samples_follow_the_target_where_drafts_stay_on_the_device(small_vocabulary, case, draft):
    """Sampled sequences draft with certainty there; what they emit has the target's distribution all the same."""
    params = CASES[case]
    prompt = [1, 2, 3, 4]
    engine = tiny_engine(small_vocabulary, draft, eos=(), depth=2, max_batch_size=64, num_blocks=600)
    opened(engine).make_waits_dear()
    results = engine.generate(request(str(i), prompt, seed=i, max_tokens=3, **params) for i in range(1500))
    assert 0 < engine.counters().accepted_tokens < engine.counters().draft_tokens
    counts = np.zeros((VOCAB, VOCAB))
    for result in results:
        counts[result.output_token_ids[0], result.output_token_ids[1]] += 1
    joint = exact_joint(small_vocabulary, prompt, SamplingParams(**params))
    assert g_test(counts.reshape(-1), joint.reshape(-1)) > SIGNIFICANT


def next_probs(model, prompts, num_prompt, params):
    """The target's own processed distribution after each prompt, by transformers' own forward and our formulas."""
    logits = model(torch.tensor(prompts)).logits[:, -1].float()
    for row, p in zip(logits, prompts, strict=True):
        shape_logits(row, processors_of(params, p[:num_prompt]), p[num_prompt:])
    return processed_probs(logits, [params] * len(prompts)).double().numpy()


def exact_joint(model, prompt, params):
    first = next_probs(model, [prompt], len(prompt), params)[0]
    second = next_probs(model, [[*prompt, t] for t in range(VOCAB)], len(prompt), params)
    return first[:, None] * second


def exact_third(model, prompt, params):
    joint = exact_joint(model, prompt, params)
    pairs = list(itertools.product(range(VOCAB), repeat=2))
    third = next_probs(model, [[*prompt, a, b] for a, b in pairs], len(prompt), params)
    return np.einsum("ab,abc->ac", joint, third.reshape(VOCAB, VOCAB, VOCAB))


@pytest.mark.thorough
@pytest.mark.parametrize("draft", ["none", "same", "other", "int8"])
def test_a_job_s_output_does_not_depend_on_its_batch(draft):
    model = tiny_model(seed=3)
    rng = random.Random(2)
    chosen = {"logit_bias": ((3, 2.0), (8, -1.5)), "min_tokens": 6, "allowed_token_ids": (0, *range(2, 30))}
    kinds = [*CASES.values(), {}, {"repetition_penalty": 1.5}, {"presence_penalty": 1.0}]
    kinds += [chosen, {**chosen, "temperature": 1.1}]
    requests = [
        request(
            str(i),
            [rng.randrange(1, 30) for _ in range(rng.randrange(1, 40))],
            seed=1000 + i,
            max_tokens=8 + i % 5,
            **kinds[i % len(kinds)],
        )
        for i in range(2 * len(kinds))
    ]
    together = tiny_engine(model, draft, max_batch_size=32).generate(requests)
    squeezed = tiny_engine(model, draft, max_batch_size=7, num_blocks=40, token_budget=19).generate(requests)
    alone = tiny_engine(model, draft, max_batch_size=1)
    for one, result, other in zip(requests, together, squeezed, strict=True):
        assert alone.generate([one])[0].output_token_ids == result.output_token_ids == other.output_token_ids


def test_seeds_matter():
    engine = tiny_engine()
    outputs = engine.generate(request(str(i), [3, 4, 5], seed=i, max_tokens=8, temperature=1.0) for i in range(20))
    assert len({r.output_token_ids for r in outputs}) > 10
