"""What is left when a time limit is forgotten: the dead man's switch, with the limit on answers taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.plan import ANSWERS, CLOSING, Plan
from tests.acceptance.faults.progress import wait_ended, wait_resumed
from tests.acceptance.faults.scenarios.silent_database import ANSWER_SECONDS, begin

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.faults.installation import Installation

pytestmark = [pytest.mark.redis, pytest.mark.postgres]


@pytest.mark.thorough
def test_the_switch_closes_what_nobody_answers(make: Callable[..., Installation]) -> None:
    installation = make("postgres", quick=True)
    installation.without = (ANSWERS,)
    proxy, url = begin(installation)
    batch = installation.accept(100)
    worker = installation.start(Plan(answer_seconds=ANSWER_SECONDS), fake_step_seconds="0.05", database_url=url)
    wait_ended(installation, batch, 4)
    proxy.go_dead()
    wait_resumed(installation, worker)
    installation.wait_done(batch)
    assert "connections to the database: no answer for" in worker.log


@pytest.mark.thorough
def test_where_that_does_not_help_it_ends_the_process_for_its_supervisor(make: Callable[..., Installation]) -> None:
    installation = make("postgres", quick=True)
    installation.without = (ANSWERS, CLOSING)
    proxy, url = begin(installation)
    batch = installation.accept(60)
    # Half of it: there is nothing that must come before the end.
    worker = installation.start(Plan(answer_seconds=ANSWER_SECONDS / 2), fake_step_seconds="0.05", database_url=url)
    wait_ended(installation, batch, 4)
    proxy.go_dead()
    assert worker.wait() == 1, worker.log
    assert "has not come round" in worker.log
    assert "helix-writer: " in worker.log, "it says where its threads stand"
    installation.start()
    installation.wait_done(batch)
