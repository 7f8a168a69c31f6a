"""Logits processors: the penalties, and the seam that they stand behind."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from helix_jobs.engine import new_sequences
from helix_jobs.engine.sampling.logits_processors import (
    PresenceFrequencyPenalty,
    RepetitionPenalty,
    processors_of,
    shape_logits,
)
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    greedy_beside_each,
    reference_greedy,
    request,
    tiny_engine,
    tiny_model,
)


def shaped(logits, processors, output):
    row = logits.clone()
    shape_logits(row, processors, output)
    return row


def test_repetition_penalty_equals_transformers():
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1))
    prompt, output = [1, 2, 2, 7], [7, 9]
    expected = RepetitionPenaltyLogitsProcessor(1.6)(torch.tensor([prompt + output]), logits.clone()[None])[0]
    processors = processors_of(SamplingParams(repetition_penalty=1.6), prompt)
    assert torch.equal(shaped(logits, processors, output), expected)


def test_presence_and_frequency_count_the_output_alone():
    processors = processors_of(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), [0, 1])
    assert shaped(torch.zeros(6), processors, [1, 1, 3]).tolist() == [0.0, -1.0, 0.0, -0.75, 0.0, 0.0]
    assert shaped(torch.zeros(3), processors, []).tolist() == [0.0, 0.0, 0.0]


def test_a_request_has_the_processors_that_it_asks_for_in_transformers_order():
    def kinds(**fields):
        return [type(one) for one in processors_of(SamplingParams(**fields), [1])]

    assert kinds() == kinds(temperature=0.5, top_k=3, top_p=0.4) == []
    assert kinds(presence_penalty=0.1) == kinds(frequency_penalty=-0.1) == [PresenceFrequencyPenalty]
    assert kinds(frequency_penalty=0.1, repetition_penalty=1.1) == [RepetitionPenalty, PresenceFrequencyPenalty]


def test_what_was_shaped_before_leaves_nothing_behind():
    """A draft that is rejected, a sequence that is preempted: the next call is told what stands, and that decides."""
    processors = processors_of(SamplingParams(repetition_penalty=1.3, frequency_penalty=0.2), [4, 5])
    logits = torch.randn(30, generator=torch.Generator().manual_seed(2))
    first = shaped(logits, processors, [6, 7])
    shaped(logits, processors, [6, 7, 8, 9, 9])
    assert torch.equal(shaped(logits, processors, [6, 7]), first)


# A third processor, behind the same seam


class AtLeast:
    """No end before so many tokens (``min_tokens`` elsewhere)."""

    keeps_argmax = False

    def __init__(self, num_tokens, end):
        self.num_tokens, self.end = num_tokens, end

    def shape(self, logits, output_ids):
        if len(output_ids) < self.num_tokens:
            logits[self.end] = float("-inf")


class Sharper:
    """Changes every logit and never their order."""

    keeps_argmax = True

    def shape(self, logits, output_ids):
        logits *= 1.0 + len(output_ids)


def prompts(count=6, seed=4):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randrange(2, 20))] for _ in range(count)]


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("draft", ["none", "same", "other"])
def test_a_third_processor_shapes_target_and_draft(monkeypatch, draft):
    """The tokens are those of transformers' own ``min_new_tokens``, whatever is drafted and rejected on the way."""
    model, texts = tiny_model(seed=3), prompts()
    ends = [reference_greedy(model, p, 3)[2] for p in texts]  # what each answer would have ended with
    at_least = lambda params, *_, **__: (AtLeast(9, params.stop_token_ids[0]),)  # noqa: E731
    monkeypatch.setattr(new_sequences, "processors_of", at_least)
    engine = tiny_engine(model, draft, drafters=["lookup"], eos=())
    results = engine.generate(
        request(str(i), p, max_tokens=14, stop_token_ids=(end,))
        for i, (p, end) in enumerate(zip(texts, ends, strict=True))
    )
    for result, text, end in zip(results, texts, ends, strict=True):
        expected = reference_greedy(model, text, 14, min_new_tokens=9, eos_token_id=end)
        assert result.output_token_ids == tuple(token for token in expected if token != end)
        assert result.completion_tokens >= 9
    assert draft != "same" or engine.counters().accepted_tokens > 0


def test_what_keeps_the_argmax_leaves_greedy_requests_to_the_device(monkeypatch):
    model, texts = tiny_model(seed=3), prompts()
    monkeypatch.setattr(new_sequences, "processors_of", lambda *_, **__: (Sharper(),))
    monkeypatch.setattr(SpeculativeStep, "_verify_on_host", lambda *_: pytest.fail("logits came down"))
    results = tiny_engine(model, "other").generate(request(str(i), p, max_tokens=12) for i, p in enumerate(texts))
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, texts, outputs, 12)
