"""Sampled outputs held to a grammar have the masked distribution, whatever is drafted."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import pytest
import torch

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.sampling import verification
from tests.unit.engine.g_test import SIGNIFICANT, g_test
from tests.unit.engine.grammar_models import (
    GrammarLogits,
    constrained,
    grammar_engine,
    json_model,
    json_tokenizer,
)
from tests.unit.engine.tiny_models import EOS

WORDS = Constraint("choice", '["a", "b", "ab", "ba", "ca", "cb", "cc"]')


@lru_cache(maxsize=1)
def word_probs():
    """The exact distribution of the words: the masked distribution of each position, multiplied."""
    prompt = json_tokenizer().encode("Ann is 12")
    grammar = GrammarLogits(WORDS, len(prompt))
    probs = {}
    waiting = [((), 1.0)]
    while waiting:
        ids, mass = waiting.pop()
        with torch.no_grad():
            logits = json_model()(torch.tensor([[*prompt, *ids]])).logits[0, -1]
        row = torch.softmax((logits / 3.0).masked_fill(~grammar.mask(ids), float("-inf")), 0)
        for token in row.nonzero()[:, 0].tolist():
            if token == EOS:
                word = json_tokenizer().decode(ids)
                probs[word] = probs.get(word, 0.0) + mass * float(row[token])
            else:
                waiting.append(((*ids, token), mass * float(row[token])))
    assert abs(sum(probs.values()) - 1) < 1e-5
    return probs


def word_counts(draft, trials=1500):
    engine = grammar_engine(draft, depth=2, max_batch_size=64)
    results = engine.generate(constrained(str(i), WORDS, seed=i, temperature=3.0) for i in range(trials))
    assert all(result.is_valid for result in results)
    return Counter(result.output_text for result in results)


@pytest.mark.thorough
@pytest.mark.parametrize("draft", ["none", "same", "other"])
def test_sampled_outputs_have_the_masked_distribution(draft):
    counts, probs = word_counts(draft), word_probs()
    assert g_test([counts[word] for word in probs], list(probs.values())) > SIGNIFICANT


@pytest.mark.thorough
def test_the_test_of_the_distribution_sees_a_wrong_residual(monkeypatch):
    monkeypatch.setattr(verification, "_residual", lambda target, *_: target)
    counts, probs = word_counts("other"), word_probs()
    assert g_test([counts[word] for word in probs], list(probs.values())) < SIGNIFICANT
