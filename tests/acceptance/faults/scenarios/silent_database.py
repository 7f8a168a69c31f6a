"""Postgres falls silent: its connections stay open, and nothing comes back on them. Work goes on, and nobody helps.

New connections work, as behind a pooler or a load balancer that hangs.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import make_url, text

from tests.acceptance.faults.outages import use_cluster
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.progress import ended, wait_ended, wait_resumed
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

# In the quick form: what a statement may take, in place of the product's 45 s.
ANSWER_SECONDS = 2.0
# What four slots end at steps of half a second, each third job asking for three answers, is 2.4.
LEAST_JOBS_PER_SECOND = 2


def begin(installation: Installation) -> tuple[TcpProxy, str]:
    """A server of its own behind a proxy; the URL through it."""
    use_cluster(installation)
    url = make_url(installation.settings.database_url)
    assert url.port is not None
    proxy = TcpProxy(url.port)
    installation.stack.callback(proxy.close)
    return proxy, url.set(port=proxy.port).render_as_string(hide_password=False)


@scenario(
    "half-open connections to Postgres",
    quick=Size(jobs=100, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=2_000, faults=3),
    databases=("postgres",),
)
def half_open(installation: Installation, size: Size) -> Outcome:
    """Every connection of the worker goes dead, and neither end is told."""
    proxy, url = begin(installation)
    is_quick = installation.fork_server is not None
    batch = installation.accept(size.jobs)
    plan = Plan(answer_seconds=ANSWER_SECONDS if is_quick else 0.0)
    worker = installation.start(plan, fake_step_seconds="0.05" if is_quick else "0.5", database_url=url)
    recoveries, connections = [], 0
    for _ in range(size.faults):
        wait_ended(installation, batch, ended(installation, batch) + 4)
        connections += proxy.go_dead()
        recoveries.append(wait_resumed(installation, worker, patience=120.0))
    installation.wait_done(batch, timeout=installation.patience + size.jobs / LEAST_JOBS_PER_SECOND)
    note = f"{connections} connections"
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, note=note)


@scenario("Postgres' processes stopped", full=Size(jobs=2_000, faults=3), databases=("postgres",))
def stopped(installation: Installation, size: Size) -> Outcome:
    """SIGSTOP of the processes that serve the worker, but for one in mid-transaction, whose locks nobody can take."""
    use_cluster(installation)
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds="0.5")
    recoveries = []
    for _ in range(size.faults):
        wait_ended(installation, batch, ended(installation, batch) + 4)
        pids = _idle(installation)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            installation.stack.callback(_continue, pid)
        # One may have begun a transaction before the signal came.
        for pid in pids - _idle(installation):
            _continue(pid)
        recoveries.append(wait_resumed(installation, worker, patience=120.0))
    installation.wait_done(batch, timeout=installation.patience + size.jobs / LEAST_JOBS_PER_SECOND)
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries)


def _idle(installation: Installation) -> set[int]:
    """The processes of this database that are in no transaction."""
    query = "SELECT pid FROM pg_stat_activity WHERE state = 'idle' AND datname = current_database()"
    with installation.read() as c:
        return set(c.execute(text(query)).scalars())


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
