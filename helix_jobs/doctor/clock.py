"""Check that this machine's clock agrees with those of the broker, the database and the file system."""

from __future__ import annotations

from typing import Final

from helix_jobs.doctor.verdict import Level, Verdict

MAX_SKEW_SECONDS: Final = 5.0


def judge_skew(whose: str, seconds: float) -> Verdict:
    """Judge how far another clock is ahead of this machine's.

    A warning at most: leases are judged by heartbeats that change, never by comparing two clocks.
    """
    subject = f"clock, {whose}"
    if abs(seconds) <= MAX_SKEW_SECONDS:
        return Verdict(subject, Level.OK, "agrees with this machine's")
    finding = f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    remedy = "set both clocks by NTP; no job is lost, but the waiting times and ages shown are wrong by as much"
    return Verdict(subject, Level.WARNING, finding, remedy)
