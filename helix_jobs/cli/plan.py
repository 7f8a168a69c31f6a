"""``plan``: what a file will need and when it will be done, before anything is submitted. Stores nothing."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.console import is_interactive, make_console, show, working
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, echo_json, helix_options
from helix_jobs.cli.moments import hours_of
from helix_jobs.cli.plan_views import plan_json, plan_view
from helix_jobs.cli.sampling_options import sampling_options, truncation_option
from helix_jobs.cli.schema_option import schema_option
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.cli.streams import standard_input
from helix_jobs.cli.table_options import InputPath, table_options
from helix_jobs.cli.views import bad_lines_view
from helix_jobs.client.alike import alike
from helix_jobs.errors import HelixError
from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from helix_jobs.cli.plan_views import Weights
    from helix_jobs.client.plan import Plan
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.settings import Settings
    from helix_jobs.tables.ask import TableAsk

_EXIT_BAD: Final = 2
_LISTED_FAULTS: Final = 20
_MINUTE: Final = 60.0


@click.command(
    "plan",
    cls=HelixCommand,
    context_settings=CONTEXT_SETTINGS,
    short_help="Say what a file will need and when it is done.",
)
@click.argument("file", metavar="FILE", type=InputPath(exists=True, readable=True, allow_dash=True))
@click.option("--by", metavar="TIME", help="Say how likely it is done by TIME: 07:00, or 2026-12-01T07:00.")
@click.option(
    "--sample", metavar="N|P%", help="Try so many lines, or this share of them. [default: 1%, and full batches]"
)
@click.option(
    "--trial-minutes",
    type=click.FloatRange(0.01, 24 * 60),
    default=3.0,
    show_default=True,
    metavar="M",
    help="Break the trial off after M minutes.",
)
@schema_option
@click.option(
    "--cache/--no-cache",
    default=None,
    help="As for submit: lines take stored answers of equal lines, or none.",
)
@setting_options(
    "target_model",
    "draft_model",
    "adapters",
    "device",
    "dtype",
    "compile",
    "reproducible",
    "max_batch_size",
    "token_budget",
    "speculation_depth",
    "kv_cache_mb",
    "kv_cache_dtype",
    "hours",
)
@table_options
@sampling_options
@truncation_option
@helix_options
def plan(
    settings: Settings,
    file: str,
    defaults: SamplingParams,
    truncate_prompt: TruncatePrompt | None,
    *,
    table: TableAsk | None,
    response_format: dict[str, Any] | None,
    cache: bool | None,
    by: str | None,
    sample: str | None,
    trial_minutes: float,
    as_json: bool,
    **overrides: Any,  # noqa: ANN401  (click's own values)
) -> None:
    """Say what FILE (- is standard input) will need on this machine, and when it would be done if it began now.

    Takes the options of `submit` that say what is asked, and those of `worker`. All prompts are counted exactly. A
    small sample, spread over lengths and limits, is answered for real; nothing is stored.

    Exit code 2 if there are bad lines.
    """
    from helix_jobs.cli.plan_cache import spared_lines
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.client.plan import SampleSize, plan_input
    from helix_jobs.engine.loading.open_engine import load_engine
    from helix_jobs.forecast.clock import read_moment

    effective = with_options(settings, overrides)
    until = None if by is None else read_moment(by, datetime.now(UTC), option="--by")
    size = None if sample is None else SampleSize.parse(sample)
    console = make_console(stderr=True)
    with ExitStack() as stack:
        say = stack.enter_context(_Saying(console))
        _warn_of_a_worker(effective, console)
        engine = load_engine(effective, say)
        stack.callback(engine.close)
        found = plan_input(
            effective,
            engine,
            standard_input() if file == "-" else file,
            LineDefaults(defaults, truncate_prompt),
            response_format=response_format,
            table=table,
            spared=spared_lines(effective, engine.info, wanted=cache, stack=stack, say=say),
            sample=size,
            trial_seconds=trial_minutes * _MINUTE,
            on_reading=lambda reading: say(f"reading {'standard input' if file == '-' else file} as {reading}"),
            on_progress=say if is_interactive(console) else lambda _line: None,
        )
    now = datetime.now(UTC)
    hours = hours_of(effective)
    weights = _weights(effective, found)
    if as_json:
        echo_json(plan_json(found, now, hours, until, weights))
    else:
        if found.survey.bad_lines:
            show(console, bad_lines_view(alike(found.survey.bad_lines)[:_LISTED_FAULTS]))
        show(make_console(), plan_view(found, now, hours, until, weights))
    if found.survey.bad_count:
        click.get_current_context().exit(_EXIT_BAD)


class _Saying:
    """Says what goes on: one line that changes on a terminal, a new line for each step in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()

    def __enter__(self) -> Callable[[str], None]:
        if not is_interactive(self._console):
            return lambda line: self._console.print(f"{printable(line)} ...", soft_wrap=True)
        status = self._stack.enter_context(working(self._console, "starting ..."))
        return lambda line: status.update(f"{printable(line)} ...")

    def __exit__(self, *_error: object) -> None:
        self._stack.close()


def _warn_of_a_worker(settings: Settings, console: Console) -> None:
    """Say so if a worker holds the device: the trial then measures what the worker leaves."""
    from helix_jobs.engine.loading.open_engine import device_name
    from helix_jobs.worker.device_lock import is_held, lock_directory

    if settings.engine != "endpoint" and is_held(lock_directory(settings.lock_dir), device_name(settings)):
        console.print(
            "A worker runs on this device. While it answers jobs, the trial measures what is left beside them.",
            style="yellow",
            soft_wrap=True,
        )


def _weights(settings: Settings, found: Plan) -> Weights | None:
    """Memory of the models; None where no model of this machine computes, or its files do not say."""
    from helix_jobs.cli.plan_views import Weights

    if settings.engine != "helix" or found.info.is_remote:
        return None
    from helix_jobs.doctor.model_report import examine, report_models

    try:
        report = report_models((settings.target_model,), settings, examine(settings))[0]
    except HelixError:
        return None
    if not report.fits:
        return None
    memory = report.fits[0].memory
    return Weights(memory.weights, memory.draft or 0)
