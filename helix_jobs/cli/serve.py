"""``serve``: answer HTTP requests in OpenAI's form."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.console import make_console
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, current_time_limits, helix_options
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.cli.streams import discard_output
from helix_jobs.observability.logging import configure_logging
from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


class _ServeCommand(HelixCommand):
    """A server's answers do not go to its standard output, so it also runs with that closed."""

    needs_output = False

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  (click's signature)
        """Run the server."""
        discard_output()
        return super().invoke(ctx)


@click.command("serve", cls=_ServeCommand, context_settings=CONTEXT_SETTINGS)
@setting_options("serve_host", "serve_port")
@click.option("--local", is_flag=True, help="Also run a worker, unless one runs already.")
@setting_options("log_format")
@helix_options
def serve(settings: Settings, *, local: bool, as_json: bool, **overrides: Any) -> None:  # noqa: ANN401  (click's own values)
    """Answer HTTP requests in OpenAI's form, until stopped.

    Requests become jobs of the queue, and answers rows of the results table. Workers answer them: start one with
    helix worker, or give --local. --json is --log-format json.
    """
    if as_json:
        overrides["log_format"] = "json"
    effective = with_options(settings, overrides)
    configure_logging(effective.log_level, effective.log_format)
    console = make_console()

    def say(line: str) -> None:
        console.print(printable(line), soft_wrap=True)

    from helix_jobs.api.access import Access
    from helix_jobs.api.server import Server
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.migration import ensure_schema

    Access.of(effective.api_keys, effective.serve_host)  # before a worker loads its models
    with ExitStack() as stack:
        if local:
            from helix_jobs.client.local_worker import LocalWorker
            from helix_jobs.worker.child import WorkerThread

            stack.enter_context(LocalWorker(effective, WorkerThread, on_progress=lambda line: say(f"{line} ...")))
        effective.make_home()
        database = Database(effective.database_url, current_time_limits())
        stack.callback(database.dispose)
        ensure_schema(database)

        server = Server(effective, database)
        # It listens already: who connects from now on is answered.
        say(f"Serving at {server.address}/v1, described at {server.address}/docs. Ctrl-C stops.")
        # The server ends in order first, and then lets the signal go on.
        with suppress(KeyboardInterrupt):
            server.run()
