"""JoinOptions: what stands in a joined table. Imports no reader of tables: commands name its default in their help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.results.columns import COLUMNS
from helix_jobs.tables.read_options import ReadOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_COLUMNS: Final = (
    *("output_text", "finish_reason", "state", "error_code", "error_message"),
    *("prompt_tokens", "completion_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What stands in a joined table.

    Attributes:
        columns: Columns of the answers.
        prefix: Stands before their names.
        unnest: Whether the properties of JSON answers become columns.
        all_rows: Whether rows without an answer stand there, too.
        reading: What is known of the table's form.

    Raises:
        ConfigurationError: There is no such column, or it is named twice.
    """

    columns: Sequence[str] = DEFAULT_COLUMNS
    prefix: str = ""
    unnest: bool = False
    all_rows: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ConfigurationError(f"{name!r} is no column of results; use some of {', '.join(COLUMNS)}")
            if self.columns.count(name) > 1:
                raise ConfigurationError(f"{name!r} is named twice; name each column once")
