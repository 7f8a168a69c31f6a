"""Services of a worker, closed after each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.worker.service_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.storage.database import Database


@pytest.fixture
def make_bench(database: Database) -> Iterator[Any]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(database, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()
