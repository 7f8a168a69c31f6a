"""LoadedBench: what bulk work loses while clients ask the server how it is and how far a batch is."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psutil

from helix_jobs.bench.bulk_work import BulkWork
from helix_jobs.bench.server_load import ServerLoad
from helix_jobs.errors import HelixError
from helix_jobs.intake.forms import COMPLETION_ENDPOINT
from helix_jobs.json_line import json_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.bench.percentiles import Percentiles
    from helix_jobs.client.client import HelixClient

HEALTH_RATE: Final = 1000.0
STATUS_RATE: Final = 200.0
_BOUNDARY: Final = "helix-bench"
_FORM: Final = (
    '--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\n'
    'Content-Disposition: form-data; name="file"; filename="bulk.jsonl"\r\n\r\n{content}\r\n--{boundary}--\r\n'
)
_ANSWER_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How to load the server.

    Attributes:
        turns: How often each side is measured, one after the other.
        seconds: How long a turn takes.
        max_tokens: New tokens of a bulk job.
        is_apart: The worker has one processor for itself; server, clients and broker have the others.
    """

    turns: int
    seconds: float
    max_tokens: int
    is_apart: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn. Processor time is in seconds of one processor for each second.

    Attributes:
        is_loaded: Whether clients asked meanwhile.
        bulk_tokens_per_second: Of the bulk work.
        worker: Processor time of the worker.
        server: Of the server.
        client: Of the threads that ask.
        health_per_second: Requests of ``/health`` that were answered, a second.
        health: Seconds to the answer.
        status_per_second: Requests of a batch's status that were answered, a second.
        status: Seconds to the answer.
        server_per_request: Seconds of processor time that a request took of the server.
        client_per_request: Of the client.
    """

    is_loaded: bool
    bulk_tokens_per_second: float
    worker: float
    server: float
    client: float
    health_per_second: float = 0.0
    health: Percentiles | None = None
    status_per_second: float = 0.0
    status: Percentiles | None = None
    server_per_request: float | None = None
    client_per_request: float | None = None


class LoadedBench:
    """Measures turns without and with load.

    Args:
        client: Tells how the bulk work stands.
        address: The server's address.
        worker: The worker's process.
        server: The server's process.
        plan: How to load it.
        say: Receives one line for each thing that is done.
    """

    def __init__(
        self,
        client: HelixClient,
        address: str,
        *,
        worker: int,
        server: int,
        plan: LoadPlan,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._address = address
        self._processes = psutil.Process(worker), psutil.Process(server)
        self._plan = plan
        self._say = say
        # The id over HTTP of the batch that was handed in last.
        self._api_id = ""
        self._bulk = BulkWork(client, client.live_workers()[0].slots, plan.max_tokens, self._hand_in)
        self.turns: list[Turn] = []

    def run(self) -> None:
        """Measure.

        Raises:
            HelixError: The server refuses a request, or does not answer.
        """
        self._bulk.begin()
        for number in range(self._plan.turns):
            for is_loaded in (False, True):
                self._say(f"turn {number + 1} of {self._plan.turns}, {'with' if is_loaded else 'without'} load")
                self.turns.append(self._turn(is_loaded=is_loaded))
        self._bulk.cancel()

    def _turn(self, *, is_loaded: bool) -> Turn:
        self._bulk.fill()
        with ExitStack() as stack:
            health = status = None
            if is_loaded:
                health = stack.enter_context(ServerLoad(self._address, "/health", HEALTH_RATE))
                path = f"/v1/batches/{self._api_id}"
                status = stack.enter_context(ServerLoad(self._address, path, STATUS_RATE))
            loads = [load for load in (health, status) if load is not None]
            began, tokens, used = time.perf_counter(), self._bulk.tokens(), self._processor_seconds(loads)
            self._bulk.keep_up(self._plan.seconds)
            more, used_then = self._bulk.tokens() - tokens, self._processor_seconds(loads)
            seconds = time.perf_counter() - began
        worker, server, client = ((after - before) / seconds for before, after in zip(used, used_then, strict=True))
        asked = sum(load.answered for load in loads) / seconds
        return Turn(
            is_loaded=is_loaded,
            bulk_tokens_per_second=more / seconds,
            worker=worker,
            server=server,
            client=client,
            health_per_second=0.0 if health is None else health.answered / seconds,
            health=None if health is None else health.waits,
            status_per_second=0.0 if status is None else status.answered / seconds,
            status=None if status is None else status.waits,
            server_per_request=server / asked if asked else None,
            client_per_request=client / asked if asked else None,
        )

    def _processor_seconds(self, loads: Sequence[ServerLoad]) -> tuple[float, ...]:
        """Of the worker, the server and the threads that ask."""
        times = [process.cpu_times() for process in self._processes]
        return (*(each.user + each.system for each in times), sum(load.spent for load in loads))

    def _hand_in(self, requests: list[dict[str, Any]]) -> str:
        """Upload and create a batch over HTTP; returns its id for the client, once its jobs are stored."""
        lines = [
            {"custom_id": f"b{number}", "method": "POST", "url": COMPLETION_ENDPOINT, "body": body}
            for number, body in enumerate(requests)
        ]
        content = "".join(f"{json_line(line)}\n" for line in lines)
        form = _FORM.format(boundary=_BOUNDARY, content=content)
        file = self._asked("POST", "/v1/files", form, f"multipart/form-data; boundary={_BOUNDARY}")
        wanted = {"input_file_id": file["id"], "endpoint": COMPLETION_ENDPOINT, "completion_window": "24h"}
        batch = self._asked("POST", "/v1/batches", json_line(wanted), "application/json")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while batch["status"] == "validating" and time.monotonic() < deadline:
            time.sleep(0.1)
            batch = self._asked("GET", f"/v1/batches/{batch['id']}")
        if batch["status"] != "in_progress":
            raise HelixError(f"the server did not take the bulk work, which is {batch['status']}: {batch['errors']}")
        self._api_id = batch["id"]
        # Its name for the client is its id over HTTP.
        return next(status.id for status in self._client.list(1000) if status.name == self._api_id)

    def _asked(self, method: str, path: str, body: str = "", kind: str = "") -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(self._address).netloc, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, body.encode(), {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise HelixError(f"the server does not answer ({type(error).__name__})") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise HelixError(f"the server refuses {method} {path}: {text[:2000].decode(errors='replace')}")
        found: dict[str, Any] = json.loads(text)
        return found
