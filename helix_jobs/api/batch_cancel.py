"""Cancel a batch that was asked for over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.storage import api_batches, batch_changes

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection


def begin_api_cancel(c: Connection, api_id: str, now: datetime) -> None:
    """From this commit on none of its jobs begins. The intake cancels their rows, which may be a million."""
    accepted = api_batches.ask_cancel(c, api_id, now)
    if accepted is not None:
        batch_changes.begin_cancel(c, accepted, now=now)
