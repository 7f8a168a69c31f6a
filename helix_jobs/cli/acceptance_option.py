"""The ``--accept`` flag of ``submit``: when an answer counts, as JSON or in a file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.errors import InvalidFieldError


def parse_accept(ctx: click.Context, parameter: click.Parameter, value: str | None) -> AcceptanceRule | None:
    """Read the rule from JSON text, or from the file of this name; click calls it."""
    if value is None:
        return None
    text = value
    if not value.lstrip().startswith("{"):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise click.BadParameter(
                f'{value!r} cannot be read ({reason}); give a file or JSON such as {{"not_cut": true}}.', ctx, parameter
            ) from error
    try:
        return AcceptanceRule.from_mapping(json.loads(text))
    except InvalidFieldError as error:
        raise click.BadParameter(f"{error}.", ctx, parameter) from error
    except (ValueError, RecursionError) as error:
        raise click.BadParameter("it is no JSON.", ctx, parameter) from error
