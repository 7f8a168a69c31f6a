"""ReadOptions: what a person says of a table that would otherwise be detected. Imports no reader of tables."""

from __future__ import annotations

import glob
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

# Behind it stands a data set of the Hugging Face hub.
HUB_PREFIX: Final = "hf://datasets/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a person says of a table that would otherwise be detected.

    Attributes:
        encoding: The encoding of text.
        delimiter: The character between columns, or a word for it.
        sheet: The worksheet of a workbook.
    """

    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None

    def without_effect(self, *used: str) -> str:
        """What to say of options that were given and change nothing about a table; empty if there are none.

        Args:
            used: The options that such a table is read by.
        """
        given = [option.name for option in fields(self) if getattr(self, option.name) is not None]
        idle = [f"--{name}" for name in given if name not in used]
        return f"; {' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect on it" if idle else ""


def is_pattern(text: str) -> bool:
    """Whether a text names files by a pattern, and no file of its own."""
    return glob.has_magic(text) and not Path(text).exists()


def is_on_hub(text: str) -> bool:
    """Whether a text names a data set of the hub, and no file of its own."""
    return text.startswith(HUB_PREFIX)
