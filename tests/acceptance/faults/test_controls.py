"""Tests of the tests: with a protection removed, the scenario that relies on it must fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.oracle import judge
from tests.acceptance.faults.plan import FENCE, RECONCILER, SOLITUDE
from tests.acceptance.faults.scenario import Size
from tests.acceptance.faults.scenarios.boundaries_crossed import IN_HAND, die_working
from tests.acceptance.faults.scenarios.late_write import late_write
from tests.acceptance.faults.scenarios.poison import kills

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.faults.installation import Installation

pytestmark = pytest.mark.redis


@pytest.mark.thorough
def test_without_the_fence_a_late_write_shows(make: Callable[..., Installation]) -> None:
    installation = make("sqlite", quick=True)
    installation.without = (FENCE,)
    outcome = late_write.run(installation, Size(jobs=12, faults=1))
    verdict = judge(installation, outcome.accepted)
    assert outcome.broken
    assert verdict.broken
    assert verdict.doubled or "not the last holder's" in str(verdict.broken)


@pytest.mark.thorough
def test_without_the_reconciler_a_death_shows(make: Callable[..., Installation]) -> None:
    installation = make("sqlite", quick=True)
    installation.without = (RECONCILER,)
    batch = die_working(installation, "generating", 10, IN_HAND)
    successor = installation.start()
    installation.patience = 3.0
    with pytest.raises(AssertionError, match="do not end"):
        installation.wait_done(batch)
    assert successor.process.poll() is None
    verdict = judge(installation, [batch], quiet_broker=False)
    assert verdict.lost > 0
    assert "no final state" in str(verdict.broken)


@pytest.mark.slow
def test_without_solitude_a_poisonous_job_takes_neighbours_along(make: Callable[..., Installation]) -> None:
    installation = make("sqlite", quick=True)
    installation.without = (SOLITUDE,)
    outcome = kills.run(installation, Size(jobs=12, faults=1))
    assert outcome.broken
    assert "worker_lost" in str(outcome.broken)
