"""What became of answers and jobs, in the same words on a terminal, in a report and on the page. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

# How an answer ended.
FINISHES: Final[Mapping[str, str]] = {
    "stop": "ended by itself",
    "length": "cut off by max_tokens or the context",
    "tool_calls": "called tools",
}


def refused_answers(tries: int) -> str:
    """What the tries of jobs count: an acceptance rule refuses an answer, or a person asks for another one."""
    return f"{counted(tries, 'answer')} refused or asked for again"
