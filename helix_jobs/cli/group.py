"""The command group: lazily imported commands, ``submit`` as the default, and the reporting of errors."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import importlib
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from helix_jobs._version import __version__
from helix_jobs.cli.environment import misspelt_settings
from helix_jobs.cli.interrupts import stoppable
from helix_jobs.cli.sampling_options import SAMPLING_VARIABLES
from helix_jobs.cli.setting_options import setting_options
from helix_jobs.cli.streams import prepare_streams, require_output
from helix_jobs.errors import HelixError
from helix_jobs.json_line import json_line
from helix_jobs.observability.logging import configure_logging
from helix_jobs.redaction import redact
from helix_jobs.settings import Settings
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS, TimeLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.client.client import HelixClient

logger = logging.getLogger(__name__)

# In the order of the help page; imported when used.
_COMMANDS: Final = {
    "submit": "helix_jobs.cli.submit:submit",
    "preview": "helix_jobs.cli.preview:preview",
    "plan": "helix_jobs.cli.plan:plan",
    "status": "helix_jobs.cli.status:status",
    "list": "helix_jobs.cli.status:list_batches",
    "watch": "helix_jobs.cli.status:watch",
    "top": "helix_jobs.cli.top:top",
    "results": "helix_jobs.cli.results:results",
    "manifest": "helix_jobs.cli.manifest:manifest",
    "report": "helix_jobs.cli.report:report",
    "diff": "helix_jobs.cli.diff:diff",
    "cancel": "helix_jobs.cli.cancel:cancel",
    "retry": "helix_jobs.cli.cancel:retry",
    "pause": "helix_jobs.cli.pause:pause",
    "resume": "helix_jobs.cli.pause:resume",
    "notify": "helix_jobs.cli.notify:notify",
    "yield": "helix_jobs.cli.yielding:yield_device",
    "purge": "helix_jobs.cli.purge:purge",
    "worker": "helix_jobs.cli.worker:worker",
    "serve": "helix_jobs.cli.serve:serve",
    "db": "helix_jobs.cli.db:db",
    "models": "helix_jobs.cli.models:models",
    "doctor": "helix_jobs.cli.doctor:doctor",
    "bench": "helix_jobs.cli.bench.command:bench",
}
# docs/cli.md has the same words (a test compares them).
EXIT_CODES: Final = {
    0: "fine",
    1: "a job did not succeed (--wait, --local, watch); a worker cannot go on; doctor, models or db check found "
    "something; notify test was not delivered; a stored row cannot be read; the operating system reported an error",
    2: "wrong usage, input, setting or model; no such batch or job; a batch that has not ended, or whose submission "
    "did not finish; a file or standard output cannot be written",
    3: "broker or database unreachable or refusing, or the database's schema is not this version's, or its file was "
    "replaced",
    130: "interrupted: by Ctrl-C, SIGTERM or a closed terminal. submit says what has become of the batch",
}
INTERRUPTED: Final = 130
_REMEDIES: Final = {
    errno.ENOSPC: "; free some space there",
    errno.EDQUOT: "; free some space there",
    errno.EACCES: "; correct the permissions of it and of its directory, or name another place",
    errno.EPERM: "; correct the permissions of it and of its directory, or name another place",
    errno.EROFS: "; name another place",
    errno.EMFILE: "; allow this process more open files (ulimit -n)",
}
CONTEXT_SETTINGS: Final = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}


class HelixCommand(click.Command):
    """A command whose `HelixError` becomes one clear line on standard error and the error's exit code.

    Attributes:
        needs_output: Whether the command is useless without a standard output.
    """

    needs_output = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse empty names of files, and arguments that are not UTF-8: no database and no stream could take them."""
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            texts = value if isinstance(value, tuple | list) else [value]
            if any(_is_empty_name(parameter, text) for text in texts):
                raise click.BadParameter("is empty; give the name of a file.", ctx, parameter)
            if not isinstance(parameter.type, click.Path) and any(map(_is_half_text, texts)):
                raise click.BadParameter("holds bytes that are not UTF-8.", ctx, parameter)
        return rest

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (click's signature)
        """Run the command. Errors other than Helix's and the system's are bugs and keep their traceback."""
        try:
            if self.needs_output:
                require_output()
            with stoppable():
                return super().invoke(ctx)
        except HelixError as error:
            fail(ctx, error, str(error), error.exit_code)
        except KeyboardInterrupt as error:
            with suppress(OSError):  # the terminal may be what has gone
                click.echo("\nInterrupted.", err=True)
            print_notes(error)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone; click ends quietly
                raise
            where = f": {error.filename}" if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "")
            fail(ctx, error, f"{error.strerror or type(error).__name__}{where}{remedy}", HelixError.exit_code)


def print_notes(error: BaseException) -> None:
    """Print the error's notes: further failures, after the error itself."""
    for note in getattr(error, "__notes__", ()):
        print_error(redact(note))


