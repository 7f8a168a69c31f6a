"""JobService: who runs the jobs of this process, and where Celery's task, pool and signals find it."""

from __future__ import annotations

from typing import Protocol


class JobService(Protocol):
    """What the task, the pool and the signals need of the worker's service."""

    def run_job(self, job_id: int) -> bool:
        """Bring a job to its end. False: the worker is stopping and the message belongs to another one."""

    def abort_job(self, job_id: int) -> None:
        """Stop generating for this job, if it runs here."""

    def cancel_job(self, job_id: int) -> None:
        """Cancel the job in the database."""

    def count_rejected(self, count: int) -> None:
        """Note that messages were dropped because no worker takes them."""

    def begin_drain(self) -> None:
        """Take no further jobs; hand back what is unfinished when the grace time is over."""


_service: JobService | None = None


def bind_service(service: JobService | None) -> None:
    """Say who runs the jobs of this process. Celery finds tasks by import, so the service cannot be an argument."""
    global _service  # noqa: PLW0603
    _service = service


def bound_service() -> JobService | None:
    """Who runs the jobs of this process; None outside a worker."""
    return _service
