"""Commands run in this process, over a real SQLite database under a temporary HELIX_HOME."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from helix_jobs.cli.group import cli
from helix_jobs.settings import Settings
from helix_jobs.storage import claims, publishing, workers
from helix_jobs.storage.database import Database
from helix_jobs.storage.records import FinishedJob, NewWorker, ResultRow
from tests.migrated_sqlite import lay_database

METRICS = {
    "finish_reason": "stop",
    "prompt_tokens": 5,
    "cached_prompt_tokens": 0,
    "completion_tokens": 10,
    "queue_seconds": 0.1,
    "ttft_seconds": 0.1,
    "decode_seconds": 0.9,
    "total_seconds": 1.0,
    "tokens_per_second": 10.0,
    "draft_tokens": 8,
    "accepted_tokens": 6,
    "acceptance_rate": 0.75,
    "mean_acceptance_length": 2.5,
    "target_model": "demo",
    "draft_model": "int8",
    "device": "cpu",
    "dtype": "float32",
}


@pytest.fixture
def locks(tmp_path_factory):
    """Where the workers of this test lock their devices."""
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path, locks):
    for name in ("HELIX_REDIS_URL", "HELIX_DATABASE_URL", "HELIX_LOG_LEVEL", "HELIX_MAX_TOKENS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HELIX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HELIX_LOCK_DIR", str(locks))  # nobody else's wishes are there
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def helix():
    """``helix("list", "--json")`` runs a command; exceptions that are bugs are raised here."""

    def run(*args, stdin=None, env=None, time_limits=None):
        return CliRunner().invoke(
            cli, [str(arg) for arg in args], input=stdin, env=env, catch_exceptions=False, obj=time_limits
        )

    return run


@pytest.fixture
def prompts(tmp_path):
    """``prompts(3)`` is a file of three prompts; ``prompts(lines=[...])`` one of these."""

    def write(number=3, *, lines=None, name="prompts.jsonl"):
        path = tmp_path / name
        rows = lines if lines is not None else [json.dumps({"prompt": f"Question {i}?"}) for i in range(1, number + 1)]
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def home(tmp_path):
    """HELIX_HOME with a migrated database. Tests that do not ask for it, or for what needs it, begin without one."""
    made = tmp_path / "home"
    lay_database(made / "helix.db")
    return made


@pytest.fixture
def submitted(home, helix, prompts):
    """``submitted(3)`` is the id of a stored batch of three jobs."""

    def submit(number=3):
        return helix("submit", prompts(number)).stdout.strip()

    return submit


@pytest.fixture
def database(home):
    database = Database(Settings.from_environment().database_url)
    yield database
    database.dispose()


@pytest.fixture
def finish(database):
    """``finish(batch, succeeded=2, failed=1)`` does what a worker does to the next queued jobs."""

    def run(batch, *, succeeded=0, failed=0, text="An answer.", choices=1, **metrics):
        now = datetime.now(UTC)
        with database.write() as c:
            worker = add_worker(c, now)
            for number in range(succeeded + failed):
                (job,) = publishing.publishable(c, 1)
                claimed = claims.claim(c, job.id, worker_id=worker, now=now)
                assert claimed.batch_id == batch
                done = FinishedJob(job.id, claimed.lease, worker)
                later = now + timedelta(seconds=number + 1)
                if number < succeeded:
                    answers = [
                        ResultRow(output_text=text, choice=choice, **(METRICS | metrics)) for choice in range(choices)
                    ]
                    assert claims.finish_succeeded(c, done, answers, later)
                else:
                    assert claims.finish_failed(c, done, "prompt_too_long", "too long by 5 tokens", later)

    return run


def add_worker(c, now, name="w1"):
    if name not in {worker.id for worker in workers.live_workers(c)}:
        new = NewWorker(id=name, hostname="box", pid=42, device="cpu", target_model="demo", draft_model="int8", slots=8)
        workers.register_worker(c, new, now)
    return name
