"""JobService: the object that runs this process's jobs, and where Celery's task, pool and signals find it."""

from __future__ import annotations

from typing import Protocol


class JobService(Protocol):
    """The worker's service as the task, the pool and the signals see it."""

    def run_job(self, job_id: int) -> bool:
        """Bring a job to its end. False: the worker is stopping, and the message must go to another worker."""

    def abort_job(self, job_id: int) -> None:
        """Stop generating for this job, if it runs here."""

    def cancel_job(self, job_id: int) -> None:
        """Cancel the job in the database."""

    def count_rejected(self, count: int) -> None:
        """Note that messages were dropped because no worker takes them."""

    def begin_drain(self) -> None:
        """Take no further jobs; hand back unfinished jobs when the grace time is over."""


_service: JobService | None = None


def bind_service(service: JobService | None) -> None:
    """Set the service of this process. Celery finds tasks by import, so the service cannot be an argument."""
    global _service  # noqa: PLW0603
    _service = service


def bound_service() -> JobService | None:
    """The service of this process; None outside a worker."""
    return _service
