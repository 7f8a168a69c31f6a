"""``worker``: load the models and drain the queue until told to stop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.console import make_console, show
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, current_time_limits, helix_options
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.cli.streams import discard_output
from helix_jobs.cli.views import facts_view
from helix_jobs.observability.logging import configure_logging
from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from helix_jobs.settings import Settings
    from helix_jobs.worker.banner import WorkerBanner

logger = logging.getLogger(__name__)


class _WorkerCommand(HelixCommand):
    """A worker's results do not go to its standard output, so it also runs with that closed."""

    needs_output = False

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (click's signature)
        """Run the worker."""
        discard_output()
        return super().invoke(ctx)


@click.command("worker", cls=_WorkerCommand, context_settings=CONTEXT_SETTINGS)
@setting_options(
    "target_model",
    "draft_model",
    "adapters",
    "device",
    "dtype",
    "compile",
    "reproducible",
    "max_batch_size",
    "interactive_slots",
    "token_budget",
    "speculation_depth",
    "kv_cache_mb",
    "kv_cache_dtype",
    "shutdown_grace",
    "job_timeout",
    "hours",
    "yield_when",
)
@click.option("--allow-shared-device", is_flag=True, help="Run although another worker of this host holds the device.")
@setting_options("metrics_port", "metrics_host", "log_format")
@helix_options
def worker(settings: Settings, *, allow_shared_device: bool, as_json: bool, **overrides: Any) -> None:  # noqa: ANN401  (click's own values)
    """Answer queued jobs until stopped. Flags override HELIX_* settings. --json is --log-format json.

    Ctrl-C or SIGTERM: finish what finishes within the grace time, hand the rest back, exit. A second Ctrl-C is
    immediate.
    """
    if as_json:
        overrides["log_format"] = "json"
    effective = with_options(settings, overrides)
    # Configure logging again: a worker logs its work at info, and a flag may have set the format.
    configure_logging(effective.log_level, effective.log_format)
    console = make_console()
    # Importing torch may take many seconds on a cold disk, and an empty screen looks like a hang.
    starting = "starting the worker"
    if effective.log_format == "json":
        logger.info(starting)
    else:
        _print_step(console, starting)
    from helix_jobs.worker.shifts import work_in_shifts

    time_limits = current_time_limits()
    if effective.log_format == "json":
        exit_code = work_in_shifts(effective, time_limits=time_limits, allow_shared_device=allow_shared_device)
    else:
        exit_code = work_in_shifts(
            effective,
            time_limits=time_limits,
            allow_shared_device=allow_shared_device,
            on_progress=lambda line: _print_step(console, line),
            on_ready=lambda banner: _print_banner(console, banner),
        )
    click.get_current_context().exit(exit_code)


def _print_step(console: Console, line: str) -> None:
    console.print(f"{printable(line)} ...", style="dim", soft_wrap=True)


def _print_banner(console: Console, banner: WorkerBanner) -> None:
    show(console, facts_view(banner.lines()))
    console.print("Ready. Ctrl-C finishes the running jobs and stops; twice stops at once.", soft_wrap=True)
