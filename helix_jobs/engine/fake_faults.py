"""FakeFaults: how the fake engine misbehaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeFaults:
    """Texts that make the fake engine misbehave when a prompt contains them. Empty texts never match.

    Attributes:
        fail: The request alone ends with an EngineError.
        hang: The request is admitted and never ends.
        crash: ``step`` raises while the request is in the batch.
        stall: ``step`` does not return while the request is in the batch (until ``close``).
        die: The process exits in the middle of a step, without any clean-up.
    """

    fail: str = ""
    hang: str = ""
    crash: str = ""
    stall: str = ""
    die: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> FakeFaults:
        """Read ``HELIX_FAKE_FAIL``, ``_HANG``, ``_CRASH``, ``_STALL`` and ``_DIE``."""
        return cls(**{name: environment.get(f"HELIX_FAKE_{name.upper()}", "") for name in cls.__slots__})
