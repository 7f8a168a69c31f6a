"""Every fault scenario: its quick form in the default run, its full form under

python -m pytest -m slow -s tests/acceptance/faults [--faults-table FILE]

which prints a table of scenario, database, jobs, faults, lost, duplicated and recovery time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.oracle import judge
from tests.acceptance.faults.scenario import Scenario, all_scenarios
from tests.acceptance.faults.table import Row, markdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.faults.installation import Installation

SCENARIOS = all_scenarios()


def _cases(*, quick: bool) -> list[object]:
    return [
        pytest.param(scenario, database, id=f"{scenario.name}-{database}", marks=_marks(database))
        for scenario in SCENARIOS
        for database in (scenario.quick_on if quick else scenario.databases)
        if scenario.quick is not None or not quick
    ]


def _marks(database: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.redis, *([pytest.mark.postgres] if database == "postgres" else [])]


@pytest.mark.thorough(fast=8)
@pytest.mark.parametrize(("scenario", "database"), _cases(quick=True))
def test_quick(scenario: Scenario, database: str, make: Callable[..., Installation]) -> None:
    installation = make(database, quick=True)
    assert scenario.quick is not None
    outcome = scenario.run(installation, scenario.quick)
    verdict = judge(installation, outcome.accepted, steady_clock=outcome.steady_clock)
    assert (*outcome.broken, *verdict.broken) == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "database"), _cases(quick=False))
def test_full(scenario: Scenario, database: str, make: Callable[..., Installation], rows: list[Row]) -> None:
    installation = make(database, quick=False)
    began = time.monotonic()
    outcome = scenario.run(installation, scenario.full)
    verdict = judge(installation, outcome.accepted, steady_clock=outcome.steady_clock)
    rows.append(Row(scenario.name, database, outcome, verdict))
    print(  # noqa: T201  (who runs this for an hour wants to see how it goes; -s shows it)
        f"\n{time.monotonic() - began:.0f} s\n{markdown(rows[-1:])}",
        flush=True,
    )
    assert (*outcome.broken, *verdict.broken) == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
