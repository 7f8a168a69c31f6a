"""Answers of several prompts as one."""

from __future__ import annotations

from typing import Any

from helix_jobs.api.prompts import one_answer


def body(number: int, **details: Any) -> dict[str, Any]:
    counts: dict[str, Any] = {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1}
    usage = {**counts, "prompt_tokens_details": {"cached_tokens": number}, **details}
    return {"id": f"cmpl-{number}", "choices": [{"index": 0, "text": str(number)}], "usage": usage}


def test_the_counts_of_each_prompt_are_added_up_with_their_details() -> None:
    thought: dict[str, Any] = {"completion_tokens_details": {"reasoning_tokens": 2}}
    found = one_answer([body(1), body(2, **thought), body(3, **thought)])
    assert [(choice["index"], choice["text"]) for choice in found["choices"]] == [(0, "1"), (1, "2"), (2, "3")]
    assert found["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 3,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
