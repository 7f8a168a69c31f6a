"""The brakes of ``submit``: when the batch is to pause by itself."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.brakes import Brakes, parse_share
from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


def _share(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a percentage; click calls it."""
    try:
        return None if value is None else parse_share(value)
    except InputError as error:
        raise click.BadParameter(f"{error}.", ctx, parameter) from error


_OPTIONS: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
    click.option(
        "--max-tokens-total",
        type=click.IntRange(min=1),
        metavar="N",
        help="Pause the batch when N tokens of it are computed, prompts and answers together.",
    ),
    click.option(
        "--max-hours",
        type=click.FloatRange(min=0, min_open=True),
        metavar="H",
        help="Pause the batch when its jobs have run for H hours.",
    ),
    click.option(
        "--stop-if-failing",
        callback=_share,
        metavar="P%",
        help="Pause the batch when P% of its ended jobs, 20 at least, have failed.",
    ),
)


def brake_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the brakes, passed as one argument ``brakes: Brakes | None``."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (passes click's arguments on)
        given = {name: kwargs.pop(name) for name in Brakes.__slots__}
        try:
            brakes = None if set(given.values()) == {None} else Brakes(**given)
        except InputError as error:
            raise click.UsageError(f"{error}.") from error
        function(*args, brakes=brakes, **kwargs)

    decorated: Callable[..., None] = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
