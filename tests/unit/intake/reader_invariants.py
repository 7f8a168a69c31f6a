"""What holds of every file of requests, however it was made: each line is accepted or rejected, and nothing crashes."""

from __future__ import annotations

import io
import json

from helix_jobs.errors import BadLine
from helix_jobs.intake.stored_requests import to_engine_request
from tests.unit.intake.request_lines import read


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
    assert numbers == sorted(set(numbers))
    # Each line is either accepted or rejected, never both or neither.
    lines = [piece for piece in data.split(b"\n") if piece.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(numbers) == len(lines)
