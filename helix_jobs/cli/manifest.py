"""``manifest``: what made a batch's answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.console import clock_time, make_console, show, timestamp
from helix_jobs.cli.group import HelixCommand, echo_json, helix_options, open_client
from helix_jobs.plain_text import printable
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.table import Table

    from helix_jobs.settings import Settings
    from helix_jobs.storage.manifests import Maker, Manifest

# A part of a setup -> what it is called.
_WORDS: Final[Mapping[str, str]] = {
    "helix": "Helix",
    "engine": "Engine",
    "target": "Target",
    "draft": "Draft",
    "adapters": "Adapters",
    "dtype": "Dtype",
    "device": "Device",
    "kernels": "Kernels",
    "speculation_depth": "Depth",
    "is_reproducible": "Same in any company",
    "max_batch_size": "Slots",
    "max_model_len": "Context",
    "kv_cache_bytes": "KV cache bytes",
    "libraries": "Libraries",
    "python": "Python",
    "system": "System",
}


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
        rows(_answered(makers))
    if not found.makers:
        table.add_row("", "")
        table.add_row("Workers", "none has ended a job of it yet")
    return table


def alike(makers: Sequence[Maker]) -> list[list[Maker]]:
    """Workers in groups: those of a group differ in nothing that their answers depend on."""
    groups: dict[str, list[Maker]] = {}
    for maker in makers:
        known = json.dumps([maker.setup, maker.target_model, maker.draft_model, maker.device], sort_keys=True)
        groups.setdefault(known, []).append(maker)
    return list(groups.values())


def _asked(found: Manifest) -> Iterator[tuple[str, str]]:
    yield "Batch", found.batch_id
    if found.name:
        yield "Name", found.name
    if found.source:
        yield "Source", found.source
    yield "Created", clock_time(found.created_at)
    yield "Jobs", "being submitted" if found.total is None else f"{found.total:,}"
    if found.content_digest:
        yield "Lines' digest", found.content_digest
    defaults = dict(found.defaults)
    if (table := defaults.pop("table", None)) is not None:
        yield "Rows read", f"{table['rows']:,}"
        yield "Rows' digest", table["digest"]
    for name, value in defaults.items():
        yield f"Default {name}", _text(value)
    for name, value in found.metadata.items():
        yield f"Metadata {name}", _text(value)


def _answered(makers: Sequence[Maker]) -> Iterator[tuple[str, str]]:
    named = ", ".join(f"{maker.worker_id} ({counted(maker.jobs, 'job')})" for maker in makers)
    yield ("Worker" if len(makers) == 1 else "Workers"), named
    setup = makers[0].setup
    if setup is not None:
        for key, value in setup.items():
            yield _WORDS.get(key, key), _text(value)
        return
    known = {"Target": makers[0].target_model, "Draft": makers[0].draft_model, "Device": makers[0].device}
    yield from ((label, value) for label, value in known.items() if value)
    yield "Setup", "not known: an older version of Helix answered, or its row is gone"


def _text(value: Any) -> str:  # noqa: ANN401  (JSON)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and set(value) <= {"name", "digest"} and "name" in value:
        digest = f", sha256 {value['digest']}" if "digest" in value else ""
        return f"{value['name']}{digest}"
    if isinstance(value, dict) and value and all(isinstance(inner, str) for inner in value.values()):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return json.dumps(value, ensure_ascii=False)
