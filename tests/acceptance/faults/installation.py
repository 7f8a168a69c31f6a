"""Installation: a box with a Redis server of its own, whose workers start under a plan."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, select

from helix_jobs.settings import Settings
from helix_jobs.storage.schema import jobs, workers
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from tests.acceptance.faults.fork_server import LAUNCHER, PATIENCE
from tests.acceptance.faults.oracle import Accepted, line_of
from tests.acceptance.faults.plan import QUICK_TIME_LIMITS, Plan
from tests.acceptance.faults.redis_server import free_port
from tests.migrated_sqlite import lay_database
from tests.worker_box import ROOT, Box, WorkerProcess, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.time_limits import TimeLimits
    from tests.acceptance.faults.fork_server import ForkServer
    from tests.acceptance.faults.redis_server import RedisServer


@dataclass
class ServerProcess(WorkerProcess):
    """A real server: ``helix serve``.

    Attributes:
        port: Where it listens.
    """

    port: int = field(kw_only=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_ready(self) -> bool:
        return "Serving at" in self.log


@dataclass
class Installation(Box):
    """What a scenario breaks.

    Attributes:
        redis: Its broker.
        fork_server: Starts processes quickly; None starts each in a fresh interpreter, as a user does.
        times: Leases shorter than the product's; None keeps those.
        without: Protections its workers lack (``plan.py``).
        patience: Seconds longer than any recovery should take.
        stack: What a scenario set up beside it, undone at the end.
        servers: Its HTTP servers.
        find_demo_home: Says which HELIX_HOME holds the demo model, and skips the test if none does.
    """

    redis: RedisServer = field(kw_only=True)
    fork_server: ForkServer | None = field(kw_only=True, default=None)
    time_limits: TimeLimits = field(kw_only=True, default=DEFAULT_TIME_LIMITS)
    without: tuple[str, ...] = field(kw_only=True, default=())
    patience: float = field(kw_only=True, default=0.0)
    servers: list[ServerProcess] = field(kw_only=True, default_factory=list)
    stack: ExitStack = field(kw_only=True, default_factory=ExitStack)
    find_demo_home: Callable[[], Path] | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        self.patience = self.patience or 30.0 + 3 * self.lease_seconds

    def use_demo_model(self) -> None:
        """Have workers run the real engine."""
        assert self.find_demo_home is not None
        self.settings = dataclasses.replace(
            self.settings, engine="helix", device="cpu", dtype="float32", compile="off", draft_model="lookup"
        )
        (self.settings.make_home() / "models").symlink_to(self.find_demo_home() / "models")

    @property
    def lease_seconds(self) -> float:
        """How long a silent worker keeps its leases."""
        return self.time_limits.lease

    @property
    def executions_file(self) -> Path:
        return self.temporary / "executions"

    def start(
        self, plan: Plan | None = None, *arguments: str, ready: bool = True, host: str = "", **environment: str
    ) -> WorkerProcess:
        """Start a worker under a plan.

        Args:
            plan: By default nothing but this installation's time_limits.
            arguments: Of ``worker.py``.
            ready: Wait until it takes jobs.
            host: The host it believes to run on: nobody there sees this host's processes and locks.
            environment: HELIX_* variables without the prefix, in small letters.
        """
        variables = {f"HELIX_{name.upper()}": value for name, value in environment.items()}
        if host:
            there = self.temporary / host
            there.mkdir(exist_ok=True)
            variables["TMPDIR"] = str(there)
            variables["HELIX_LOCK_DIR"] = str(there / "locks")
        plan = dataclasses.replace(plan or Plan(), hostname=host, time_limits=self.time_limits, without=self.without)
        log = self.new_log()
        process = self._spawn(plan, "worker", list(arguments), variables, log)
        return self.adopt(WorkerProcess(process, log), ready=ready)

    def start_submit(self, plan: Plan, *arguments: str, **environment: str) -> WorkerProcess:
        """Start ``python submit.py`` under a plan."""
        variables = {f"HELIX_{name.upper()}": value for name, value in environment.items()}
        log = self.new_log()
        return self.adopt(WorkerProcess(self._spawn(plan, "submit", list(arguments), variables, log), log), ready=False)

    def start_server(self, *, port: int | None = None) -> ServerProcess:
        """Start ``helix serve`` and wait until it listens; by default on a free port."""
        port = port or free_port()
        log = self.temporary / f"server-{len(self.servers)}.log"
        log.touch()
        plan = Plan(time_limits=self.time_limits)
        server = ServerProcess(self._spawn(plan, "serve", ["serve", "--port", str(port)], {}, log), log, port=port)
        self.servers.append(server)
        wait_until(lambda: server.is_ready or server.process.poll() is not None, lambda: f"not ready: {server.log}")
        assert server.process.poll() is None, server.log
        return server

    def _spawn(
        self, plan: Plan, command: str, arguments: list[str], variables: dict[str, str], log: Path
    ) -> Any:  # a Popen or what answers to the same names
        environment = self.environment | {"HELIX_FAKE_EXECUTIONS": str(self.executions_file)} | variables
        if self.fork_server is not None:
            return self.fork_server.start(
                plan, command, arguments, environment=environment, directory=self.temporary, log=log
            )
        program = [*LAUNCHER, plan.to_json(), command]
        if command == "worker" and plan == Plan():
            program = [str(ROOT / "worker.py")]
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-W", "error", *program, *arguments],
                cwd=self.temporary,
                env=environment | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def accept(self, count: int, words: int = 6, *, cache: bool | None = False, **fields: Any) -> Accepted:
        """Submit a batch of prompts that all differ, every third of which asks for three answers.

        Each batch has the same ones, and is to be computed unless ``cache`` says otherwise.
        """
        prompts = tuple(" ".join(f"p{i}-{n}" for n in range(words)) for i in range(count))
        with self.client() as client:
            lines = [{**line_of(prompt, number), **fields} for number, prompt in enumerate(prompts)]
            return Accepted(client.submit(lines, cache=cache).batch_id, prompts)

    def start_doomed(self, plan: Plan, **environment: str) -> WorkerProcess:
        """Start a worker that may die as soon as it takes jobs; wait until it is ready or has."""
        worker = self.start(plan, ready=False, **environment)
        wait_until(
            lambda: "Ready." in worker.log or worker.process.poll() is not None, lambda: f"not ready: {worker.log}"
        )
        return worker

    def held_by(self, worker: WorkerProcess) -> dict[int, int]:
        """Job id -> lease of what a worker runs, also after its death."""
        held = jobs.join(workers, and_(workers.c.id == jobs.c.worker_id, workers.c.pid == worker.process.pid))
        with self.read() as c:
            query = select(jobs.c.id, jobs.c.lease).select_from(held).where(jobs.c.state == "running")
            return {row.id: row.lease for row in c.execute(query)}

    def taken_over(self, held: dict[int, int]) -> bool:
        """Whether none of these leases is held any longer."""
        if not held:
            return True
        with self.read() as c:
            query = select(jobs.c.id, jobs.c.lease, jobs.c.state).where(jobs.c.id.in_(list(held)))
            return all(row.lease > held[row.id] or row.state != "running" for row in c.execute(query))

    def unfinished(self, *batches: Accepted) -> int:
        """Jobs without a final state."""
        with self.read() as c:
            query = select(func.count()).where(
                jobs.c.batch_id.in_([batch.batch_id for batch in batches]), jobs.c.state.in_(("queued", "running"))
            )
            return int(c.execute(query).scalar_one())

    def wait_done(self, *batches: Accepted, timeout: float | None = None) -> None:
        """Wait until every job has a final state."""
        wait_until(lambda: self.unfinished(*batches) == 0, "jobs do not end", timeout or self.patience)

    def close(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
        super().close()
        self.redis.kill()
        self.stack.close()


def make_installation(
    directory: Path,
    redis: RedisServer,
    *,
    database_url: str | None,
    fork_server: ForkServer | None,
    find_demo_home: Callable[[], Path],
) -> Installation:
    """Make one whose worker has the fake engine; with a fork server it is the quick form, with short leases."""
    home = directory / "home"
    file = home / "helix.db"
    if database_url is None:
        lay_database(file)
    settings = Settings(
        home=home,
        redis_url=redis.url,
        database_url=database_url or f"sqlite:///{file}",
        max_batch_size=4,
        engine="fake",
        lock_dir=directory / "locks",
    )
    time_limits = DEFAULT_TIME_LIMITS if fork_server is None else QUICK_TIME_LIMITS
    return Installation(
        settings,
        directory,
        redis=redis,
        fork_server=fork_server,
        time_limits=time_limits,
        find_demo_home=find_demo_home,
    )


__all__ = ["PATIENCE", "Accepted", "Installation", "make_installation"]
