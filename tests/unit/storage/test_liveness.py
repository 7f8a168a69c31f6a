"""One rule says whether a worker's row means a worker, for every command."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.doctor.leases import judge_leases
from helix_jobs.storage import liveness
from helix_jobs.storage.liveness import seems_alive, why_dead
from helix_jobs.storage.process_identity import Here, ProcessIdentity
from helix_jobs.storage.records import LeaseHolder, Worker
from helix_jobs.time_limits import TimeLimits

LEASE = TimeLimits().lease
NOW = datetime(2026, 1, 1, tzinfo=UTC)
THERE = ProcessIdentity(pid=7, boot_id="here", started="1")
SEEN = Here(boot_id="here", pid_namespace=None, started={7: "1"}.get)
GONE = Here(boot_id="here", pid_namespace=None, started={}.get)
WORKER = Worker(
    id="w",
    hostname="h",
    pid=7,
    boot_id="here",
    process_started="1",
    device="cpu",
    target_model="t",
    draft_model=None,
    slots=1,
    started_at=NOW,
    heartbeat_at=NOW,
    stopped_at=None,
)


@pytest.mark.parametrize("seconds", [0.0, LEASE - 1, 1 - LEASE, LEASE + 1, 35.0, -35.0, 9e5])
@pytest.mark.parametrize("here", [SEEN, GONE], ids=["seen", "gone"])
def test_commands_and_doctor_agree(monkeypatch: pytest.MonkeyPatch, seconds: float, here: Here) -> None:
    beat = NOW - timedelta(seconds=seconds)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return NOW

    monkeypatch.setattr(liveness, "datetime", Clock)
    monkeypatch.setattr(liveness, "here", lambda: here)
    holder = LeaseHolder(worker_id="w", identity=THERE, heartbeat_at=beat, is_live=True, leases=1)
    workers, *_ = judge_leases([holder], waiting=0, now=NOW, here=here, lease=LEASE)
    alive = seems_alive(dataclasses.replace(WORKER, heartbeat_at=beat), LEASE)
    assert workers.finding.startswith("1 alive" if alive else "0 alive")
    assert alive is (here is SEEN and abs(seconds) < LEASE)


def test_it_says_why() -> None:
    assert why_dead(NOW, THERE, now=NOW, here=GONE, lease=LEASE) == "whose process is gone"
    assert why_dead(NOW, None, now=NOW + timedelta(seconds=1234), here=GONE, lease=LEASE) == "silent for 1,234 s"
    assert why_dead(NOW + timedelta(seconds=60), None, now=NOW, here=SEEN, lease=LEASE) == (
        "whose clock is 60 s ahead of this machine's"
    )
