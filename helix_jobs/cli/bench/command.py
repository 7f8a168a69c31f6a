"""``bench``: measure the engine, its modes and its peers, one command for each workload.

Torch is imported when a command runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bench.chart import check_chart_path, write_chart
from helix_jobs.bench.modes import all_modes, parse_speculation
from helix_jobs.bench.plan import BenchPlan
from helix_jobs.bench.workloads import WORKLOADS
from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.cli.bench.forecast import forecast
from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import (
    STANDARD_OUTPUT,
    comma_separated,
    json_option,
    peer_interpreters,
    read_batch_size,
    read_draft,
    read_peer,
    write_json,
)
from helix_jobs.cli.bench.queue import queue
from helix_jobs.cli.bench.schemas import schemas
from helix_jobs.cli.bench.serve import serve
from helix_jobs.cli.bench.structured import structured
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option
from helix_jobs.errors import ConfigurationError
from helix_jobs.settings import DTYPES, KV_CACHE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.bench.report import BenchReport
    from helix_jobs.bench.workloads import Workload
    from helix_jobs.settings import Settings

_DEFAULT_WORKLOAD: Final = "bulk"


class _BenchGroup(click.Group):
    """A group whose default command is ``bulk``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert ``bulk`` before an option, and if there is no argument."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [_DEFAULT_WORKLOAD, *args]
        return super().parse_args(ctx, args)


@click.group("bench", cls=_BenchGroup, short_help="Measure the engine, alone and beside its peers.")
def bench() -> None:
    """Measure the engine on this machine: throughput, latency, speculation, and where the time goes.

    Modes and peers take turns, round by round, in one call: compare figures of one call only. No database and no broker
    is involved, but for queue, which measures them. Without a workload's name it is bulk.
    """


