"""Adapters from a line to its result: through client, database, broker and a worker's process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helix_jobs.results.openai import openai_line

if TYPE_CHECKING:
    from tests.worker_box import Box


@pytest.mark.thorough(fast=1)
def test_lines_are_answered_by_their_adapter_and_an_unknown_one_fails_its_line_alone(box: Box) -> None:
    lines = [
        {"prompt": "one two", "adapter": "sql"},
        {"prompt": "one two", "model": "fr"},
        {"prompt": "one two", "model": "any"},
        {"prompt": "one two", "adapter": "sgl"},
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "one two", "model": "sql"}},
    ]
    with box.client() as client:
        batch = client.submit(lines).batch_id
    box.start_worker("--adapter", "sql=/adapters/sql", "--adapter", "fr=/adapters/fr")
    box.wait_states(batch, succeeded=4, failed=1)
    with box.client() as client:
        found = {result.line: result for result in client.results(batch, include_failed=True)}
    answered = [found[line].target_model for line in (1, 2, 3, 5)]
    assert answered == ["sql", "fr", "fake-target", "sql"]
    assert found[4].error_code == "invalid_request"
    assert found[4].error_message == "adapter: 'sgl' is not loaded; give one of fr, sql, or remove the field"
    assert openai_line([found[5]])["response"]["body"]["model"] == "sql"
