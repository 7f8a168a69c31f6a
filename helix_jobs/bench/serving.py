"""ServingBench: how long a client of ``helix serve`` waits for the first piece of its answer.

Alone, and beside bulk work that fills every batch slot. The server and the worker are processes of their own, with a
broker and a database of their own; the client asks one request after the other. With a plan of load it measures instead
what bulk work loses to clients that only ask how things are (``loaded.py``).
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from helix_jobs.bench.bulk_work import BulkWork
from helix_jobs.bench.loaded import LoadedBench
from helix_jobs.bench.machine import Machine
from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.bench.processes import start_process
from helix_jobs.bench.processors import ProcessorShare
from helix_jobs.bench.prompts import task
from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.client.client import HelixClient
from helix_jobs.database_url import sqlite_url
from helix_jobs.errors import HelixError
from helix_jobs.json_line import compact_json
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import upgrade
from helix_jobs.storage.results import answers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helix_jobs.bench.loaded import LoadPlan, Turn
    from helix_jobs.settings import Settings

_REQUEST_SECONDS: Final = 600.0
_WORKER_READY: Final = "Ready."
_SERVER_READY: Final = "Serving at "
# Bulk work is measured alone and beside requests in so many turns.
_TURNS: Final = 4


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
        bulk_alone_tokens_per_second: Of the bulk work without them, in turns with it, for as long.
    """

    beside: str
    first_piece: Percentiles | None
    engine: Percentiles | None
    above: Percentiles | None
    bulk_tokens_per_second: float | None = None
    bulk_alone_tokens_per_second: float | None = None


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """Requests of one part: seconds to the first piece, and the engine's own part of them."""

    firsts: list[float] = field(default_factory=list)
    engines: list[float] = field(default_factory=list)

    def waits(self, beside: str, bulk: float | None = None, bulk_alone: float | None = None) -> Waits:
        """The part's figures."""
        return Waits(
            beside=beside,
            first_piece=Percentiles.of(self.firsts),
            engine=Percentiles.of(self.engines),
            above=Percentiles.of([first - own for first, own in zip(self.firsts, self.engines, strict=True)]),
            bulk_tokens_per_second=bulk,
            bulk_alone_tokens_per_second=bulk_alone,
        )


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
            HelixError: Worker or server do not start, or refuse a request; or no processor can be kept for the worker.
        """
        with ExitStack() as stack:
            # The path is short, because a socket's path has a length limit.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hx-bench-")))
            share = ProcessorShare() if self._plan.load is not None and self._plan.load.is_apart else None
            if share is not None:
                stack.callback(share.take_all)
                share.take_others()
            broker = EmbeddedBroker(directory)
            broker.start()
            stack.callback(broker.stop)
            settings = replace(
                self._settings,
                redis_url=broker.url,
                database_url=sqlite_url(directory / "helix.db"),
                serve_port=0,
                answer_cache="off",  # what comes again is to be computed again
            )
            database = Database(settings.database_url)
            stack.callback(database.dispose)
            upgrade(database)
            self._say("starting a worker")
            if share is not None:
                share.take_first()
            worker, _ = start_process(stack, settings, "worker", _WORKER_READY, directory)
            if share is not None:
                share.take_others()
            server, line = start_process(stack, settings, "serve", _SERVER_READY, directory)
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
                alone = _Asked()
                self._ask_some(database, address, range(self._plan.requests), None, alone)
                self._parts.append(alone.waits("nothing"))
                slots = client.live_workers()[0].slots
                self._parts.append(self._beside_bulk(database, address, client, slots))

    def _beside_bulk(self, database: Database, address: str, client: HelixClient, slots: int) -> Waits:
        self._say("filling the batch with bulk work")
        bulk = BulkWork(
            client, slots, self._plan.max_tokens, lambda requests: client.submit(requests, cache=False).batch_id
        )
        bulk.begin()
        asked, requests = _Asked(), self._plan.requests
        turns = min(_TURNS, requests)
        seconds, tokens, tokens_alone = 0.0, 0, 0
        for turn in range(turns):
            bulk.fill()
            numbers = range(requests * turn // turns, requests * (turn + 1) // turns)
            began, before = time.perf_counter(), bulk.tokens()
            self._ask_some(database, address, numbers, bulk, asked)
            spent, between = time.perf_counter() - began, bulk.tokens()
            bulk.keep_up(spent)
            seconds += spent
            tokens += between - before
            tokens_alone += bulk.tokens() - between
        bulk.cancel()
        return asked.waits("bulk", tokens / seconds, tokens_alone / seconds)

    def _ask_some(
        self, database: Database, address: str, numbers: Iterable[int], bulk: BulkWork | None, asked: _Asked
    ) -> None:
        for number in numbers:
            beside = "nothing" if bulk is None else "bulk"
            self._say(f"beside {beside}: request {number + 1} of {self._plan.requests}")
            if bulk is not None:
                bulk.fill()
            first, job_id = self._ask(address, number + 1)
            with database.read() as connection:
                answer = answers_of(connection, job_id)[0]
            if answer.ttft_seconds is not None:
                asked.firsts.append(first)
                asked.engines.append(answer.ttft_seconds)

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
