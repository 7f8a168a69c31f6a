"""``bench structured``: what a schema costs and saves. Everything heavy is imported when it runs."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bench.modes import OFF, all_modes, parse_speculation
from helix_jobs.bench.plan import BenchPlan
from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import (
    STANDARD_OUTPUT,
    comma_separated,
    json_option,
    read_batch_size,
    write_json,
)
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option
from helix_jobs.settings import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from helix_jobs.bench.measure import Measurement
    from helix_jobs.bench.structured import StructuredReport
    from helix_jobs.settings import Settings

_SUMMARY: Final = "Extraction with a schema, and the same work without one."


@click.command("structured", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=_SUMMARY)
@click.option("--target", metavar="MODEL", help="Target model [default: HELIX_TARGET_MODEL].")
@click.option("--draft", metavar="DRAFT", help="What drafts, as in the other commands [default: HELIX_DRAFT_MODEL].")
@click.option(
    "--speculation",
    callback=comma_separated(parse_speculation),
    default="auto",
    show_default=True,
    metavar="MODE",
    help="off, a fixed depth (1 to 16), or auto. What a grammar forces is drafted in each of them but off.",
)
@click.option(
    "--batch-sizes",
    callback=comma_separated(read_batch_size),
    default="1,8,32",
    show_default=True,
    metavar="N,...",
    help="Sequences that run at once; every size is measured.",
)
@click.option(
    "--max-tokens", type=click.IntRange(16, MAX_NEW_TOKENS), default=160, show_default=True, help="New tokens at most."
)
@click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Rounds.")
@click.option("--device", metavar="NAME", help="Device [default: HELIX_DEVICE, or the first available].")
@click.option("--dtype", type=click.Choice(DTYPES), help="Number format of the weights [default: HELIX_DTYPE].")
@json_option
@settings_option
def structured(
    settings: Settings,
    *,
    draft: str | None,
    speculation: tuple[str, ...],
    json_file: str | None,
    **options: Any,  # noqa: ANN401  (click's own values)
) -> None:
    """Extract records from short reports with a schema, and without one, round by round in turn.

    A second table has a batch of 32 in which half the rows have a schema, with speculation off, beside the same batch
    without. The reports are made up and built in.
    """
    from helix_jobs.cli.console import make_console

    say = prepare(json_file)
    options["target"] = options["target"] or settings.target_model
    options["dtype"] = options["dtype"] or settings.dtype
    options["device"] = options["device"] or settings.device
    plan = BenchPlan(
        command=shlex.join(["helix", *sys.argv[1:]]),
        workload="bulk",
        modes=all_modes((draft or settings.draft_model,), (speculation[0], OFF)),
        home=settings.make_home(),
        compile=settings.compile,
        reproducible=settings.reproducible,
        kv_cache_mb=settings.kv_cache_mb,
        kv_cache_dtype=settings.kv_cache_dtype,
        **options,
    )
    say("starting")
    from helix_jobs.bench.structured import StructuredBench

    bench = StructuredBench(plan, say)

    def report() -> None:
        found = bench.report()
        write_json(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            _show(make_console(), found)

    measure(bench.run, report)


def _show(console: Console, report: StructuredReport) -> None:
    from statistics import median

    from rich.table import Table

    console.print(f"{report.target}, {report.dtype}, {report.device}", soft_wrap=True)
    # Times come before rates: a schema's answers are of another length.
    columns = ("WORK", "BATCH", "SPECULATION", "FORM", "SECONDS", "TOKENS/S", "TOKENS", "ACCEPTED", "FORCED ACCEPTED")
    table = Table(*columns, box=None)
    for pair in report.pairs:
        for form, rounds in (("plain", pair.plain), ("schema", pair.held)):
            rates = [one.acceptance_rate for one in rounds if one.acceptance_rate is not None]
            table.add_row(
                *(pair.name, str(pair.batch_size), pair.speculation, form),
                f"{median(one.seconds for one in rounds):,.2f}",
                f"{median(one.output_tokens_per_second for one in rounds):,.1f}",
                f"{median(one.output_tokens for one in rounds):,.0f}",
                f"{median(rates):.0%}" if rates else "",
                _forced(rounds),
            )
    console.print(table)
    for pair in report.pairs:
        console.print(
            f"{pair.name}, batch {pair.batch_size}: with a schema {pair.time_ratio:.2f} times as fast done, "
            f"and {pair.rate_ratio:.2f} times the tokens/s",
            soft_wrap=True,
        )


def _forced(rounds: Sequence[Measurement]) -> str:
    """How many of a round's forced tokens the target accepted; nothing where nothing was forced."""
    from statistics import median

    forced = median(one.forced_tokens for one in rounds)
    accepted = median(one.accepted_forced_tokens for one in rounds)
    return f"{accepted:,.0f} of {forced:,.0f}" if forced else ""
