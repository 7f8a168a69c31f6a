"""What holds of every file of requests, however it was made: each line is accepted or rejected, and nothing crashes."""

from __future__ import annotations

import io
import json
from typing import Any

from helix_jobs.errors import BadLine
from helix_jobs.intake.stored_lines import line_of
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read, read_one

# What a line in Helix' own form does not say: the endpoint follows from it, and a seed may come from batch and line.
_UNSAID = ("endpoint", "seed")


def check_line(request: dict[str, Any]) -> None:
    """The line made of a stored request is stored as the same request."""
    again = read_one(line_of(request))
    assert isinstance(again, NewJob), again
    assert {name: value for name, value in again.request.items() if name not in _UNSAID} == {
        name: value for name, value in request.items() if name not in _UNSAID
    }


def check_invariants(data: bytes) -> None:
    rejects = io.BytesIO()
    numbers = []
    for item in read(data, rejects=rejects):
        numbers.append(item.line)
        if isinstance(item, BadLine):
            assert item.field
            assert item.reason
            assert item.remedy
            assert str(item).isprintable()
            continue
        # What is accepted can be stored as UTF-8 JSON without NUL, comes back the same, and the engine takes it.
        text = json.dumps(item.request, ensure_ascii=False, allow_nan=False)
        assert "\\u0000" not in text
        stored = json.loads(text.encode())
        assert stored == item.request
        request = to_engine_request(1, stored)
        assert request.seed == item.request["seed"]
        assert sum(one is not None for one in (request.prompt, request.messages, request.prompt_token_ids)) == 1
        check_line(item.request)
    assert numbers == sorted(set(numbers))
    # Each line is either accepted or rejected, never both or neither.
    lines = [piece for piece in data.split(b"\n") if piece.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(numbers) == len(lines)
