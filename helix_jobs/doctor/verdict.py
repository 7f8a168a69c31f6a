"""Verdict: the finding of one check, and its remedy. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.errors import HelixError


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"  # Helix works, though not as well as it could
    FAILED = "failed"  # Helix does not work


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check.

    Attributes:
        subject: The subject of the check, such as ``torch``.
        level: How serious the finding is.
        finding: The finding, in one line.
        remedy: What to do, in one line; None if nothing needs doing.
    """

    subject: str
    level: Level
    finding: str
    remedy: str | None = None


def failure(subject: str, error: HelixError) -> Verdict:
    """Turn an error into a failed check."""
    return Verdict(subject, Level.FAILED, *finding_and_remedy(error))


def finding_and_remedy(error: HelixError) -> tuple[str, str | None]:
    """The parts of an error's message before and behind its first semicolon; without one there is no remedy."""
    finding, _, remedy = str(error).partition("; ")
    return finding, remedy or None
