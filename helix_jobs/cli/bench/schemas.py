"""``bench schemas``: how much of JSON Schema structured output keeps. Everything heavy is imported when it runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import STANDARD_OUTPUT, json_option, write_json
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option
from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from helix_jobs.bench.schemas import SchemaReport
    from helix_jobs.settings import Settings

_SUMMARY: Final = "Check, compile and follow JSON schemas with valid and invalid instances."
_LISTED: Final = 10


@click.command("schemas", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=_SUMMARY)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="MODEL",
    help="A model's folder, for its tokenizer.",
)
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Schemas, picked at random [default: all].")
@json_option
@settings_option
def schemas(_settings: Settings, *, folder: Path, tokenizer: Path, sample: int | None, json_file: str | None) -> None:
    """Follow the schemas of FOLDER along their instances, and count what is refused, kept, and kept wrongly.

    FOLDER is maskbench/data of https://github.com/guidance-ai/jsonschemabench, or has files of its form: a schema, and
    tests with data and valid. Neither a database nor a model's weights are needed.
    """
    from helix_jobs.cli.console import make_console

    say = prepare(json_file)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder} holds no .json files; give maskbench/data of guidance-ai/jsonschemabench")
    if sample is not None and sample < len(files):
        files = sorted(random.Random(7).sample(files, sample))  # noqa: S311  (the same sample in each call)
    from helix_jobs.bench.schemas import SchemaBench, vocabulary_of

    bench = SchemaBench(files, vocabulary_of(tokenizer), say)

    def report() -> None:
        found = bench.report()
        write_json(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            _show(make_console(), found)

    measure(bench.run, report)


def _show(console: Console, report: SchemaReport) -> None:
    from rich.table import Table

    table = Table("", "", box=None, show_header=False)
    refused = sum(report.refused.values())
    instances = report.as_written + report.respelt + len(report.valid_refused)
    for name, value in (
        ("schemas", f"{report.schemas:,}"),
        ("kept and compiled", f"{report.compiled:,}"),
        ("refused with path and reason", f"{refused:,}"),
        ("refused by the library later", f"{len(report.not_compiled):,}"),
        ("valid instances of kept schemas", f"{instances:,}"),
        ("  taken as written", f"{report.as_written:,}"),
        ("  taken in the schema's order, or with another spelling of a number", f"{report.respelt:,}"),
        ("  refused", f"{len(report.valid_refused):,}"),
        ("invalid instances, in any spelling: refused", f"{report.invalid_refused:,}"),
        ("  accepted", f"{len(report.invalid_accepted):,}"),
        ("tokens", f"{report.tokens:,}"),
    ):
        table.add_row(name, value)
    for name, times, scale, unit in (
        ("check", report.check_seconds, 1e3, "ms"),
        ("compile", report.compile_seconds, 1e3, "ms"),
        ("mask", report.mask_seconds, 1e6, "us"),
    ):
        if times is not None:
            table.add_row(f"{name} p50 / p99", f"{times.p50 * scale:,.1f} / {times.p99 * scale:,.1f} {unit}")
    console.print(table)
    words = Table("REFUSED FOR", "SCHEMAS", box=None)
    for word, count in report.refused.items():
        words.add_row(word, f"{count:,}")
    console.print(words)
    for title, names in (
        ("valid, but refused", report.valid_refused),
        ("invalid, but accepted", report.invalid_accepted),
        ("not compiled", report.not_compiled),
    ):
        if names:
            console.print(f"{title}: {', '.join(names[:_LISTED])}", soft_wrap=True)
