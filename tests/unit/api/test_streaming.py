"""What the pieces of a streamed answer say of it before the answer is stored."""

from __future__ import annotations

from typing import Any

import pytest

from helix_jobs.api.streaming import answering_model


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({}, "target"),
        ({"model": None}, "target"),
        ({"model": "gpt-4o"}, "target"),
        ({"model": "sql"}, "sql"),
        ({"model": "sql", "adapter": "fr"}, "fr"),
        ({"model": "fr", "adapter": "unknown"}, "target"),
        ({"model": ["sql"]}, "target"),
    ],
)
def test_the_pieces_name_the_adapter_as_the_stored_answer_does(body: dict[str, Any], model: str) -> None:
    assert answering_model(body, {"sql", "fr"}, "target") == model
