"""GrowingAnswer: what a client has of an answer, and what of it may be sent next. No thread, no clock, no network.

Pieces may be lost, come twice, or come again from another worker after the first one died: the same seed gives the same
tokens. What was sent is never taken back, so a piece that does not fit ends the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.broker.token_channel import Growth


class ChangedAnswerError(Exception):
    """The answer is not the one that was sent so far."""


@dataclass(slots=True)
class _Part:
    """One text as the current claim has made it so far, and what of it was sent."""

    text: str = ""
    begun: str = ""  # what was sent

    def add(self, place: int, piece: str) -> None:
        """Add a piece. One behind a gap waits for the end, which has the whole text."""
        if place <= len(self.text):
            self.text = self.text[:place] + piece if place + len(piece) > len(self.text) else self.text

    def take(self) -> str:
        """What is new."""
        if len(self.text) <= len(self.begun):
            if not self.begun.startswith(self.text):
                raise ChangedAnswerError
            return ""
        if not self.text.startswith(self.begun):
            raise ChangedAnswerError
        new, self.begun = self.text[len(self.begun) :], self.text
        return new


@dataclass(frozen=True, slots=True)
class Delta:
    """What is to be sent of one choice."""

    choice: int
    reasoning: str = ""
    text: str = ""


@dataclass(slots=True)
class GrowingAnswer:
    """The choices of one job."""

    _lease: int = 0
    _reasoning: dict[int, _Part] = field(default_factory=dict)
    _texts: dict[int, _Part] = field(default_factory=dict)

    def add(self, growth: Growth) -> None:
        """Add a piece. Those of an earlier claim than the latest are late, and dropped."""
        if growth.lease < self._lease:
            return
        if growth.lease > self._lease:
            self._lease = growth.lease
            for part in (*self._reasoning.values(), *self._texts.values()):
                part.text = ""
        self._reasoning.setdefault(growth.choice, _Part()).add(growth.reasoning_at, growth.reasoning)
        self._texts.setdefault(growth.choice, _Part()).add(growth.text_at, growth.text)

    def take(self) -> list[Delta]:
        """What is new since the last call.

        Raises:
            ChangedAnswerError: What was sent does not begin the answer.
        """
        found = []
        for choice in sorted(self._texts):
            delta = Delta(choice, self._reasoning[choice].take(), self._texts[choice].take())
            if delta.reasoning or delta.text:
                found.append(delta)
        return found

    def finish(self, choice: int, reasoning: str, text: str) -> Delta:
        """What is missing of a choice at its end.

        Args:
            choice: Which one.
            reasoning: The stored thinking.
            text: The stored answer.

        Raises:
            ChangedAnswerError: What was sent does not begin the stored answer.
        """
        parts = self._reasoning.setdefault(choice, _Part()), self._texts.setdefault(choice, _Part())
        for part, whole in zip(parts, (reasoning, text), strict=True):
            if not whole.startswith(part.begun):
                raise ChangedAnswerError
            part.text = whole
        return Delta(choice, parts[0].take(), parts[1].take())
