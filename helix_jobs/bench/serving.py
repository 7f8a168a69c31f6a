"""ServingBench: how long a client of ``helix serve`` waits for the first piece of its answer.

Alone, and beside bulk work that fills every batch slot. The server and the worker are processes of their own, with a
broker and a database of their own; the client asks one request after the other. With a plan of load it measures instead
what bulk work loses to clients that only ask how things are (``loaded.py``).
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from helix_jobs.bench.loaded import LoadedBench
from helix_jobs.bench.machine import Machine
from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.bench.prompts import task
from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.client.client import HelixClient
from helix_jobs.errors import HelixError
from helix_jobs.json_line import compact_json
from helix_jobs.python_child import import_path, python_command
from helix_jobs.settings import sqlite_url
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import upgrade
from helix_jobs.storage.results import answers_of
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.bench.loaded import LoadPlan, Turn
    from helix_jobs.settings import Settings

_START_SECONDS: Final = 900.0  # a large model takes minutes
_REQUEST_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 30.0
_WORKER_READY: Final = "Ready."
_SERVER_READY: Final = "Serving at "
# Bulk jobs for each slot, so that slots are filled anew while requests are measured.
_BULK_PER_SLOT: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """What to measure.

    Attributes:
        command: The command line.
        requests: Requests of each part.
        max_tokens: New tokens of a request, and of a bulk job, at most.
        load: Measure this instead; None measures waits.
    """

    command: str
    requests: int
    max_tokens: int
    load: LoadPlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """One part; times in seconds.

    Attributes:
        beside: ``nothing`` or ``bulk``.
        first_piece: From sending a request to the first piece of its answer.
        engine: The engine's own part of it: from the request's admission to its first token.
        above: The difference of the two: network, database, broker, and the wait for a slot.
        bulk_tokens_per_second: Of the bulk work, while the requests were measured.
    """

    beside: str
    first_piece: Percentiles | None
    engine: Percentiles | None
    above: Percentiles | None
    bulk_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingReport:
    """All parts, and where they were measured."""

    command: str
    started_at: str
    machine: Machine
    target: str
    parts: tuple[Waits, ...]
    turns: tuple[Turn, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class ServingBench:
    """One call of ``helix bench serve``. ``report`` may be called at any time.

    Args:
        settings: The worker's; broker, database and port are replaced.
        plan: What to measure.
        say: Receives one line for each thing that is done.
    """

    def __init__(self, settings: Settings, plan: ServingPlan, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._plan = plan
        self._say = say
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._parts: list[Waits] = []
        self._turns: list[Turn] = []

    def report(self) -> ServingReport:
        """The results so far."""
        return ServingReport(
            command=self._plan.command,
            started_at=self._started_at,
            machine=Machine.here(),
            target=self._settings.target_model,
            parts=tuple(self._parts),
            turns=tuple(self._turns),
        )

    def run(self) -> None:
        """Measure.

        Raises:
            HelixError: Worker or server do not start, or refuse a request; or the bulk work is too short.
        """
        with ExitStack() as stack:
            # The path is short, because a socket's path has a length limit.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hx-bench-")))
            broker = EmbeddedBroker(directory)
            broker.start()
            stack.callback(broker.stop)
            settings = replace(
                self._settings, redis_url=broker.url, database_url=sqlite_url(directory / "helix.db"), serve_port=0
            )
            database = Database(settings.database_url)
            stack.callback(database.dispose)
            upgrade(database)
            self._say("starting a worker")
            worker, _ = _start(stack, settings, "worker", _WORKER_READY, directory)
            server, line = _start(stack, settings, "serve", _SERVER_READY, directory)
            address = line.split()[2].removesuffix(",").removesuffix("/v1")
            self._say("warming up")
            self._ask(address, 0)
            with HelixClient(settings) as client:
                if self._plan.load is not None:
                    loaded = LoadedBench(
                        client, address, worker=worker, server=server, plan=self._plan.load, say=self._say
                    )
                    self._turns = loaded.turns
                    loaded.run()
                    return
                self._parts.append(self._measure(database, address, "nothing"))
                slots = client.live_workers()[0].slots
                self._parts.append(self._beside_bulk(database, address, client, slots))

    def _beside_bulk(self, database: Database, address: str, client: HelixClient, slots: int) -> Waits:
        self._say("filling the batch with bulk work")
        lines = [
            {"prompt": task(number), "max_tokens": self._plan.max_tokens, "ignore_eos": True}
            for number in range(slots * _BULK_PER_SLOT)
        ]
        batch_id = client.submit(lines).batch_id
        while (status := client.status(batch_id)).counts[JobState.RUNNING] < slots:
            if status.done:
                raise HelixError("the bulk work ended before it had filled the batch; give a larger --max-tokens")
            time.sleep(0.1)
        began, before = time.perf_counter(), client.status(batch_id).completion_tokens
        waits = self._measure(database, address, "bulk")
        tokens = client.status(batch_id).completion_tokens - before
        client.cancel(batch_id)
        return replace(waits, bulk_tokens_per_second=tokens / (time.perf_counter() - began))

    def _measure(self, database: Database, address: str, beside: str) -> Waits:
        firsts, engines = [], []
        for number in range(1, self._plan.requests + 1):
            self._say(f"beside {beside}: request {number} of {self._plan.requests}")
            first, job_id = self._ask(address, number)
            with database.read() as connection:
                answer = answers_of(connection, job_id)[0]
            if answer.ttft_seconds is not None:
                firsts.append(first)
                engines.append(answer.ttft_seconds)
        return Waits(
            beside=beside,
            first_piece=Percentiles.of(firsts),
            engine=Percentiles.of(engines),
            above=Percentiles.of([first - own for first, own in zip(firsts, engines, strict=True)]),
        )

    def _ask(self, address: str, number: int) -> tuple[float, int]:
        """Seconds to the first piece of an answer, and the job's id.

        Raises:
            HelixError: The server refuses the request, or its stream breaks.
        """
        prompt = f"{number}. {task(number)}"
        body = compact_json({"prompt": prompt, "max_tokens": self._plan.max_tokens, "stream": True})
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=_REQUEST_SECONDS)
        try:
            began = time.perf_counter()
            connection.request("POST", "/v1/completions", body.encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise HelixError(f"the server refuses a request: {answer.read(2000).decode(errors='replace')}")
            line = answer.readline()
            first = time.perf_counter() - began
            rest = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise HelixError(f"the server does not answer ({type(error).__name__})") from error
        finally:
            connection.close()
        if not rest.endswith(b"data: [DONE]\n\n"):
            raise HelixError("an answer broke off; the server's log has more")
        return first, int(json.loads(line.removeprefix(b"data: "))["id"].removeprefix("cmpl-"))


def _start(stack: ExitStack, settings: Settings, command: str, ready: str, directory: Path) -> tuple[int, str]:
    """Start a process that ends with the stack; returns its number, and the line that says that it is ready.

    Raises:
        HelixError: It does not become ready.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
    log = directory / f"{command}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (our own modules, no shell)
            python_command("-m", "helix_jobs", command),
            env={**clean, **import_path(), **settings.to_environment(), "COLUMNS": "500"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(_stop, process)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = next((line for line in lines if line.startswith(ready)), None)
        if found is not None:
            return process.pid, found
        if process.poll() is not None or time.monotonic() > deadline:
            raise HelixError(f"helix {command} did not start: {' | '.join(lines[-5:]) or '(no output)'}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
