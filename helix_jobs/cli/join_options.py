"""The options of ``results`` that join answers to the table they were asked about."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.table_options import InputPath
from helix_jobs.errors import ConfigurationError
from helix_jobs.results.join_options import DEFAULT_COLUMNS, JoinOptions
from helix_jobs.tables.read_options import ReadOptions

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("--unnest", {"is_flag": True, "help": "With --join: JSON answers under a schema as typed columns."}),
    (
        "--columns",
        {"metavar": "NAME,...", "help": f"With --join: columns of answers. [default: {','.join(DEFAULT_COLUMNS)}]"},
    ),
    ("--prefix", {"metavar": "TEXT", "help": "With --join: before the names of these columns."}),
    ("--all-rows", {"is_flag": True, "help": "With --join: rows without an answer, too."}),
    ("--encoding", {"metavar": "NAME", "help": "With --join: the table's encoding, as for submit."}),
    ("--delimiter", {"metavar": "CHARACTER", "help": "With --join: what separates its columns."}),
    ("--sheet", {"metavar": "NAME", "help": "With --join: the worksheet of a workbook."}),
)
_NAMES: Final = tuple(name[2:].replace("-", "_") for name, _ in _OPTIONS)


def join_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--join`` and what belongs to it: ``join``, the table, and ``joining``, a ``JoinOptions``."""

    @functools.wraps(function)
    def command(*args: Any, join: str | None, **kwargs: Any) -> None:  # noqa: ANN401  (passes click's arguments on)
        given = {name: kwargs.pop(name) for name in _NAMES}
        named = next((name for name, value in given.items() if value is not None and value is not False), None)
        if join is None and named is not None:
            raise click.UsageError(f"--{named.replace('_', '-')} needs --join.")
        try:
            joining = _joining(given)
        except ConfigurationError as error:
            raise click.UsageError(f"--columns: {error}.") from error
        function(*args, join=join, joining=joining, **kwargs)

    decorated: Callable[..., None] = command
    for name, attributes in reversed(_OPTIONS):
        decorated = click.option(name, **attributes)(decorated)
    return click.option(
        "--join",
        type=InputPath(exists=True, readable=True),
        metavar="FILE",
        help="Write the answers as columns beside those of the table that was submitted.",
    )(decorated)


def _joining(given: dict[str, Any]) -> JoinOptions:
    columns = given["columns"]
    return JoinOptions(
        columns=DEFAULT_COLUMNS if columns is None else tuple(name.strip() for name in columns.split(",")),
        prefix=given["prefix"] or "",
        unnest=given["unnest"],
        all_rows=given["all_rows"],
        reading=ReadOptions(encoding=given["encoding"], delimiter=given["delimiter"], sheet=given["sheet"]),
    )
