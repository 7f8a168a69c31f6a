"""What the machine lacks while a request is encoded is nobody's fault, and is waited for."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.bounds import INTERACTIVE_PRIORITY
from helix_jobs.errors import EngineBrokenError, EngineError, ExhaustedError, InvalidRequestError, OutOfMemoryError
from helix_jobs.storage.records import ClaimedJob
from helix_jobs.worker.request_encoder import RequestEncoder

if TYPE_CHECKING:
    from helix_jobs.engine.request import Request

NO_DESCRIPTOR = OSError(errno.EMFILE, "the prompt's text")
NO_THREAD = RuntimeError("can't start new thread")
SHORTAGES = [NO_DESCRIPTOR, OSError(errno.ENOMEM, "x"), OSError(errno.EAGAIN, "x"), NO_THREAD, MemoryError()]


@dataclass
class Machine:
    """An engine that encodes by a plan, and a clock that goes on by a second with each try."""

    plan: dict[str, list[Exception | None]]
    now: float = 0.0
    tries: list[str] = field(default_factory=list)

    def encode(self, request: Request) -> Request:
        self.now += 1.0
        self.tries.append(request.request_id)
        plan = self.plan.get(request.request_id, [])
        error = plan.pop(0) if len(plan) > 1 else plan[0] if plan else None
        if error is not None:
            raise error
        return request

    def encoder(self) -> RequestEncoder:
        engine: Any = self
        return RequestEncoder(engine, patience=5.0, pause=0.0, clock=lambda: self.now)


def claim(job_id: int, **details: Any) -> ClaimedJob:
    now = datetime.now(UTC)
    request = {"prompt": "a", "sampling": {}, "seed": 1, "metadata": {}}
    return ClaimedJob(
        id=job_id, batch_id="b", line=1, lease=1, attempts=1, request=request, queued_at=now, claimed_at=now, **details
    )


@pytest.mark.parametrize(
    ("details", "priority"),
    [
        ({"priority": 4}, 4),
        ({"priority": 9}, 9),
        ({"priority": 9, "interactive": True}, INTERACTIVE_PRIORITY),
        ({"priority": 10_000}, 9),  # a row that was changed by hand makes no job urgent
    ],
)
def test_only_what_a_person_waits_for_is_urgent(details: dict[str, Any], priority: int) -> None:
    request = Machine({}).encoder().encode(claim(1, **details), Future())
    assert request is not None
    assert request.priority == priority


@pytest.mark.parametrize("shortage", SHORTAGES, ids=repr)
def test_a_shortage_that_passes_is_waited_for_and_told_once(
    shortage: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine({"1.1": [shortage, shortage, shortage, None]})
    request = machine.encoder().encode(claim(1), Future())
    assert request is not None
    assert request.request_id == "1.1"
    assert machine.tries == ["1.1"] * 4
    assert sum("wait to be encoded" in record.getMessage() for record in caplog.records) == 1
    assert "the prompt's text" not in caplog.text


@pytest.mark.parametrize("shortage", SHORTAGES[:-1], ids=repr)
def test_one_that_lasts_is_the_worker_s_end_and_no_request_s_fault(shortage: Exception) -> None:
    machine = Machine({"1.1": [shortage]})
    with pytest.raises(ExhaustedError, match=r"for 5 s: .*(limit|free some)"):
        machine.encoder().encode(claim(1), Future())


def test_memory_that_nobody_gets_counts_as_an_attempt() -> None:
    machine = Machine({"1.1": [MemoryError()]})
    with pytest.raises(EngineBrokenError, match="gives no more memory"):
        machine.encoder().encode(claim(1), Future())


def test_memory_that_one_request_alone_does_not_get_is_its_own_fault() -> None:
    machine = Machine({"1.1": [MemoryError()]})
    encoder = machine.encoder()
    others = iter(range(2, 100))
    original = machine.encode

    def encode(request: Request) -> Request:
        if request.request_id == "1.1" and len(machine.tries) > 2:
            encoder.encode(claim(next(others)), Future())
        return original(request)

    machine.encode = encode  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError, match="too little memory to encode this request"):
        encoder.encode(claim(1), Future())


def test_a_job_that_is_withdrawn_while_it_waits_is_not_tried_again() -> None:
    machine = Machine({"1.1": [NO_DESCRIPTOR]})
    ending: Future[Any] = Future()
    original = machine.encode

    def encode(request: Request) -> Request:
        try:
            return original(request)
        finally:
            ending.set_result("handed back")

    machine.encode = encode  # type: ignore[method-assign]
    assert machine.encoder().encode(claim(1), ending) is None
    assert machine.tries == ["1.1"]


def test_a_job_that_has_ended_before_is_not_encoded() -> None:
    machine = Machine({})
    ending: Future[Any] = Future()
    ending.set_result("handed back")
    assert machine.encoder().encode(claim(1), ending) is None
    assert machine.tries == []


def test_a_job_that_is_withdrawn_waits_for_no_tokenizer() -> None:
    machine = Machine({})
    ending: Future[Any] = Future()
    go_on = threading.Event()

    def encode(_: Request) -> Request:
        ending.set_result("handed back")
        assert go_on.wait(20)
        raise EngineError("the process that tokenises prompts ended with SIGKILL")

    machine.encode = encode  # type: ignore[method-assign]
    assert machine.encoder().encode(claim(1), ending) is None
    assert not go_on.is_set()
    go_on.set()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("no"), InvalidRequestError),
        (ValueError("the prompt's text"), EngineError),
        (OSError(errno.EIO, "the prompt's text"), EngineError),
        (RuntimeError("the prompt's text"), EngineError),
    ],
    ids=repr,
)
def test_every_other_error_is_the_request_s(error: Exception, kind: type[Exception]) -> None:
    machine = Machine({"1.1": [error]})
    with pytest.raises(kind) as caught:
        machine.encoder().encode(claim(1), Future())
    assert machine.tries == ["1.1"]
    assert "the prompt's text" not in str(caught.value)
