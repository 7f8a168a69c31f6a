"""The one Celery task. It carries only a job's id; ``WorkerService.run_job`` does the work."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from celery.exceptions import Reject
from celery.signals import task_revoked

from helix_jobs.broker.celery.app import app
from helix_jobs.broker.celery.service import bound_service
from helix_jobs.broker.messages import job_id_of
from helix_jobs.broker.publisher import TASK_NAME
from helix_jobs.errors import HelixError, without_text

logger = logging.getLogger(__name__)

UNEXPECTED_SECONDS: Final = 1.0


@app.task(name=TASK_NAME, bind=True)  # type: ignore[untyped-decorator]
def run_job(self: Any, *args: object, **kwargs: object) -> None:  # noqa: ANN401  (Celery's task object)
    """Run the job with this id; returning acknowledges the message."""
    job_id = job_id_of(args)
    if job_id is None or kwargs:
        logger.warning("dropped a message that names no job", extra={"message_id": str(self.request.id)[:64]})
        return
    service = bound_service()
    try:
        done = service is not None and service.run_job(job_id)
    except HelixError as error:
        # Nothing was committed, so nothing is acknowledged; the lease is reclaimed.
        logger.warning("a job is left to be reclaimed: %s", error, extra={"job_id": job_id})
        done = False
    except Exception as error:
        # Only a settled ending acknowledges a message, and this is none. The pause keeps the message from returning at
        # once.
        logger.error(  # noqa: TRY400  (see without_text)
            "a job did not end; its message stays in the broker",
            extra={"job_id": job_id},
            exc_info=without_text(error),
        )
        time.sleep(UNEXPECTED_SECONDS)
        done = False
    if not done:
        raise Reject(reason="the worker is stopping", requeue=True)


@task_revoked.connect(weak=False)  # type: ignore[untyped-decorator]
def _cancel_revoked(request: Any = None, *, expired: bool = False, **_: object) -> None:  # noqa: ANN401
    """``celery control revoke`` drops the message; without this the reconciler would publish the job again."""
    job_id = job_id_of(getattr(request, "args", None))
    service = bound_service()
    if service is not None and job_id is not None and not expired:
        service.cancel_job(job_id)
