"""TaskPool: Celery's thread pool, which runs urgent jobs first and can also stop a running job."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Final

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult as ThreadResult
from celery.concurrency.thread import TaskPool as ThreadPool

from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.broker.celery.priority_threads import PriorityThreads
from helix_jobs.broker.celery.service import bound_service
from helix_jobs.broker.messages import job_id_of
from helix_jobs.errors import ConfigurationError

_REQUEST_ARGUMENT: Final = 2  # (type, id, request, body, content type, content encoding)


class ApplyResult(ThreadResult):  # type: ignore[misc]  # celery has no types
    """The pending call. Celery terminates it too, after the job itself."""

    def terminate(self, signal: int | None = None) -> None:
        """Do nothing: ``TaskPool.terminate_job`` has aborted the job."""


class TaskPool(ThreadPool):  # type: ignore[misc]
    """One thread for each batch slot, each waiting for the engine, and spare threads for urgent jobs.

    Celery terminates a task by the process id it was accepted with. All threads share a process, so each call gets a
    number of its own instead, by which ``terminate_job`` finds the job.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (Celery's signature)
        super().__init__(*args, **kwargs)
        self.executor = PriorityThreads(self.limit, self.app.conf.helix_urgent_messages)
        self._numbers = itertools.count(1)
        self._jobs: dict[int, int] = {}

    def on_apply(  # noqa: D102  (Celery's hook)
        self,
        target: Any,  # noqa: ANN401
        args: Any = None,  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
        callback: Any = None,  # noqa: ANN401
        accept_callback: Any = None,  # noqa: ANN401
        **_: Any,  # noqa: ANN401
    ) -> ApplyResult:
        number = next(self._numbers)
        request = args[_REQUEST_ARGUMENT] if args and len(args) > _REQUEST_ARGUMENT else None
        job_id = job_id_of(request.get("args")) if isinstance(request, dict) else None
        if job_id is not None:
            self._jobs[number] = job_id
        call = partial(apply_target, target, args, kwargs, callback, accept_callback, pid=number)
        future = self.executor.submit(_priority(request), call)
        future.add_done_callback(lambda _: self._jobs.pop(number, None))
        return ApplyResult(future)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:  # noqa: ARG002  (Celery's signature)
        """Abort the job that runs under this number."""
        job_id = self._jobs.get(pid)
        service = bound_service()
        if job_id is not None and service is not None:
            service.abort_job(job_id)

    def grow(self, n: int = 1) -> None:
        """Refuse to grow, which Celery's remote control and Flower offer: the threads belong to the batch slots.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"a worker's slots are fixed when its models are loaded, so its pool cannot change by {n}; start it again "
            "with another --max-batch-size"
        )

    def shrink(self, n: int = 1) -> None:
        """Refuse as ``grow`` does.

        Raises:
            ConfigurationError: Always.
        """
        self.grow(-n)

    def on_stop(self) -> None:
        """Wait for the running jobs, but at most the grace time, for any kind of shutdown."""
        service = bound_service()
        if service is not None:
            service.begin_drain()
        super().on_stop()

    def _get_info(self) -> dict[str, Any]:
        return {"max-concurrency": self.limit, "threads": self.executor.thread_count}

    def on_terminate(self) -> None:
        """Wait as ``on_stop`` does, also at a cold shutdown: the threads end once their jobs are handed back."""
        self.on_stop()


def _priority(request: Any) -> int:  # noqa: ANN401  (Celery's, made from a message)
    """The message's priority, 0 first; a message that says nothing readable about it goes last."""
    delivery = request.get("delivery_info") if isinstance(request, dict) else None
    priority = delivery.get("priority") if isinstance(delivery, dict) else None
    return priority if isinstance(priority, int) and 0 <= priority <= MAX_PRIORITY else MAX_PRIORITY
