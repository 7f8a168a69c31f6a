from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from helix_jobs.engine.sampling.logits_processors import processors_of, shape_logits
from helix_jobs.engine.sampling.random_numbers import Purpose, uniform
from helix_jobs.engine.sampling.sampler import processed_probs, sample
from helix_jobs.engine.sampling_params import InvalidSamplingParamsError, SamplingParams


def transformers_probs(logits, params):
    """The same chain from transformers' own processors, in its order."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    scores = TemperatureLogitsWarper(params.temperature)(ids, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return torch.softmax(scores, dim=-1)[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.sampled_from([5, 50, 3000]),
    spread=st.sampled_from([0.5, 3.0, 12.0]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_processing_equals_transformers(*, seed, vocab_size, spread, temperature, top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocab_size, generator=generator) * spread
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    plain = SamplingParams(temperature=1.0)
    probs = processed_probs(logits, [params, plain, params])
    for row, own in ((0, params), (1, plain), (2, params)):
        torch.testing.assert_close(probs[row], transformers_probs(logits[row], own), rtol=1e-4, atol=1e-6)


def test_top_p_over_a_flat_distribution_looks_past_its_candidates():
    probs = processed_probs(torch.zeros(1, 5000), [SamplingParams(temperature=1.0, top_p=0.9)])
    assert (probs > 0).all()
    logits = torch.linspace(0, 0.01, 5000)[None]
    kept = int((processed_probs(logits, [SamplingParams(temperature=1.0, top_p=0.9)]) > 0).sum())
    assert 4450 < kept < 4550


def test_a_tiny_temperature_does_not_overflow():
    probs = processed_probs(torch.tensor([[300.0, 299.0, -300.0]]), [SamplingParams(temperature=1e-4)])
    assert probs.tolist() == [[1.0, 0.0, 0.0]]


def test_a_neighbour_s_parameters_change_no_bit():
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(2)).repeat(3, 1)
    plain = SamplingParams(temperature=0.8)
    alone = processed_probs(logits[:1], [plain])
    odd = [SamplingParams(temperature=1.0, top_k=3, top_p=0.5, min_p=0.2), plain, SamplingParams(temperature=3.0)]
    assert torch.equal(processed_probs(logits, odd)[1], alone[0])


@pytest.fixture
def two_threads():
    """Of several threads torch sums a lone row in parts."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fields", [{}, {"top_k": 40_000}, {"top_p": 0.99}, {"min_p": 1e-6}])
def test_a_row_alone_equals_the_row_among_others(fields):
    logits = torch.randn(8, 49_152, generator=torch.Generator().manual_seed(1)) * 2
    params = SamplingParams(temperature=0.9, **fields)
    together = processed_probs(logits, [params] * 8)
    alone = torch.cat([processed_probs(row[None], [params]) for row in logits])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("fields", [{"temperature": 1e-50}, {"temperature": 9e-5}, {"repetition_penalty": 1e-40}])
def test_parameters_that_fp32_cannot_hold_are_refused(fields):
    with pytest.raises(InvalidSamplingParamsError, match="give"):
        SamplingParams(**fields)


@pytest.mark.parametrize("fields", [{"temperature": 1e-4}, {"temperature": 1.0, "repetition_penalty": 0.01}])
def test_the_most_extreme_parameters_still_sample(fields):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 30
    params = SamplingParams(**fields)
    shape_logits(logits, processors_of(params, [1, 2]), [3])
    probs = processed_probs(logits[None], [params])
    assert torch.isfinite(probs).all()
    assert 0 <= sample(probs, [0.999])[0] < 50


def test_sampling_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(5, 1)
    assert sample(probs, [0.0, 0.2499, 0.25, 0.9999, 1.0]) == [1, 1, 3, 3, 3]


def test_unnormalised_rows_sample_the_same():
    assert sample(torch.tensor([[0.0, 0.1, 0.3]]) * 7, [0.3]) == [2]
    assert sample(torch.tensor([[0.0, 0.1, 0.3]]) * 1e-9, [0.2]) == [1]


def test_uniform_numbers_are_reproducible_distinct_and_even():
    numbers = [uniform(s, p, purpose) for s in range(40) for p in range(20) for purpose in Purpose]
    assert len(set(numbers)) == len(numbers)
    assert all(0.0 <= n < 1.0 for n in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert uniform(5, 3, Purpose.ACCEPT) == uniform(5, 3, Purpose.ACCEPT)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_every_allowed_seed_draws(seed):
    assert 0.0 <= uniform(seed, 2**40, Purpose.FINAL) < 1.0
