"""Prompt tokens of a request, from its size."""

from __future__ import annotations

import pytest

from helix_jobs.forecast.prompt_model import PromptModel


def test_requests_have_their_texts_tokens_and_those_beside_them() -> None:
    seen = [(100 + 4 * tokens, 30 + tokens) for tokens in range(20, 400, 7)]
    model = PromptModel(seen)
    for tokens in (0, 50, 390, 1000):
        assert model.computed(100 + 4 * tokens) == pytest.approx(30 + tokens, abs=1)


def test_requests_of_one_size_say_what_a_character_has() -> None:
    model = PromptModel([(200, 40)] * 5)
    assert [model.computed(size) for size in (200, 100, 2000)] == [40, 20, 400]


def test_alike_requests_say_little_of_much_longer_ones() -> None:
    model = PromptModel([(200 + place % 3, 40 + place * 7 % 41) for place in range(30)])
    assert 300 < model.computed(2000) < 900  # some 30 tokens of a character more, if they were believed
    assert PromptModel([(200, 60), (201, 20)]).computed(2000) == pytest.approx(400, abs=2)


def test_much_that_every_request_has_beside_its_text_is_no_part_of_the_slope() -> None:
    """A system prompt that the cache shares, or a schema: characters without a token that is computed."""
    model = PromptModel([(5_000 + 4 * tokens, tokens) for tokens in range(40, 220, 3)])
    assert model.computed(5_000 + 4 * 1_010) == pytest.approx(1_010, rel=0.02)
    many = PromptModel([(100 + 4 * tokens, 1_500 + tokens) for tokens in range(40, 220, 3)])
    assert many.computed(100 + 4 * 1_000) == pytest.approx(2_500, rel=0.02)


def test_what_is_not_known_costs_nothing() -> None:
    assert PromptModel([]).computed(1000) == 0
    assert PromptModel([(0, 0)] * 3).computed(1000) == 0
    assert PromptModel([(100, 10), (500, 300), (900, 590)]).computed(1) == 0
    assert PromptModel([(100, 300), (500, 10), (900, 20)]).computed(100_000) >= 0
