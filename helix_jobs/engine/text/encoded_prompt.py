"""EncodedPrompt and FoundTemplate: what the process that encodes prompts answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.engine.text.template_probe import Probe


class Thinking(StrEnum):
    """What a prompt leaves of the thinking: opened, closed, or to the model."""

    OPEN = "open"
    CLOSED = "closed"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in tokens.

    Attributes:
        token_ids: The tokens.
        thinking: What the prompt leaves of the thinking; a prompt that is no chat has none.
    """

    token_ids: tuple[int, ...]
    thinking: Thinking = Thinking.CLOSED


@dataclass(frozen=True, slots=True)
class FoundTemplate:
    """The model's chat template, as its process found it.

    Attributes:
        probe: What it does.
        markers: The name of the form in which it marks thinking, see ``reasoning_forms``; None if it marks none.
        opening_ids: Tokens of the form's opening.
        closings: Tokens of each text that closes the thinking, see ``Markers.closings``.
        header_starts: The first token of each text with which a header may begin.
    """

    probe: Probe
    markers: str | None = None
    opening_ids: tuple[int, ...] = ()
    closings: tuple[tuple[int, ...], ...] = ()
    header_starts: tuple[int, ...] = ()
