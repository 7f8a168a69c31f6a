"""``report``: one HTML file about a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.group import HelixCommand, echo_json, helix_options, open_client
from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from helix_jobs.settings import Settings
    from helix_jobs.storage.batch_facts import BatchFacts


@click.command("report", cls=HelixCommand, short_help="Write one HTML file about a batch.")
@click.argument("batch")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Its name. [default: BATCH.html]")
@click.option(
    "--samples", type=click.IntRange(0, 1000), default=12, show_default=True, help="Show so many answers to read."
)
@helix_options
def report(settings: Settings, batch: str, output: str | None, *, samples: int, as_json: bool) -> None:
    """Write one HTML file about a batch, also while it runs: what was asked, what came out, how fast, and why not.

    The file needs nothing from outside and runs no script. With --json the figures are printed as well.
    """
    from helix_jobs.output_file import written_whole
    from helix_jobs.reports.batch_report import batch_report
    from helix_jobs.reports.html import render

    with open_client(settings) as client:
        facts = client.facts(batch, samples=samples)
    path = output or f"{batch}.html"
    with written_whole(Path(path)) as stream:
        for part in render("report.html", report=batch_report(facts), written=datetime.now(UTC)):
            stream.write(part)
    if as_json:
        echo_json({"id": batch, "path": path, "figures": _figures(facts)})
    else:
        click.echo(f"Written: {printable(path)}")


def _figures(facts: BatchFacts) -> dict[str, Any]:
    """The figures that the charts are drawn from, for programs."""
    from helix_jobs.cli.views import batch_json
    from helix_jobs.storage.batch_figures import TTFT_EDGES

    figures, span = facts.figures, facts.span
    edges = [*TTFT_EDGES, None]
    return {
        "batch": batch_json(facts.status),
        "column_seconds": None if span is None else span.width,
        "over_time": [
            {"column": place, **{name: getattr(sums, name) for name in type(sums).__slots__}}
            for place, sums in sorted(figures.over_time.items())
        ],
        "completion_tokens": [
            {"tokens": tokens, "answers": count} for tokens, count in sorted(figures.lengths.items())
        ],
        "ttft": [{"at_most_seconds": edges[place], "answers": count} for place, count in sorted(figures.ttft.items())],
        "finish_reasons": dict(figures.finish_reasons),
        "runs": facts.runs.count,
    }
