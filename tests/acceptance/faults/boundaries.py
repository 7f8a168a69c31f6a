"""Boundaries: the points between two actions of the protocol at which a process is made to die or to freeze."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Boundary:
    """Before or after a call of ``owner.function``; ``inside`` a transaction or not."""

    meaning: str
    owner: str
    function: str
    after: bool = False
    inside: bool = False


_QOS = "kombu.transport.redis:QoS"
_BATCHES = "helix_jobs.storage.batches"
_LEASES = "helix_jobs.storage.claims"
_PUBLISHING = "helix_jobs.storage.publishing"
_PURGING = "helix_jobs.storage.purging"
_JOB_SERVICE = "helix_jobs.worker.job_service"
_SERVICE = f"{_JOB_SERVICE}:WorkerService"
_SETTLEMENT = "helix_jobs.worker.settlement:Settlement"

BOUNDARIES = {
    "stored": Boundary("the batch is stored, nothing is published", "helix_jobs.client.handover:Handover", "publish"),
    "published": Boundary(
        "messages are published, the jobs are not marked", _PUBLISHING, "mark_published", inside=True
    ),
    "popped": Boundary("a message is popped and not in unacked", _QOS, "append"),
    "delivered": Boundary("a message is in unacked, its job is not claimed", _QOS, "append", after=True),
    "claiming": Boundary("a claim is written, not committed", _LEASES, "claim", after=True, inside=True),
    "claimed": Boundary("a claim is committed, nothing is generated", _SERVICE, "_generate"),
    "generating": Boundary("in the middle of an engine step", "helix_jobs.engine.fake_engine:FakeEngine", "_advance"),
    "generated": Boundary("a job is generated, nothing is written", _SETTLEMENT, "persist"),
    "finishing": Boundary("a result is written, not committed", _LEASES, "finish_succeeded", after=True, inside=True),
    "committed": Boundary("a result is committed, its message not acknowledged", _QOS, "ack"),
    "acknowledged": Boundary("a message is acknowledged", _QOS, "ack", after=True),
}

# What a worker passes whose job has an acceptance rule.
REFUSALS = {
    "judged": Boundary(
        "an answer is judged, nothing is written", "helix_jobs.worker.job_service", "judged", after=True
    ),
    "refusing": Boundary("a refusal is written, not committed", _LEASES, "refuse", after=True, inside=True),
    "giving up": Boundary(
        "a last refusal is written, not committed", _LEASES, "finish_not_accepted", after=True, inside=True
    ),
}

# What a worker passes whose jobs take stored answers.
STORED_ANSWERS = {
    "taking": Boundary(
        "stored answers are taken, not committed",
        "helix_jobs.storage.answer_cache",
        "take_answers",
        after=True,
        inside=True,
    ),
    "taken": Boundary(
        "stored answers are committed, the rest is not published", "helix_jobs.broker.fill", "_take_answers", after=True
    ),
}

# What a submission alone passes.
SUBMISSION = {
    "inserting": Boundary("a chunk of lines is written, not committed", _BATCHES, "insert_jobs", after=True),
    "sealing": Boundary("every line is stored, the batch is not sealed", _BATCHES, "seal_batch"),
    "sealed": Boundary("the seal is written, not committed", _BATCHES, "seal_batch", after=True),
    "publishing": Boundary(
        "a chunk of messages is about to be sent", "helix_jobs.broker.publisher:CeleryPublisher", "publish"
    ),
}

# What a purge alone passes.
PURGE = {
    "hiding": Boundary("a batch is out of sight, not committed", _PURGING, "begin_purge", after=True, inside=True),
    "hidden": Boundary("a batch is out of sight, nothing of it is removed", _PURGING, "last_line"),
    "removing": Boundary("lines are removed, not committed", _PURGING, "purge_lines", after=True, inside=True),
    "removed": Boundary("lines are removed, SQLite's file is not cut", "helix_jobs.client.purge", "give_back"),
    "ending": Boundary("a batch's row is removed, not committed", _PURGING, "end_purge", after=True, inside=True),
    "forgetting": Boundary("runs are removed, not committed", _PURGING, "purge_runs", after=True, inside=True),
    "forgotten": Boundary("workers are removed, not committed", _PURGING, "purge_workers", after=True, inside=True),
}


def install(name: str, passing: int, *, freeze: bool = False, late: float = 0.0) -> None:
    """Have this process die, or freeze, when it passes the boundary for the ``passing``-th time.

    With ``late`` it dies so many seconds after that, wherever it is then.
    """
    boundary = (BOUNDARIES | REFUSALS | STORED_ANSWERS | SUBMISSION | PURGE)[name]
    module, _, attribute = boundary.owner.partition(":")
    owner: Any = importlib.import_module(module)
    if attribute:
        owner = getattr(owner, attribute)
    original = getattr(owner, boundary.function)
    stop = _dier(late) if not freeze else _freeze if boundary.inside else _freezer()
    lock, passed = threading.Lock(), 0

    def passes() -> None:
        nonlocal passed
        with lock:
            passed += 1
            due = passed == passing
        if due:
            stop()

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        if boundary.after:
            value = original(*args, **kwargs)
            passes()
            return value
        passes()
        return original(*args, **kwargs)

    setattr(owner, boundary.function, patched)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dier(late: float) -> Callable[[], None]:
    return (lambda: threading.Timer(late, _die).start()) if late else _die


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _freezer() -> Callable[[], None]:
    """What stops this process while none of its threads has a transaction open, which would lock the others out."""
    from helix_jobs.storage.database import Database

    original = Database._transaction
    changed = threading.Condition()
    open_transactions = 0

    @contextmanager
    def counted(self: Database, *arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal open_transactions
        with changed:
            open_transactions += 1
        try:
            with original(self, *arguments, **options) as connection:
                yield connection
        finally:
            with changed:
                open_transactions -= 1
                changed.notify_all()

    def freeze() -> None:
        with changed:
            changed.wait_for(lambda: open_transactions == 0)
            _freeze()

    Database._transaction = counted  # type: ignore[method-assign]
    return freeze
