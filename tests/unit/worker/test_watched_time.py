"""How much of the time between two looks counts."""

from __future__ import annotations

import pytest

from helix_jobs.worker.watched_time import WatchedTime


@pytest.mark.parametrize(
    ("looks", "watched"),
    [
        ([50.0], [0.0]),
        ([50.0, 51.0, 51.5], [0.0, 1.0, 0.5]),
        # Two intervals at most: in an hour that this process stood still, nobody looked.
        ([50.0, 52.0, 3652.0, 3653.0], [0.0, 2.0, 2.0, 1.0]),
    ],
)
def test_a_gap_counts_for_two_intervals_at_most(looks: list[float], watched: list[float]) -> None:
    readings = iter(looks)
    time = WatchedTime(1.0, lambda: next(readings))
    assert [time.look() for _ in looks] == watched
