"""Limits: the largest line and batch, so that one submission cannot fill disk and memory for everybody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InputError, InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.settings import Settings

MAX_MESSAGES: Final = 10_000
MAX_METADATA_CHARS: Final = 65_536

_DEFAULT_MAX_TOKENS: Final = SamplingParams().max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits in the settings; None: only the format's own limit.

    Attributes:
        prompt_chars: Characters of the prompt, or of all messages together.
        max_tokens: New tokens a line may ask for, in each of its answers.
        jobs: Answers that the accepted lines of a batch may ask for; by default a line asks for one.
    """

    prompt_chars: int | None = None
    max_tokens: int | None = None
    jobs: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits of an installation."""
        return cls(
            prompt_chars=settings.max_prompt_chars,
            max_tokens=settings.max_tokens_per_job,
            jobs=settings.max_jobs_per_batch,
        )

    def check_request(self, request: Mapping[str, Any], prefix: str = "") -> None:
        """Refuse a parsed request that is too large.

        Raises:
            InvalidFieldError: Names the field, its size, the limit and the limit's setting.
        """
        messages = request.get("messages")
        if messages is None:
            # A token has at least one character.
            field, chars = "prompt", len(request["prompt"] if "prompt" in request else request["prompt_token_ids"])
        else:
            if len(messages) > MAX_MESSAGES:
                raise InvalidFieldError(
                    f"{prefix}messages", f"holds {len(messages):,} messages", f"give at most {MAX_MESSAGES:,}"
                )
            field, chars = "messages", sum([len(one["content"]) for one in messages]) + _chars_beside(request)
        if self.prompt_chars is not None and chars > self.prompt_chars:
            remedy = f"give at most {self.prompt_chars:,}, or raise HELIX_MAX_PROMPT_CHARS"
            raise InvalidFieldError(f"{prefix}{field}", f"has {chars:,} characters", remedy)
        max_tokens = request["sampling"].get("max_tokens", _DEFAULT_MAX_TOKENS)
        if self.max_tokens is not None and max_tokens > self.max_tokens:
            remedy = f"give at most {self.max_tokens:,}, or raise HELIX_MAX_TOKENS_PER_JOB"
            raise InvalidFieldError(f"{prefix}max_tokens", f"is {max_tokens:,}", remedy)
        if request["metadata"] and (size := len(json.dumps(request["metadata"]))) > MAX_METADATA_CHARS:
            remedy = f"give at most {MAX_METADATA_CHARS:,}; keep the rest in a file of your own, by custom_id"
            raise InvalidFieldError("metadata", f"has {size:,} characters as JSON", remedy)

    def check_count(self, accepted: int, answers: int, line: int) -> None:
        """Refuse the first line above the limit.

        Args:
            accepted: Lines accepted so far, this one included.
            answers: Answers they ask for.
            line: This line's number.

        Raises:
            InputError: Names the line, the limit and the limit's setting.
        """
        if self.jobs is None or answers <= self.jobs:
            return
        if accepted > self.jobs:
            reason = f"one batch holds at most {self.jobs:,} jobs, and this line is one more"
        else:
            reason = f"one batch may ask for at most {self.jobs:,} answers, and with this line it asks for {answers:,}"
        raise InputError(
            f"line {line}: {reason}; nothing was enqueued. Split the input, or raise HELIX_MAX_JOBS_PER_BATCH"
        )


def _chars_beside(request: Mapping[str, Any]) -> int:
    """Characters of tools, calls and thinking, which stand in the prompt as well; most requests have none."""
    beside = [
        value
        for message in request["messages"]
        if len(message) > 2  # noqa: PLR2004  (role and content)
        for name, value in message.items()
        if name in ("tool_calls", "reasoning_content")
    ]
    if "tools" in request:
        beside.append(request["tools"])
    return len(json.dumps(beside)) if beside else 0


NO_LIMITS: Final = Limits()
