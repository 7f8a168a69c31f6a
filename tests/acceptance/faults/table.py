"""The table the full form prints: one row for each scenario and database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.bench.percentiles import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.acceptance.faults.oracle import Verdict
    from tests.acceptance.faults.scenario import Outcome

_HEADS = (
    "Scenario",
    "Database",
    "Jobs",
    "Faults",
    "Lost",
    "Duplicated results",
    "Executions beyond one",
    "Recovery p50 / p95 / max (s)",
    "Note",
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one run of a scenario showed."""

    scenario: str
    database: str
    outcome: Outcome
    verdict: Verdict

    def cells(self) -> tuple[str, ...]:
        return (
            self.scenario,
            self.database,
            f"{self.verdict.jobs:,}",
            f"{self.outcome.faults:,}",
            f"{self.verdict.lost:,}",
            f"{self.verdict.doubled:,}",
            f"{self.verdict.executions:,}",
            recovery(self.outcome.recoveries),
            self.outcome.note,
        )


def recovery(seconds: Sequence[float]) -> str:
    """Median, 95th percentile and maximum."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return " / ".join(f"{percentile(ordered, share):.1f}" for share in (0.5, 0.95, 1.0))


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_HEADS, tuple("---" for _ in _HEADS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
