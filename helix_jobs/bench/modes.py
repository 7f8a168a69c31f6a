"""Mode: one way to run the engine, and its spelling on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from helix_jobs.bounds import MAX_SPECULATION_DEPTH
from helix_jobs.engine.config import NO_DRAFT, SpeculationConfig
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

OFF: Final = "off"
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Mode:
    """Speculation off, at a fixed depth, or at a depth chosen each step; and the source of drafts.

    Attributes:
        speculation: ``off``, ``auto``, or the depth as a number.
        draft: The draft as spelt by the user (``none`` when speculation is off).
    """

    speculation: str
    draft: str = NO_DRAFT

    @property
    def is_off(self) -> bool:
        """Whether nothing is drafted."""
        return self.speculation == OFF

    @property
    def label(self) -> str:
        """``off``, ``int8 K=4``, ``lookup+int8 auto``."""
        if self.is_off:
            return OFF
        depth = AUTO if self.speculation == AUTO else f"K={self.speculation}"
        return f"{short_draft(self.draft)} {depth}"

    @property
    def draft_spec(self) -> DraftSpec:
        """The draft taken apart into drafters and model."""
        return DraftSpec.parse(self.draft)

    def speculation_config(self) -> SpeculationConfig:
        """The engine's configuration for this mode."""
        drafters = self.draft_spec.drafters
        if self.speculation == AUTO:
            return SpeculationConfig(adaptive=True, drafters=drafters)
        return SpeculationConfig(depth=0 if self.is_off else int(self.speculation), adaptive=False, drafters=drafters)


def short_draft(draft: str) -> str:
    """A draft's name without the directories of its models."""
    return "+".join(PurePath(part).name or part for part in draft.split("+"))


def parse_speculation(text: str) -> str:
    """``off``, ``auto`` or a depth of 1 to 16; 0 is ``off``.

    Raises:
        ValueError: The text is none of these.
    """
    value = text.strip().lower()
    if value in (OFF, AUTO):
        return value
    if not (value.isdecimal() and int(value) <= MAX_SPECULATION_DEPTH):
        raise ValueError(f"{text!r} is no speculation mode; give off, auto or a depth of 1 to {MAX_SPECULATION_DEPTH}")
    return str(int(value)) if int(value) else OFF


def all_modes(drafts: Sequence[str], speculations: Sequence[str]) -> tuple[Mode, ...]:
    """Every combination once; with speculation off the draft makes no difference.

    Raises:
        ConfigurationError: Speculation is asked for without a draft.
    """
    usable = [draft for draft in drafts if draft != NO_DRAFT]
    modes = [
        Mode(speculation, draft)
        for speculation in speculations
        for draft in ([NO_DRAFT] if speculation == OFF else usable)
    ]
    if not modes:
        raise ConfigurationError("speculation needs a draft; give --draft int8, --draft MODEL, or --speculation off")
    return tuple(dict.fromkeys(modes))