class HelixGroup(click.Group):
    """Imports commands on first use; a first argument that is not a command is a file: ``submit FILE``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Every command, in the order of the help page."""
        return list(_COMMANDS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's signature)
        """End the help page with the exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        """Import the module of one command."""
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert ``submit`` before a file name or before an option of ``submit``."""
        if args and args[0] not in _COMMANDS and not ctx.resilient_parsing:
            first = args[0]
            own_options = {name for parameter in self.get_params(ctx) for name in parameter.opts}
            if first.startswith("-"):
                if first not in own_options:
                    args = ["submit", *args]
            elif _could_be_a_file(first):
                args = ["submit", *args]
            else:
                close = difflib.get_close_matches(first, _COMMANDS, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise click.UsageError(f"No command and no file is named {first!r}.{hint}", ctx)
        return super().parse_args(ctx, args)


@click.command("helix", cls=HelixGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="helix", message="%(prog)s %(version)s", help="Show the version and exit.")
def cli() -> None:
    """Bulk LLM generation on one box.

    Hand it a JSONL file of prompts; every prompt gets an answer, or a reason why not, in a SQL table.

    A first argument that is no command is taken as a file to submit: PROMPTS.jsonl is short for submit PROMPTS.jsonl.
    """


def main(
    argv: Sequence[str] | None = None, *, command: str | None = None, time_limits: TimeLimits = DEFAULT_TIME_LIMITS
) -> NoReturn:
    """Run the command line and exit.

    Args:
        argv: Arguments without the program's name; None takes the process's own.
        command: Run only this command instead of the group; ``worker.py`` runs ``worker``.
        time_limits: The time limits.
    """
    prepare_streams()
    target: click.Command | None = cli
    if command is not None:
        target = cli.get_command(click.Context(cli), command)
    if target is None:
        raise LookupError(f"no command is named {command!r}")
    try:
        target.main(args=None if argv is None else list(argv), obj=time_limits)
    except HelixError as error:  # outside any command: its help finds no room
        print_error(str(error))
        raise SystemExit(error.exit_code) from error
    raise SystemExit(0)  # unreachable: click's standalone mode always exits


def helix_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json`` (as ``as_json``), ``--log-level``, logging and the settings as first argument."""
    flag = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs on standard output.")
    decorated: Callable[..., None] = flag(settings_option(function))
    return decorated


def settings_option(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--log-level``, logging and the settings as first argument."""

    @setting_options("log_level")
    @functools.wraps(function)
    def command(*args: Any, log_level: str | None, **kwargs: Any) -> None:  # noqa: ANN401  (passes click's arguments on)
        settings = Settings.from_environment()
        # A client's output already says what it logs at info, so its default level is one above a worker's.
        default = "warning" if settings.log_level == "info" else settings.log_level
        if log_level is not None:
            settings = dataclasses.replace(settings, log_level=log_level)
        configure_logging(log_level or default, settings.log_format)
        for sentence in misspelt_settings(os.environ, SAMPLING_VARIABLES):
            logger.warning("%s", sentence)
        function(settings, *args, **kwargs)

    return command


def open_client(settings: Settings) -> HelixClient:
    """The client, imported late: only commands that use it pay for SQLAlchemy and Celery."""
    from helix_jobs.client.client import HelixClient

    return HelixClient(settings, time_limits=current_time_limits())


def current_time_limits() -> TimeLimits:
    """The time limits that ``main`` was given."""
    return click.get_current_context().find_object(TimeLimits) or DEFAULT_TIME_LIMITS


def fail(ctx: click.Context, error: BaseException, message: str, exit_code: int, **details: object) -> NoReturn:
    """Print the error on standard error, with ``--json`` also on standard output, and exit."""
    message = redact(message)
    logger.debug("traceback of the error below", exc_info=error)
    if ctx.params.get("as_json") and sys.stdout is not None:
        body = {"type": type(error).__name__, "message": message, "exit_code": exit_code}
        echo_json({"error": {**body, **details}})
    print_error(message)
    print_notes(error)
    ctx.exit(exit_code)


def print_error(message: str) -> None:
    """Print one line on standard error, in the form of click's usage errors."""
    from helix_jobs.plain_text import printable

    # click does not know https://no-color.org, which Rich obeys.
    color = False if os.environ.get("NO_COLOR") else None
    with suppress(OSError):  # without standard error, the exit code still tells
        click.secho("Error: ", fg="red", bold=True, nl=False, err=True, color=color)
        click.echo(printable(message), err=True)


def echo_json(value: object, *, one_line: bool = False) -> None:
    """Print one JSON value: indented for a terminal unless ``one_line``, on one line for a pipe."""
    indent = 2 if sys.stdout.isatty() and not one_line else None
    # Escapes keep the output valid where the stream's encoding (such as cp1252) lacks characters.
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=indent, ensure_ascii=not utf8) if indent or not utf8 else json_line(value)
    if sys.stdout.isatty():
        from helix_jobs.plain_text import escape_in_json

        text = escape_in_json(text)
    click.echo(text)


def command_line(*arguments: str) -> str:
    """Another Helix command as this person would type it, for hints: ``python submit.py watch b-...``."""
    program = click.get_current_context().find_root().info_name or "helix"
    if program.endswith(".py"):
        if arguments[0] == "worker":
            program, arguments = str(Path(program).with_name("worker.py")), arguments[1:]
        program = f"python {program}"
    return " ".join((program, *arguments))


def _is_empty_name(parameter: click.Parameter, value: object) -> bool:
    """Whether it should name a file, and is empty. pathlib makes the folder at hand of an empty text."""
    if isinstance(parameter.type, click.Path):
        return value == "" or (value == Path() and not parameter.type.dir_okay)
    return value == "" and parameter.metavar == "FILE"


def _is_half_text(value: object) -> bool:
    """Whether an argument held bytes that are not UTF-8; Python keeps these as halves of surrogate pairs."""
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _could_be_a_file(argument: str) -> bool:
    separators = [".", "/", "\\", *filter(None, (os.sep, os.altsep))]
    return any(separator in argument for separator in separators) or Path(argument).exists()
