"""DraftSpec: the drafters and the draft model that the setting names."""

from __future__ import annotations

from dataclasses import dataclass

from helix_jobs.engine.config import NO_DRAFT
from helix_jobs.engine.speculation.drafters.registry import FINDING
from helix_jobs.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """The source of drafts: drafters that find drafts, a model, both (``lookup+MODEL``), or nothing.

    Attributes:
        model: A model's name, ``int8`` for an int8 copy of the target, or ``none``.
        drafters: Names of the drafters that find drafts, the preferred one first.
    """

    model: str
    drafters: tuple[str, ...] = ()

    @property
    def copies_blocks(self) -> bool:
        """Whether an int8 copy is made even of a target whose weights stay in blocks.

        A copy reads as many bytes a step as the target: its blocks, or without compiled kernels twice as many. So
        ``lookup+int8``, the default, is ``lookup`` there. Trade-off: for a single request ``int8`` may draft faster
        than lookup alone, and has to be asked for by itself.
        """
        return not self.drafters

    @classmethod
    def parse(cls, text: str) -> DraftSpec:
        """Read ``MODEL``, ``int8``, ``none``, or names of drafters, optionally followed by one of these.

        Raises:
            ConfigurationError: Nothing follows a plus sign.
        """
        names: list[str] = []
        rest = text
        while (name := rest.partition("+")[0]) in FINDING and name not in names:
            names.append(name)
            if name == rest:
                return cls(NO_DRAFT, tuple(names))
            rest = rest.removeprefix(f"{name}+")
        if names and not rest:
            given = "+".join(names)
            raise ConfigurationError(f"draft {text!r} names no model; give {given}, or {given}+int8, or {given}+MODEL")
        return cls(rest, tuple(names))
