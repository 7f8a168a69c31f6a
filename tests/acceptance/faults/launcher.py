"""Starts Helix's own command lines under a plan.

``python -m tests.acceptance.faults.launcher PLAN COMMAND ARGUMENT...`` is ``python worker.py ARGUMENT...`` (COMMAND
``worker``) or ``python submit.py ARGUMENT...`` (``submit``) after PLAN was applied.

With ``--serve`` in their place it imports everything once and forks a process for each request on standard input: the
quick scenarios start many workers, whose imports would take most of their time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import select
import sys
import tempfile
import warnings
from typing import Any

from tests.acceptance.faults.plan import Plan

_IMPORTED = (
    "alembic.command",
    "helix_jobs.cli.purge",
    "helix_jobs.cli.submit",
    "helix_jobs.cli.worker",
    "helix_jobs.client.client",
    "helix_jobs.broker.celery.consumer",
    "helix_jobs.storage.migration",
    "helix_jobs.broker.celery.pool",
    "helix_jobs.client.purge",
    "helix_jobs.broker.celery.task",
    "helix_jobs.worker.process",
    "helix_jobs.observability.logging",
    "helix_jobs.engine.fake_engine",
    "kombu.transport.redis",
    "psycopg",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)


def run(plan: Plan, command: str, arguments: list[str]) -> None:
    """Become the command; ends by SystemExit."""
    from helix_jobs.cli import main

    plan.apply()
    sys.argv = [f"{command}.py", *arguments]
    main(command="worker" if command == "worker" else None, time_limits=plan.effective_time_limits())


def serve() -> dict[str, Any]:
    """Fork a child for each request and report how children end; returns the request in a child."""
    for name in _IMPORTED:
        importlib.import_module(name)
    _tell({"ready": True})
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _tell({"ended": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})
        if not readable:
            continue
        chunk = os.read(0, 65_536)
        if not chunk:
            sys.exit()
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            if request["command"] == "serve":
                importlib.import_module("helix_jobs.api.server")
            pid = os.fork()
            if pid == 0:
                _become(request)
                return request
            _tell({"started": pid})


def _become(request: dict[str, Any]) -> None:
    """Make this child the process the request asks for."""
    os.setsid()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    warnings.simplefilter("error")
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()


def _tell(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        asked = serve()
        run(Plan.from_json(asked["plan"]), asked["command"], asked["arguments"])
    else:
        run(Plan.from_json(sys.argv[1]), sys.argv[2], sys.argv[3:])
