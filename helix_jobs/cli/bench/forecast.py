"""``bench forecast``: how good forecasts are. Everything heavy is imported when it runs."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bench.forecast_shapes import SHAPES
from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import STANDARD_OUTPUT, comma_separated, json_option, write_json
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.wording import percent

if TYPE_CHECKING:
    from rich.console import Console

    from helix_jobs.bench.forecast_bench import Calibration, ForecastReport, Guess
    from helix_jobs.settings import Settings

_SUMMARY: Final = "How often batches end within the range that was forecast, and how far off it was."


@click.command("forecast", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=_SUMMARY)
@click.option(
    "--targets",
    callback=comma_separated(str),
    metavar="MODEL,...",
    help="Target models; each runs every shape. [default: HELIX_TARGET_MODEL]",
)
@click.option(
    "--shapes",
    type=click.IntRange(1, len(SHAPES)),
    default=len(SHAPES),
    show_default=True,
    metavar="N",
    help="The first N shapes of batches.",
)
@click.option(
    "--rows", type=click.IntRange(8, 100_000), default=240, show_default=True, help="Rows of the largest batches."
)
@click.option(
    "--trial-seconds",
    type=click.FloatRange(0.1, 3600),
    default=60.0,
    show_default=True,
    help="Break a trial off after so many seconds.",
)
@setting_options("device", "dtype", "compile", "kv_cache_mb")
@json_option
@settings_option
def forecast(
    settings: Settings,
    *,
    targets: tuple[str, ...] | None,
    shapes: int,
    rows: int,
    trial_seconds: float,
    json_file: str | None,
    **overrides: Any,  # noqa: ANN401  (click's own values)
) -> None:
    """Forecast batches of many shapes, run them, and say how often the truth lay in the range.

    Shapes differ in lengths of prompts and answers, batch size, draft, schema and sampling. Each batch is forecast
    before it begins, as `plan` does it, and at half time, as `status` does it. A worker of its own runs it, with a
    database and a broker in a temporary directory.
    """
    from helix_jobs.cli.console import make_console

    say = prepare(json_file)
    from helix_jobs.bench.forecast_bench import ForecastBench, ForecastBenchPlan

    effective = with_options(settings, overrides)
    effective.make_home()
    plan = ForecastBenchPlan(
        command=shlex.join(["helix", *sys.argv[1:]]),
        targets=targets or (settings.target_model,),
        shapes=shapes,
        rows=rows,
        trial_seconds=trial_seconds,
    )
    bench = ForecastBench(effective, plan, say)

    def report() -> None:
        found = bench.report()
        write_json(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            _show(make_console(), found)

    measure(bench.run, report)


def _show(console: Console, report: ForecastReport) -> None:
    from rich.table import Table

    console.print(
        f"{report.machine.cpu}, {report.machine.threads} threads; seconds since a batch began", soft_wrap=True
    )
    table = Table("BATCH", "MODEL", "ROWS", "TRIED", "TOOK", "AT THE START", "ERROR", "AT HALF TIME", "ERROR", box=None)
    for case in report.cases:
        table.add_row(
            *(case.name, case.target, f"{case.rows:,}", f"{case.sampled:,}", f"{case.start.truth:,.1f}"),
            *_guess_words(case.start),
            *_guess_words(case.half),
        )
    console.print(table)
    for moment, found in (("the start", report.start), ("half time", report.half)):
        if found is not None:
            console.print(_calibration_words(moment, found), soft_wrap=True)


def _guess_words(guess: Guess | None) -> tuple[str, str]:
    if guess is None:
        return "", ""
    mark = "" if guess.is_inside else " missed"
    return f"{guess.median:,.1f} ({guess.low:,.1f} to {guess.high:,.1f}){mark}", f"{guess.error:+.0%}"


def _calibration_words(moment: str, found: Calibration) -> str:
    return (
        f"At {moment}: {percent(found.inside)} of {found.batches} batches within the range, "
        f"median error {found.error:.1%}, median bias {found.bias:+.1%}"
    )
