"""``manifest``: what made a batch's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.console import clock_time, make_console, show, timestamp
from helix_jobs.cli.group import HelixCommand, echo_json, helix_options, open_client
from helix_jobs.plain_text import printable
from helix_jobs.reports.manifest_words import alike, makers_in_words, options_in_words
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from helix_jobs.settings import Settings
    from helix_jobs.storage.manifests import Manifest


@click.command("manifest", cls=HelixCommand, short_help="Show what made a batch's answers.")
@click.argument("batch")
@helix_options
def manifest(settings: Settings, batch: str, *, as_json: bool) -> None:
    """Show what made a batch's answers: what it was submitted with, and the workers that answered it.

    Of each worker: Helix' version, the models with the digests of their files, number type, device, kernels and
    libraries. Workers that are alike are shown once.
    """
    with open_client(settings) as client:
        found = client.manifest(batch)
    if as_json:
        echo_json(manifest_json(found))
    else:
        show(make_console(), manifest_view(found))


def manifest_json(found: Manifest) -> dict[str, Any]:
    """A manifest for programs."""
    return {
        "id": found.batch_id,
        "name": found.name,
        "source": found.source,
        "created_at": timestamp(found.created_at),
        "total": found.total,
        "content_digest": found.content_digest,
        "defaults": found.defaults,
        "metadata": found.metadata,
        "from_cache": found.from_cache,
        "workers": [
            {
                "id": maker.worker_id,
                "jobs": maker.jobs,
                "hostname": maker.hostname,
                "device": maker.device,
                "target_model": maker.target_model,
                "draft_model": maker.draft_model,
                "started_at": timestamp(maker.started_at),
                "setup": maker.setup,
            }
            for maker in found.makers
        ],
    }


def manifest_view(found: Manifest) -> Table:
    """A manifest for a person: each fact in a row."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def rows(facts: Iterator[tuple[str, str]]) -> None:
        for label, value in facts:
            table.add_row(Text(printable(label)), Text(printable(value)))

    rows(_asked(found))
    for makers in alike(found.makers):
        table.add_row("", "")
        rows(makers_in_words(makers))
    if not found.makers:
        table.add_row("", "")
        table.add_row("Workers", "none has ended a job of it yet")
    return table


def _asked(found: Manifest) -> Iterator[tuple[str, str]]:
    yield "Batch", found.batch_id
    if found.name:
        yield "Name", found.name
    if found.source:
        yield "Source", found.source
    yield "Created", clock_time(found.created_at)
    yield "Jobs", "being submitted" if found.total is None else f"{found.total:,}"
    if found.from_cache:
        yield "From cache", f"{counted(found.from_cache, 'answer')} that had been stored"
    if found.content_digest:
        yield "Lines' digest", found.content_digest
    yield from options_in_words(found.defaults, found.metadata)
