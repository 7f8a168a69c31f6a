"""The table options of ``submit`` and ``preview``: which rows count, and what is asked about each."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.errors import ConfigurationError
from helix_jobs.plain_text import printable
from helix_jobs.tables.ask import TableAsk
from helix_jobs.tables.columns import Selection
from helix_jobs.tables.read_options import ReadOptions, is_on_hub, is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (
        ("--prompt",),
        {"metavar": "TEXT", "help": "Ask this about each row of a table: a Jinja2 template of its columns."},
    ),
    (("--template",), {"metavar": "FILE", "help": "The same, with the template in a file."}),
    (("--chat",), {"is_flag": True, "help": "The prompt is a user's message, not a text to continue."}),
    (("--system",), {"metavar": "TEXT", "help": "A system message before it, a template too; implies --chat."}),
    (
        ("--messages",),
        {"metavar": "FILE", "help": "Ask by these messages instead: a JSON list whose texts are templates."},
    ),
    (
        ("--select",),
        {"multiple": True, "metavar": "NAME[=COLUMN],...", "help": "Keep these columns, under new names if given."},
    ),
    (("--where",), {"metavar": "EXPRESSION", "help": "Keep the rows for which this Jinja2 expression is true."}),
    (("--limit",), {"type": click.IntRange(min=1), "metavar": "N", "help": "Take N rows at most."}),
    (("--shuffle",), {"is_flag": True, "help": "Take the rows in an order that --shuffle-seed decides."}),
    (("--shuffle-seed",), {"type": int, "metavar": "N", "help": "Another order; implies --shuffle. [default: 0]"}),
    (("--id",), {"metavar": "COLUMN", "help": "Take each job's custom_id from this column."}),
    (("--encoding",), {"metavar": "NAME", "help": "The table's encoding, instead of the detected one."}),
    (("--delimiter",), {"metavar": "CHARACTER", "help": "What separates its columns, such as ; or tab."}),
    (("--sheet",), {"metavar": "NAME", "help": "The worksheet of a workbook; default: the first."}),
)
_NAMES: Final = tuple(names[0][2:].replace("-", "_") for names, _ in _OPTIONS)


class InputPath(click.Path):
    """A file, ``-``, or for tables a folder, a pattern of files, or a data set of the hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  (click's signature)
        """Check that a file or folder is there; a pattern or a data set is looked at when it is opened."""
        if isinstance(value, str) and (is_pattern(value) or is_on_hub(value)):
            return value
        return super().convert(value, param, ctx)


def table_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the table options, passed as one argument ``table: TableAsk | None``: None for a file of lines."""

    @functools.wraps(function)
    def command(*args: Any, file: str, **kwargs: Any) -> None:  # noqa: ANN401  (passes click's arguments on)
        given = {name: kwargs.pop(name) for name in _NAMES}
        try:
            table = _asked(given)
        except ConfigurationError as error:
            raise click.UsageError(f"{error}.") from error
        if table is None and (is_pattern(file) or is_on_hub(file) or Path(file).is_dir()):
            what = "is a table" if is_on_hub(file) else "names several files"
            raise click.UsageError(f"{printable(file)} {what}; say what to ask about each with --prompt or --template.")
        function(*args, file=file, table=table, **kwargs)

    decorated: Callable[..., None] = command
    for names, attributes in reversed(_OPTIONS):
        decorated = click.option(*names, **attributes)(decorated)
    return decorated


def _asked(given: dict[str, Any]) -> TableAsk | None:
    # An empty text is given, too: --prompt "" must not turn a table into a file of lines.
    if all(value is None or value is False or value == () for value in given.values()):
        return None
    if given["prompt"] is not None and given["template"] is not None:
        raise ConfigurationError("--prompt and --template exclude each other")
    prompt = given["prompt"] if given["template"] is None else _text_of("--template", given["template"])
    seed = given["shuffle_seed"]
    if seed is None and given["shuffle"]:
        seed = 0
    return TableAsk(
        prompt=prompt,
        chat=given["chat"],
        system=given["system"],
        messages=None if given["messages"] is None else _messages_of(given["messages"]),
        select=Selection.parse(given["select"]) if given["select"] else None,
        where=given["where"],
        limit=given["limit"],
        shuffle=seed,
        id=given["id"],
        reading=ReadOptions(encoding=given["encoding"], delimiter=given["delimiter"], sheet=given["sheet"]),
    )


def _text_of(option: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigurationError(f"{option} {printable(file)} cannot be read ({reason})") from error


def _messages_of(file: str) -> Any:  # noqa: ANN401  (parsed JSON, which TableAsk checks)
    try:
        return json.loads(_text_of("--messages", file))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--messages {printable(file)} is no JSON") from error