def _bench_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of every workload."""
    options = (
        click.option("--target", metavar="MODEL", help="Target model [default: HELIX_TARGET_MODEL]."),
        click.option(
            "--draft",
            "drafts",
            callback=comma_separated(read_draft),
            metavar="DRAFT,...",
            help="What drafts: int8, lookup, a model, lookup+int8, lookup+MODEL, none; several are measured side by "
            "side [default: HELIX_DRAFT_MODEL].",
        ),
        click.option(
            "--speculation",
            "speculations",
            callback=comma_separated(parse_speculation),
            default="off,auto",
            show_default=True,
            metavar="MODE,...",
            help="off, a fixed depth (1 to 16), or auto; every one is measured.",
        ),
        click.option(
            "--batch-sizes",
            callback=comma_separated(read_batch_size),
            default="32",
            show_default=True,
            metavar="N,...",
            help="Sequences that run at once; every size is measured.",
        ),
        click.option(
            "--max-tokens", type=click.IntRange(1, MAX_NEW_TOKENS), help="New tokens of every request at most."
        ),
        click.option("--repeat", type=click.IntRange(1, 1000), default=3, show_default=True, help="Rounds."),
        click.option(
            "--against",
            "peers",
            callback=comma_separated(read_peer),
            metavar="PEER,...",
            help="Run peers on the same token ids: transformers, assisted (transformers with the draft model), vllm, "
            "openvino, llama (llama.cpp). All sides then decode greedily.",
        ),
        click.option(
            "--peer-python",
            multiple=True,
            metavar="[PEER=]PATH",
            help="The interpreter of one peer, or of all that are not named; repeatable [default: this one].",
        ),
        click.option(
            "--device",
            metavar="NAME",
            help="Device: directml, cuda, rocm, xpu, mps or cpu [default: HELIX_DEVICE, or the first available].",
        ),
        click.option("--dtype", type=click.Choice(DTYPES), help="Number format of the weights [default: HELIX_DTYPE]."),
        click.option(
            "--compile/--no-compile",
            "compile_kernels",
            default=None,
            help="CPU kernels compiled on this machine [default: HELIX_COMPILE, or where there is a C++ compiler].",
        ),
        click.option(
            "--kv-cache-mb", type=click.IntRange(min=1), help="Limit for keys and values [default: what fits]."
        ),
        click.option(
            "--kv-cache-dtype",
            type=click.Choice(KV_CACHE_DTYPES),
            help="Number format of keys and values [default: HELIX_KV_CACHE_DTYPE].",
        ),
        json_option,
        click.option(
            "--chart",
            "chart_file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Draw throughput over batch size into a .svg file.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _workload_options(workload: Workload, function: Callable[..., None]) -> Callable[..., None]:
    """The options that only some workloads have, if this one has them."""
    if workload.prompt_tokens is not None:
        what = "the shared system prompt" if len(workload.variants) > 1 else "each prompt"
        text = f"Tokens of {what} [default: {workload.prompt_tokens}]."
        function = click.option("--prompt-tokens", type=click.IntRange(1, 1_000_000), help=text)(function)
    if workload.reads_files:
        function = click.option("--seed", type=int, default=7, show_default=True, help="Which prompts --sample picks.")(
            function
        )
    if workload.requests:
        text = (
            f"Requests, picked at random [default: all of the file, or {workload.requests}]."
            if workload.reads_files
            else f"Requests [default: {workload.requests}]."
        )
        function = click.option("--sample", type=click.IntRange(1), metavar="N", help=text)(function)
    if workload.reads_files:
        function = click.option(
            "--prompts",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="JSONL file: lines as helix submit takes them, or Spec-Bench's questions [default: built-in prompts].",
        )(function)
    return function


def _command(workload: Workload) -> click.Command:
    def run(settings: Settings, **options: Any) -> None:  # noqa: ANN401  (click's own values)
        _run(settings, workload, **options)

    run.__doc__ = f"{workload.summary} New tokens: {workload.max_tokens} by default."
    decorated = _workload_options(workload, _bench_options(settings_option(run)))
    return click.command(
        workload.name, cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=workload.summary
    )(decorated)


def _run(settings: Settings, workload: Workload, **options: Any) -> None:  # noqa: ANN401  (as above)
    from helix_jobs.cli.bench.views import show_report
    from helix_jobs.cli.console import make_console

    json_file, chart_file = options.pop("json_file"), options.pop("chart_file")
    say = prepare(json_file)
    _check_files(json_file, chart_file)
    plan = _plan(settings, workload, **options)
    say("starting")
    from helix_jobs.bench.session import BenchSession

    session = BenchSession(plan, say)

    def report() -> None:
        found = session.report()
        _write(found, json_file, chart_file)
        if json_file != STANDARD_OUTPUT:
            show_report(make_console(), found)

    measure(session.run, report)


def _plan(
    settings: Settings,
    workload: Workload,
    *,
    speculations: tuple[str, ...],
    drafts: tuple[str, ...] | None,
    peers: tuple[str, ...] | None,
    peer_python: tuple[str, ...],
    **options: Any,  # noqa: ANN401  (as above)
) -> BenchPlan:
    modes = all_modes(drafts or (settings.draft_model,), speculations)
    interpreters = peer_interpreters(peers or (), peer_python)
    options["target"] = options["target"] or settings.target_model
    options["dtype"] = options["dtype"] or settings.dtype
    compile_kernels = options.pop("compile_kernels")
    options["reproducible"] = settings.reproducible
    options["compile"] = settings.compile if compile_kernels is None else "on" if compile_kernels else "off"
    options["device"] = options["device"] or settings.device
    options["kv_cache_mb"] = options["kv_cache_mb"] or settings.kv_cache_mb
    options["kv_cache_dtype"] = options["kv_cache_dtype"] or settings.kv_cache_dtype
    command = shlex.join(["helix", *sys.argv[1:]])
    return BenchPlan(
        command=command, workload=workload.name, modes=modes, peers=interpreters, home=settings.make_home(), **options
    )


def _check_files(json_file: str | None, chart_file: Path | None) -> None:
    """Refuse output files that cannot be written, before anything is measured."""
    if json_file in WORKLOADS:
        raise click.BadParameter(f"{json_file!r} is a workload; name it before the options.", param_hint="--json")
    if chart_file is not None:
        if not chart_file.absolute().parent.is_dir():
            raise click.BadParameter(f"the directory of {str(chart_file)!r} does not exist.", param_hint="--chart")
        try:
            check_chart_path(chart_file)
        except ConfigurationError as error:
            raise click.BadParameter(f"{error}.", param_hint="--chart") from error


def _write(report: BenchReport, json_file: str | None, chart_file: Path | None) -> None:
    write_json(report.to_json(), json_file)
    if chart_file is not None:
        write_chart(report, chart_file)


for _workload in WORKLOADS.values():
    bench.add_command(_command(_workload))
bench.add_command(queue)
bench.add_command(schemas)
bench.add_command(forecast)
bench.add_command(serve)
bench.add_command(structured)
