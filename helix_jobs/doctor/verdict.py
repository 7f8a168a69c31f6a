"""Verdict: what one check found, and what to do about it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.errors import HelixError


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # Helix works, though not as well as it could
    FAILED = "failed"  # Helix does not work


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of one check.

    Attributes:
        subject: What was looked at, such as ``torch``.
        level: How it ended.
        finding: What was found, in one line.
        remedy: What to do, in one line; None where there is nothing to do.
    """

    subject: str
    level: Level
    finding: str
    remedy: str | None = None


def failure(subject: str, error: HelixError) -> Verdict:
    """A failed check out of an error: what it says up to the semicolon, and the remedy behind it."""
    finding, _, remedy = str(error).partition("; ")
    return Verdict(subject, Level.FAILED, finding, remedy or None)
