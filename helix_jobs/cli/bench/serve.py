"""``bench serve``: how long clients of the HTTP server wait. Everything heavy is imported when it runs."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import STANDARD_OUTPUT, json_option, write_json
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option
from helix_jobs.cli.setting_options import setting_options, with_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from helix_jobs.bench.loaded import Turn
    from helix_jobs.bench.percentiles import Percentiles
    from helix_jobs.bench.serving import ServingReport
    from helix_jobs.settings import Settings

_TURNS: Final = 3
_SUMMARY: Final = "The wait for the first piece of an answer over HTTP, alone and beside bulk work."


@click.command("serve", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=_SUMMARY)
@setting_options("target_model", "draft_model", "device", "dtype", "max_batch_size")
@click.option(
    "--requests", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Requests of each part."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MAX_NEW_TOKENS),
    default=64,
    show_default=True,
    help="New tokens of a request, and of a bulk job.",
)
@click.option(
    "--load",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Measure instead what bulk work loses to clients that ask how things are, in turns of so many seconds.",
)
@click.option(
    "--apart",
    is_flag=True,
    help="With --load: the worker on the first processor; server, clients and broker on the others.",
)
@json_option
@settings_option
def serve(
    settings: Settings,
    *,
    requests: int,
    max_tokens: int,
    load: float | None,
    apart: bool,
    json_file: str | None,
    **overrides: Any,  # noqa: ANN401  (click's own values)
) -> None:
    """Measure how long a client of helix serve waits for the first piece of its answer.

    A worker and a server of its own, with a database and a broker in a temporary directory. The first part has the
    worker for itself; beside the second one, bulk work fills every batch slot. The bulk work's speed is measured beside
    the requests and without them, in four turns of equal length.

    With --load, bulk work is measured alone and while clients ask for /health a thousand times a second and for a
    batch's status two hundred times a second, three times in turns. With --apart server, clients and broker leave the
    worker's processor to it, as where the worker's device is a GPU.
    """
    from helix_jobs.cli.console import make_console

    say = prepare(json_file)
    from helix_jobs.bench.loaded import LoadPlan
    from helix_jobs.bench.serving import ServingBench, ServingPlan

    command = shlex.join(["helix", *sys.argv[1:]])
    if apart and load is None:
        raise click.UsageError("--apart goes with --load; add --load SECONDS")
    load_plan = None if load is None else LoadPlan(turns=_TURNS, seconds=load, max_tokens=max_tokens, is_apart=apart)
    plan = ServingPlan(command=command, requests=requests, max_tokens=max_tokens, load=load_plan)
    bench = ServingBench(with_options(settings, overrides), plan, say)

    def report() -> None:
        found = bench.report()
        write_json(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            _show(make_console(), found)

    measure(bench.run, report)


def _show(console: Console, report: ServingReport) -> None:
    from rich.table import Table

    console.print(f"serve: {report.target}; {report.machine.cpu}, {report.machine.threads} threads", soft_wrap=True)
    if report.turns:
        _show_turns(console, report.turns)
        return
    console.print("Milliseconds to the first piece: 50th, 90th and 99th percentile", soft_wrap=True)
    table = Table("BESIDE", "FIRST PIECE", "ENGINE'S OWN", "ABOVE IT", "BULK TOKENS/S", "WITHOUT REQUESTS", box=None)
    for part in report.parts:
        rates = (part.bulk_tokens_per_second, part.bulk_alone_tokens_per_second)
        times = (_milliseconds(one) for one in (part.first_piece, part.engine, part.above))
        table.add_row(part.beside, *times, *("" if rate is None else f"{rate:,.0f}" for rate in rates))
    console.print(table)


def _show_turns(console: Console, turns: Sequence[Turn]) -> None:
    from rich.table import Table

    console.print(
        "Processor time in percent of one, and in microseconds a request; answers a second, and milliseconds to them",
        soft_wrap=True,
    )
    heads = ("LOAD", "BULK TOKENS/S", "WORKER", "SERVER", "", "CLIENT", "", "/HEALTH", "", "STATUS", "")
    table = Table(*heads, box=None)
    for turn in turns:
        worker, server, client = (f"{100 * share:,.1f} %" for share in (turn.worker, turn.server, turn.client))
        costs = (_microseconds(turn.server_per_request), _microseconds(turn.client_per_request))
        rates = (f"{turn.health_per_second:,.0f}", f"{turn.status_per_second:,.0f}")
        waits = (_milliseconds(turn.health), _milliseconds(turn.status))
        asked = (rates[0], waits[0], rates[1], waits[1]) if turn.is_loaded else ()
        name = "yes" if turn.is_loaded else "no"
        rate = f"{turn.bulk_tokens_per_second:,.0f}"
        table.add_row(name, rate, worker, server, costs[0], client, costs[1], *asked)
    console.print(table)


def _milliseconds(found: Percentiles | None) -> str:
    return "" if found is None else " ".join(f"{1000 * value:,.0f}" for value in (found.p50, found.p90, found.p99))


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e6 * seconds:,.0f} us"
