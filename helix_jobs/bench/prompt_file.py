"""A JSONL file of prompts as requests: the line forms of ``helix submit``, and Spec-Bench's ``turns``."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidInputError
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_requests import to_engine_request

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.request import Request

_SHOWN: Final = 5


def read_prompts(path: Path, max_tokens: int) -> list[Request]:
    """Read every line of a file; ``max_tokens`` applies to lines that name none.

    A Spec-Bench line (``{"question_id": ..., "turns": [...]}``) becomes a chat of its first turn.

    Raises:
        InvalidInputError: A line is bad, or the file has none.
    """
    source = io.BytesIO(b"".join(_first_turn(line) for line in path.read_bytes().splitlines(keepends=True)))
    requests: list[Request] = []
    bad: list[BadLine] = []
    for line in LineReader(SamplingParams(max_tokens=max_tokens)).read(source):
        if isinstance(line, BadLine):
            bad.append(line)
        else:
            line.seed_from("bench")
            request = to_engine_request(line.line, line.request)
            if (field := _not_done(request)) is not None:
                bad.append(BadLine(line.line, field, "is nothing that a benchmark does", "remove it"))
            requests.append(request)
    if bad:
        shown = "; ".join(str(line) for line in bad[:_SHOWN])
        raise InvalidInputError(f"{path}: {len(bad)} bad lines ({shown})", tuple(bad[:_SHOWN]), len(bad))
    if not requests:
        raise InvalidInputError(f"{path} holds no prompt; give a JSONL file with one prompt a line")
    return requests


def _not_done(request: Request) -> str | None:
    """The field that asks for more than one free answer behind a whole prompt; None without one."""
    params = request.sampling_params
    asked = {
        "bad_words": bool(params.bad_words),
        "truncate_prompt": request.truncate_prompt is not None,
        "choices": request.score_choices is not None,
        "max_tokens": params.max_tokens == 0,
        "n": params.n > 1,
        "response_format": request.constraint is not None,
        "tools": request.tools is not None,
        "max_reasoning_tokens": request.reasoning is not None and request.reasoning.max_tokens is not None,
    }
    return next((field for field, is_asked in asked.items() if is_asked), None)


def _first_turn(line: bytes) -> bytes:
    """A Spec-Bench line as chat messages; any other line unchanged, for the line reader to check."""
    if b'"turns"' not in line:
        return line
    try:
        turns = json.loads(line)["turns"]
    except (ValueError, TypeError, KeyError):
        return line
    if not (isinstance(turns, list) and turns and isinstance(turns[0], str)):
        return line
    return json.dumps({"messages": [{"role": "user", "content": turns[0]}]}).encode() + b"\n"
