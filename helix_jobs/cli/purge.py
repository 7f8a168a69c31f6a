"""``purge``: remove ended batches and old files for good."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.console import clock_time
from helix_jobs.cli.group import INTERRUPTED, HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.plain_text import printable
from helix_jobs.wording import counted, data_size

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.client.home_files import HomeFile
    from helix_jobs.client.purge import Purged, PurgePlan
    from helix_jobs.settings import Settings

# Those of ``jobs.purge.Outcome`` (a test holds them equal), which would import the database.
STATES: Final = ("succeeded", "failed", "cancelled", "unfinished")
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_SHOWN: Final = 20
_WORTH_A_VACUUM: Final = 64 << 20


class _Age(click.ParamType[timedelta]):
    """``12h``, ``30d``, ``8w``."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401  (click's signature)
        """Read a number and its unit."""
        match = re.fullmatch(r"(\d{1,5})([hdw])", str(value))
        if match is None:
            self.fail("give a number of hours, days or weeks, such as 12h, 30d or 8w.", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command("purge", cls=HelixCommand, short_help="Remove old batches and files for good.")
@click.argument("batches", metavar="[BATCH]...", nargs=-1)
@click.option("--older-than", metavar="AGE", type=_Age(), help="Batches that ended longer ago: 12h, 30d, 8w; 0d: all.")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES),
    multiple=True,
    help="With --older-than, only batches of which all jobs succeeded, a job failed, a job was cancelled, or whose "
    "submission did not finish; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Remove without asking, on a terminal too.")
@click.option(
    "--vacuum", is_flag=True, help="Then rewrite an SQLite file that an older version made; stop its workers first."
)
@helix_options
def purge(
    settings: Settings,
    batches: tuple[str, ...],
    older_than: timedelta | None,
    states: tuple[str, ...],
    *,
    dry_run: bool,
    yes: bool,
    vacuum: bool,
    as_json: bool,
) -> None:
    """Remove ended batches for good, with their prompts, answers and idempotency keys.

    Name batches, or give an age. With an age alone, rows of stopped workers, files that were uploaded over HTTP, and
    files under HELIX_HOME (logs, compiled kernels, profiles, what a broker left) that are as old go too. What waits or
    runs is never touched. Interrupted, it is finished by the next purge.
    """
    if states and older_than is None:
        raise click.UsageError("--state belongs to --older-than.")
    if not batches and older_than is None:
        raise click.UsageError("Say what to remove: --older-than AGE, such as 30d, or batches by their ids.")
    report = _Report(home=settings.home, dry_run=dry_run, asks=not dry_run and not yes and _someone_types())
    with open_client(settings) as client:
        try:
            report.purged = client.purge(
                *batches,
                older_than=older_than,
                only=states,
                dry_run=dry_run,
                vacuum=vacuum,
                agree=report.agree,
                on_step=report.note,
            )
            report.remove_files()
        except KeyboardInterrupt:
            if dry_run or report.plan is None:
                raise
            report.interrupted = True
    if report.declined:
        click.echo("Nothing is removed.", err=True)
        return
    report.show(as_json=as_json)
    if report.interrupted:
        click.get_current_context().exit(INTERRUPTED)


@dataclass
class _Report:
    """The plan of a purge, the person's agreement, and the amounts removed so far."""

    home: Path
    dry_run: bool
    asks: bool
    plan: PurgePlan | None = None
    declined: bool = False
    purged: Purged | None = None
    old_files: list[HomeFile] = field(default_factory=list)
    files: list[HomeFile] = field(default_factory=list)
    interrupted: bool = False

    def agree(self, plan: PurgePlan) -> bool:
        """Keep the plan, find the files that belong to it, and ask the person."""
        from helix_jobs.client.home_files import home_files, old_files

        self.plan = plan
        self.old_files = [] if plan.before is None else old_files(home_files(self.home), plan.before)
        if self.asks:
            _show(plan, self.old_files)
            self.declined = not click.confirm("Remove this for good?", err=True)
        return not self.declined

    def note(self, purged: Purged) -> None:
        """Keep the amounts removed so far."""
        self.purged = purged

    def remove_files(self) -> None:
        """Remove the files that belong to the plan, if the person agreed."""
        from helix_jobs.client.home_files import remove_files

        if not self.declined:
            self.files = self.old_files if self.dry_run else remove_files(self.old_files)

    def show(self, *, as_json: bool) -> None:
        """Print the report, in words or JSON."""
        from helix_jobs.client.purge import Purged

        assert self.plan is not None, "nothing is shown before something was planned"
        purged = self.purged or Purged()
        if as_json:
            echo_json(
                {
                    "dry_run": self.dry_run,
                    "interrupted": self.interrupted,
                    "batch_ids": [*self.plan.begun, *(batch.id for batch in self.plan.batches)],
                    **asdict(purged),
                    "files": [str(file.path) for file in self.files],
                    "file_bytes": sum(file.bytes for file in self.files),
                }
            )
            return
        if self.interrupted:
            click.echo("Interrupted; the next purge removes the rest of what was begun.", err=True)
        what = "Would be removed" if self.dry_run else "Removed"
        click.echo(
            f"{what}: {counted(purged.batches, 'batch', 'batches')} with {counted(purged.jobs, 'job')} and "
            f"{counted(purged.results, 'answer')} ({data_size(purged.bytes)} of content)."
        )
        if purged.runs or purged.workers:
            rows = f"{counted(purged.runs, 'run')} and {counted(purged.workers, 'stopped worker')}"
            click.echo(f"{what}: the rows of {rows}.")
        if purged.uploads:
            click.echo(f"{what}: {counted(purged.uploads, 'uploaded file')}.")
        if self.files:
            size = data_size(sum(file.bytes for file in self.files))
            click.echo(f"{what}: {counted(len(self.files), 'file')} under HELIX_HOME ({size}).")
        if purged.given_back:
            click.echo(f"The database's file is {data_size(purged.given_back)} smaller.")
        if purged.kept_free_bytes >= _WORTH_A_VACUUM:
            again = command_line("purge", "--older-than", "30d", "--vacuum")
            click.echo(
                f"The database's file keeps {data_size(purged.kept_free_bytes)} free for new batches. To give it back "
                f"once: {again}",
                err=True,
            )


def _show(plan: PurgePlan, files: list[HomeFile]) -> None:
    """Show the person who is asked what would be removed."""
    for batch in plan.batches[:_SHOWN]:
        named = f" {printable(batch.name)}" if batch.name else ""
        jobs = counted(batch.stored, "job")
        click.echo(f"  {batch.id}{named}: {jobs}, ended {clock_time(batch.ended_at)}", err=True)
    if len(plan.batches) > _SHOWN:
        click.echo(f"  and {len(plan.batches) - _SHOWN:,} more batches", err=True)
    if plan.begun:
        click.echo(f"  what an interrupted purge left of {counted(len(plan.begun), 'batch', 'batches')}", err=True)
    if plan.before is not None:
        size = data_size(sum(file.bytes for file in files))
        rest = f"{counted(len(files), 'file')} under HELIX_HOME ({size}), old rows of stopped workers, and old uploads"
        click.echo(f"  {rest}", err=True)


def _someone_types() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
