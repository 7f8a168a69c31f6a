"""PartialOutput: what a request whose answer is read while it grows has so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from helix_jobs.engine.request import EncodedRequest


@dataclass(frozen=True, slots=True)
class PartialText:
    """The beginning of an answer that no later token changes.

    Attributes:
        text: The answer's, without thinking.
        reasoning: The thinking's.
    """

    text: str = ""
    reasoning: str = ""


class PartialOutput(Protocol):
    """An output that has grown. It is a copy: the engine may go on meanwhile."""

    @property
    def request(self) -> EncodedRequest:
        """The request; of several choices, the choice's own."""

    def read(self) -> PartialText:
        """Its text. Takes time in proportion to its length; thread-safe.

        Raises:
            Exception: The output cannot be decoded. The request's result will say so.
        """
