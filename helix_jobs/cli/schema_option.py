"""The ``--json-schema`` flag of ``submit`` and ``plan``: the form of answers, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from collections.abc import Callable


def _read_schema(ctx: click.Context, parameter: click.Parameter, file: str | None) -> dict[str, Any] | None:
    """The value of ``response_format`` that a file with a JSON schema stands for."""
    if file is None:
        return None
    try:
        schema = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{printable(file)} cannot be read as UTF-8 text: {error}.", ctx, parameter) from error
    return {"type": "json_schema", "json_schema": {"schema": schema}}


schema_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json-schema",
    "response_format",
    callback=_read_schema,
    metavar="FILE",
    help="Hold the answers of lines that do not say their form to the JSON schema in FILE.",
)
