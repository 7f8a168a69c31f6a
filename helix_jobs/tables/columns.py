"""Names of a table's columns: as the header gives them, and those that a person chooses. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.line_faults import short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SHOWN: Final = 12
_ALIKE: Final = 0.6


def column_names(header: Sequence[object]) -> tuple[str, ...]:
    """The names of a header's cells, trimmed; a cell without text is called by its place.

    Raises:
        InputError: Two columns have the same name.
    """
    names = [str("" if cell is None else cell).strip() for cell in header]
    names = [name or f"column_{place}" for place, name in enumerate(names, start=1)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"the table has two columns called {short(name)!r}; rename one of them")
        seen.add(name)
    return tuple(names)


def no_such_column(columns: Iterable[str], wanted: str) -> str:
    """The remedy where a column is missing: the one that was probably meant, or those there are."""
    names = list(columns)
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=_ALIKE)
    if near:
        return f"did you mean {short(near[0])}?"
    if not names:
        return "the row has no columns"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the columns are {', '.join(map(short, names[:_SHOWN]))}{more}"


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns that rows keep, under new names where a person gives them.

    Attributes:
        sources: New name -> the column of the table.
    """

    sources: Mapping[str, str]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Selection:
        """Read ``NAME`` and ``NAME=COLUMN``, several of them with commas between.

        Raises:
            ConfigurationError: A name is empty or given twice.
        """
        sources: dict[str, str] = {}
        for part in (part for text in texts for part in text.split(",")):
            name, equals, column = (piece.strip() for piece in part.partition("="))
            if not name or (equals and not column):
                raise ConfigurationError(f"--select {part.strip()!r}: give COLUMN or NAME=COLUMN")
            if name in sources:
                raise ConfigurationError(f"--select names {name!r} twice; give each name once")
            sources[name] = column or name
        return cls(sources)

    def missing(self, values: Mapping[str, Any]) -> str | None:
        """The first column that a row does not have."""
        return next((column for column in self.sources.values() if column not in values), None)

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The row with these columns alone."""
        return {name: values[column] for name, column in self.sources.items()}
