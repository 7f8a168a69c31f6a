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


@pytest.mark.parametrize("tokens", [(60, 20), (20, 60)])
def test_alike_requests_say_little_of_much_longer_ones(tokens: tuple[int, int]) -> None:
    model = PromptModel([(200, tokens[0]), (201, tokens[1])])
    assert 200 < model.computed(2000) < 700


def test_what_is_not_known_costs_nothing() -> None:
    assert PromptModel([]).computed(1000) == 0
    assert PromptModel([(0, 0)]).computed(1000) == 0
    assert PromptModel([(100, 10), (500, 300)]).computed(1) == 0
