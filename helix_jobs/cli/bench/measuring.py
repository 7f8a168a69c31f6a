"""What every command of ``helix bench`` does around its measurement: say what goes on, and report what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from helix_jobs.cli.bench.options import STANDARD_OUTPUT, check_json_file
from helix_jobs.cli.group import INTERRUPTED
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(json_file: str | None) -> Callable[[str], None]:
    """Check the file of ``--json``; returns the function that says on standard error what goes on.

    Raises:
        click.BadParameter: The file's directory does not exist.
    """
    from helix_jobs.cli.console import make_console
    from helix_jobs.plain_text import printable

    # The error report reads ``as_json`` from here.
    click.get_current_context().params["as_json"] = json_file == STANDARD_OUTPUT
    check_json_file(json_file)
    progress = make_console(stderr=True)

    def say(line: str) -> None:
        progress.print(f"{printable(line)} ...", style="dim", soft_wrap=True)

    return say


def measure(run: Callable[[], None], report: Callable[[], None]) -> None:
    """Measure, and report even after a late failure or Ctrl-C: neither must discard hours of measurements.

    Raises:
        HelixError: As ``run``.
    """
    stopped: KeyboardInterrupt | HelixError | None = None
    try:
        run()
    except (KeyboardInterrupt, HelixError) as error:
        stopped = error
    report()
    if isinstance(stopped, HelixError):
        raise stopped
    if stopped is not None:
        click.echo("Interrupted.", err=True)
        click.get_current_context().exit(INTERRUPTED)
