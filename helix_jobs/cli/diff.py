"""``diff``: what differs between two batches of the same input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from helix_jobs.cli.console import make_console, show
from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.json_line import json_line
from helix_jobs.plain_text import printable
from helix_jobs.reports.comparison import Change
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from helix_jobs.reports.comparison import Difference, Tally
    from helix_jobs.settings import Settings
    from helix_jobs.storage.job_pairs import JobPair

_SHOWN: Final = 10


@click.command("diff", cls=HelixCommand, short_help="Show what differs between two batches.")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "--only", type=click.Choice(tuple(map(str, Change))), multiple=True, help="Show rows of this kind; repeatable."
)
@click.option(
    "--rows",
    type=click.IntRange(0, 10_000),
    default=_SHOWN,
    show_default=True,
    help="Show so many rows, here and in --html and --json.",
)
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write one HTML file.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write all these rows as JSON lines."
)
@helix_options
def diff(
    settings: Settings,
    before: str,
    after: str,
    *,
    only: tuple[str, ...],
    rows: int,
    html: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Show what differs between batches A and B of the same input.

    Rows belong together by their custom_id, or by their line where they have none. Without --only, the rows that are
    not the same are shown. Answers that are JSON are compared field by field, others word by word.
    """
    if html is not None and output is not None and Path(html).resolve() == Path(output).resolve():
        raise click.UsageError("--html and -o name the same file; give each a file of its own.")
    with open_client(settings) as client:
        tally, shown, written = _read(client.pairs(before, after), only, rows, output)
    found = _Found(before, after, only, tally, shown)
    if html is not None:
        _write_html(Path(html), found)
    if as_json:
        from helix_jobs.reports.comparison_rows import row_json, tally_json

        told = {} if output is None else {"path": output, "written": written}
        listed = [row_json(difference) for difference in shown]
        echo_json({"before": before, "after": after, "summary": tally_json(tally), "rows": listed, **told})
        return
    console = make_console()
    _print(console, found)
    for path in filter(None, (html, output)):
        console.print(f"Written: {printable(path)}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is shown of a comparison.

    Attributes:
        before: The first batch.
        after: The second batch.
        only: The kinds that were asked for; empty for all but the same.
        tally: The sums over all pairs.
        shown: The pairs to show.
    """

    before: str
    after: str
    only: tuple[str, ...]
    tally: Tally
    shown: list[Difference]

    @property
    def chosen(self) -> int:
        """The number of rows of the kinds that are shown."""
        return sum(count for change, count in self.tally.changes.items() if _is_chosen(str(change), self.only))

    @property
    def command(self) -> str:
        """The command that writes all of these rows."""
        kinds = [word for kind in self.only for word in ("--only", kind)]
        return command_line("diff", self.before, self.after, *kinds, "-o", "FILE")


def _is_chosen(change: str, only: tuple[str, ...]) -> bool:
    return change in only if only else change != "same"


def _read(
    pairs: Iterator[JobPair], only: tuple[str, ...], rows: int, output: str | None
) -> tuple[Tally, list[Difference], int]:
    """Count all pairs, keep the first to show, and write all of them where a file is named."""
    from helix_jobs.output_file import written_whole
    from helix_jobs.reports.comparison import Tally, compare
    from helix_jobs.reports.comparison_rows import row_json

    tally, written = Tally(), 0
    shown: list[Difference] = []

    def chosen() -> Iterator[Difference]:
        for pair in pairs:
            difference = compare(pair)
            tally.add(difference)
            if _is_chosen(str(difference.change), only):
                if len(shown) < rows:
                    shown.append(difference)
                yield difference

    if output is None:
        for _ in chosen():
            pass
    else:
        with written_whole(Path(output)) as stream:
            for difference in chosen():
                stream.write(f"{json_line(row_json(difference))}\n".encode("utf-8", "replace"))
                written += 1
    return tally, shown, written


def _write_html(path: Path, found: _Found) -> None:
    from helix_jobs.output_file import written_whole
    from helix_jobs.reports.comparison_rows import WORDS, asked_otherwise, shown_row, sums_in_words
    from helix_jobs.reports.html import render

    tally = found.tally
    page = render(
        "diff.html",
        before=found.before,
        after=found.after,
        kinds=[(words.capitalize(), tally.changes[kind]) for kind, words in WORDS.items() if tally.changes[kind]],
        sums=sums_in_words(tally.before, tally.after),
        fields=tally.fields.most_common(50),
        rows=[shown_row(difference) for difference in found.shown],
        asked_otherwise=asked_otherwise(tally),
        nothing="No row is of these kinds." if found.only else "No row differs.",
        more=found.chosen - len(found.shown),
        command=found.command,
        total=sum(tally.changes.values()),
    )
    with written_whole(path) as stream:
        for part in page:
            stream.write(part)


def _print(console: Console, found: _Found) -> None:
    from rich.text import Text

    from helix_jobs.cli.diff_views import print_row, sums_view
    from helix_jobs.reports.comparison_rows import WORDS, asked_otherwise, shown_row

    tally, shown, chosen = found.tally, found.shown, found.chosen
    counts = [f"{tally.changes[kind]:,} {words}" for kind, words in WORDS.items() if tally.changes[kind]]
    console.print(Text(f"{counted(sum(tally.changes.values()), 'row')}: {', '.join(counts)}"), soft_wrap=True)
    if (words := asked_otherwise(tally)) is not None:
        console.print(words, soft_wrap=True)
    if tally.before.answers:
        show(console, sums_view(found.before, found.after, tally))
    for name, count in tally.fields.most_common(10):
        console.print(Text(f"Field {printable(name)} differs in {counted(count, 'row')}"), soft_wrap=True)
    for difference in shown:
        console.print()
        print_row(console, shown_row(difference))
    if chosen > len(shown):
        console.print(
            f"\n{len(shown):,} of {counted(chosen, 'row')} shown. All of them: {found.command}", soft_wrap=True
        )
