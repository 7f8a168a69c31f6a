"""Latency, resets, cuts and half-open connections between workers, submits, Redis and Postgres, all at the same time.

The default run has a few seconds of it; the full form goes on for ten minutes, with the product's own times:

python -m pytest -m soak -s tests/acceptance/faults/test_chaos.py [--chaos-minutes 10] [--faults-table FILE]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.chaos import Chaos, ChaosConfig
from tests.acceptance.faults.oracle import Verdict, judge
from tests.acceptance.faults.scenario import Outcome
from tests.acceptance.faults.table import Row, markdown
from tests.chaos_proxy import Weather

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.faults.installation import Installation

pytestmark = [pytest.mark.redis, pytest.mark.postgres]

QUICK_SECONDS = 4.0
QUICK = ChaosConfig(
    # A dead connection to Redis is found by its silence, which takes longer than a quick form has.
    broker=Weather(latency=0.05, latest=0.05, reset=0.02, cut=0.02),
    database=Weather(latency=0.05, latest=0.05, reset=0.005, cut=0.005, half_open=0.001),
    batch=40,
    step_seconds=0.02,
    answer_seconds=1.0,
    end_seconds=60.0,
)
FULL = ChaosConfig(
    broker=Weather(latency=0.05, latest=0.1, reset=0.003, cut=0.003, half_open=0.001),
    database=Weather(latency=0.05, latest=0.1, reset=0.002, cut=0.002, half_open=0.0002),
    batch=100,
    step_seconds=0.05,
    answer_seconds=0.0,
    end_seconds=300.0,
)
# Two limits on an answer in a row, and a lease.
LONGEST_STANDSTILL = 180.0


@pytest.mark.thorough
def test_a_few_seconds_of_it(make: Callable[..., Installation]) -> None:
    chaos, verdict = _run(make("postgres", quick=True), QUICK, QUICK_SECONDS)
    assert (*chaos.broken(), *verdict.broken) == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)


@pytest.mark.soak
def test_minutes_of_it(make: Callable[..., Installation], rows: list[Row], pytestconfig: pytest.Config) -> None:
    seconds = 60 * float(pytestconfig.getoption("--chaos-minutes", default=10.0))
    chaos, verdict = _run(make("postgres", quick=False), FULL, seconds)
    faults = sum(chaos.counts().values())
    note = (
        f"{seconds / 60:g} minutes; {chaos.broker.num_connections:,} connections to Redis, "
        f"{chaos.database.num_connections:,} to Postgres; {_list(chaos)}; "
        f"{len(chaos.accepted)} submissions, {chaos.refusals} of them handed in again; "
        f"{len(chaos.exits)} workers ended and were started again; no job ended for {chaos.standstill:.0f} s at most"
    )
    rows.append(Row("chaos proxies", "postgres", Outcome(accepted=chaos.accepted, faults=faults, note=note), verdict))
    print(f"\n{markdown(rows[-1:])}", flush=True)  # noqa: T201  (-s shows it)
    assert (*chaos.broken(), *verdict.broken) == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert chaos.standstill < LONGEST_STANDSTILL


def _run(installation: Installation, config: ChaosConfig, seconds: float) -> tuple[Chaos, Verdict]:
    chaos = Chaos(installation, config)
    chaos.run(seconds)
    return chaos, judge(installation, chaos.accepted)


def _list(chaos: Chaos) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in chaos.counts().items())
