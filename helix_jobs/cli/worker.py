"""``worker``: load the models and drain the queue until told to stop. The one command that imports torch."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.console import make_console, printable, show
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, current_timing, helix_options
from helix_jobs.cli.streams import discard_output
from helix_jobs.cli.views import facts_view
from helix_jobs.observability.logging import configure_logging
from helix_jobs.settings import DTYPES, LOG_FORMATS, MAX_DEPTH

if TYPE_CHECKING:
    from rich.console import Console

    from helix_jobs.settings import Settings
    from helix_jobs.worker.banner import WorkerBanner

logger = logging.getLogger(__name__)


def _read_depth(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Check it here, so that the error names the flag."""
    if text is not None and text != "auto" and not (text.isascii() and text.isdecimal() and int(text) <= MAX_DEPTH):
        raise click.BadParameter(f"{text!r}; give auto, or a whole number from 0 (off) to {MAX_DEPTH}")
    return text


class _WorkerCommand(HelixCommand):
    """The worker's work is not what it prints: it runs with its standard output closed, too."""

    needs_output = False

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (click's signature)
        """Run the worker."""
        discard_output()
        return super().invoke(ctx)


@click.command("worker", cls=_WorkerCommand, context_settings=CONTEXT_SETTINGS)
@click.option("--target", "target_model", metavar="MODEL", help="Target model: hub id, directory, .gguf file, or demo.")
@click.option(
    "--draft",
    "draft_model",
    metavar="DRAFT",
    help="What drafts: a model, int8 (a copy of the target), lookup, lookup+int8, lookup+MODEL, or none.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Device: directml, cuda, rocm, xpu, mps or cpu, with an index such as cuda:1; default: the first available.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Number format of the weights; int8 quantises the target too.")
@click.option(
    "--compile/--no-compile",
    "compile",
    default=None,
    callback=lambda _context, _option, value: None if value is None else "on" if value else "off",
    help="CPU kernels compiled on this machine; default: where there is a C++ compiler.",
)
@click.option(
    "--reproducible",
    is_flag=True,
    default=None,
    callback=lambda _context, _option, value: "on" if value else None,
    help="The same answers in any company at any price; default: where that costs next to nothing.",
)
@click.option(
    "--max-batch-size", type=click.IntRange(1, 4096), help="Sequences that run at once; default: what the device likes."
)
@click.option(
    "--token-budget",
    type=click.IntRange(16, 1_048_576),
    help="Prompt tokens a step computes at most; default: what the device likes.",
)
@click.option(
    "--speculation-depth",
    metavar="auto|K",
    callback=_read_depth,
    help="Tokens drafted ahead: auto chooses each step by what pays, 0 to 16 is fixed, 0 turns speculation off.",
)
@click.option(
    "--kv-cache-mb", type=click.IntRange(min=1), help="Memory for keys and values; default: from free memory."
)
@click.option(
    "--shutdown-grace",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a stopping worker finishes jobs.",
)
@click.option(
    "--job-timeout",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long a job may run before it fails with code deadline; default: as long as it takes.",
)
@click.option("--allow-shared-device", is_flag=True, help="Run although another worker of this host holds the device.")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65_535), help="Serve Prometheus metrics on this port; default: not at all."
)
@click.option("--metrics-host", metavar="ADDRESS", help="Address to serve them on; default: this machine only.")
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="json writes one object a line.")
@helix_options
def worker(settings: Settings, *, allow_shared_device: bool, as_json: bool, **overrides: Any) -> None:  # noqa: ANN401  (click's own values)
    """Answer queued jobs until stopped. Flags override HELIX_* settings. --json is --log-format json.

    Ctrl-C or SIGTERM: finish what finishes within the grace time, hand the rest back, exit. A second Ctrl-C is
    immediate.
    """
    if as_json:
        overrides["log_format"] = "json"
    given = {name: value for name, value in overrides.items() if value is not None}
    if "speculation_depth" in given:
        given["speculation_depth"] = None if given["speculation_depth"] == "auto" else int(given["speculation_depth"])
    effective = dataclasses.replace(settings, **given)
    # A worker says what it does at info; its format may have come by flag.
    configure_logging(effective.log_level, effective.log_format)
    console = make_console()
    # Importing torch may take many seconds on a cold disk; an empty screen looks like a hang.
    starting = "starting the worker"
    if effective.log_format == "json":
        logger.info(starting)
    else:
        _print_step(console, starting)
    from helix_jobs.worker.process import run_worker

    timing = current_timing()
    if effective.log_format == "json":
        exit_code = run_worker(effective, timing=timing, allow_shared_device=allow_shared_device)
    else:
        exit_code = run_worker(
            effective,
            timing=timing,
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
