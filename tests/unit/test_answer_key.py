"""Equal requests share a key, others do not, and those whose answer nobody could repeat have none."""

from __future__ import annotations

from typing import Any

import pytest

from helix_jobs.answer_key import KEY_CHARS, answer_key

GREEDY: dict[str, Any] = {"prompt": "Why?", "sampling": {"max_tokens": 5}, "metadata": {}, "seed": 1}
SEEDED: dict[str, Any] = {**GREEDY, "sampling": {"temperature": 0.7, "seed": 1}}
SAMPLED: dict[str, Any] = {**GREEDY, "sampling": {"temperature": 0.7}}


def key(request: dict[str, Any], *, wanted: bool | None = None) -> str | None:
    return answer_key(request, wanted=wanted)


@pytest.mark.parametrize(
    "beside",
    [
        {"seed": 2},
        {"metadata": {"row": 7}},
        {"endpoint": "/v1/completions"},
        {"stream": "s-1"},
        {"sampling": {"seed": 9, "max_tokens": 5}},
    ],
)
def test_what_stands_beside_the_question_does_not_count(beside: dict[str, Any]) -> None:
    found = key(GREEDY)
    assert found is not None
    assert len(found) == KEY_CHARS
    assert key({**GREEDY, **beside}) == found


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "Why not?"},
        {"prompt_token_ids": [1]},
        {"sampling": {"max_tokens": 6}},
        {"sampling": {"max_tokens": 5, "n": 2}},
        {"sampling": {"max_tokens": 5, "stop": ["."]}},
        {"constraint": {"kind": "regex", "value": "a"}},
        {"accept": {"not_cut": True}},
        {"adapter": "law"},
        {"chat_template_kwargs": {"thinking": False}},
    ],
)
def test_whatever_the_answer_depends_on_counts(other: dict[str, Any]) -> None:
    assert key({**GREEDY, **other}) != key(GREEDY)


def test_the_order_counts_where_a_template_shows_it() -> None:
    def tool(*names: str) -> dict[str, Any]:
        properties = {name: {"type": "string"} for name in names}
        return {"type": "function", "function": {"name": "find", "parameters": {"properties": properties}}}

    assert key({**GREEDY, "tools": [tool("city", "day")]}) != key({**GREEDY, "tools": [tool("day", "city")]})
    assert key(dict(reversed(GREEDY.items()))) == key(GREEDY)
    two = {"max_tokens": 5, "n": 2}
    assert key({**GREEDY, "sampling": two}) == key({**GREEDY, "sampling": dict(reversed(two.items()))})


def test_a_sampled_line_has_a_key_only_with_a_seed_of_its_own() -> None:
    assert key(SAMPLED) is None
    assert key(SEEDED) is not None
    assert key({**SEEDED, "sampling": {"temperature": 0.7, "seed": 2}}) != key(SEEDED)


def test_a_person_says_otherwise() -> None:
    assert key(GREEDY, wanted=False) is None
    drawn = key(SAMPLED, wanted=True)
    assert drawn is not None
    assert drawn != key(SEEDED), "whoever names a seed wants what is drawn from it"
    assert key({**SAMPLED, "seed": 5}, wanted=True) == drawn
