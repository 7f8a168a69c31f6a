"""A worker process from its start to its end, on SQLite with the embedded broker and on Postgres with Redis."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.engine.fake_engine import fake_output
from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.locks import FileLock
from helix_jobs.storage.records import PublishableJob
from helix_jobs.storage.schema import results, runs
from helix_jobs.worker.process import run_worker
from tests.redis_client import redis_client
from tests.worker_box import ROOT, prompts, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

SLOW_STEPS = "0.05"


def shut_down_broker(box: Box) -> None:
    with redis_client(EmbeddedBroker(box.settings.home).url) as client:
        client.shutdown(nosave=True)


@pytest.mark.thorough(fast=1)
def test_a_batch_is_drained_and_the_worker_leaves_in_order(box: Box) -> None:
    batch = box.submit(*prompts(150))
    worker = box.start_worker(fresh=True)
    box.wait_states(batch, succeeded=150)

    with box.client() as client:
        for result, prompt in zip(client.results(batch), prompts(150), strict=True):
            assert (result.output_text, result.finish_reason) == (fake_output(prompt, 256)[0], "stop")
            assert result.queue_seconds is not None
            assert result.total_seconds is not None
            assert result.ttft_seconds is not None
            assert result.ttft_seconds <= result.total_seconds
            assert (result.target_model, result.draft_model, result.device) == ("fake-target", "fake-draft", "fake")

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert [row.stopped_at is not None for row in box.worker_rows()] == [True]
    database = box.database()
    with database.read() as c:
        totals = c.execute(
            select(func.sum(runs.c.jobs_finished), func.sum(runs.c.completion_tokens), func.max(runs.c.mean_batch_size))
        ).one()
        assert totals[:2] == (150, 150 * 6)
        assert 1 < totals[2] <= 4
        assert not c.execute(select(runs.c.id).where(runs.c.finished_at.is_(None))).all()
        rows = c.execute(select(runs)).all()
        assert sum(sum(row.depth_reasons.values()) for row in rows) == sum(row.steps for row in rows)
        assert all(row.target_seconds > row.draft_seconds > 0 and row.preemptions == 0 for row in rows)
        assert not c.execute(select(results.c.job_id).where(results.c.run_id.is_(None))).all()
    database.dispose()
    assert not EmbeddedBroker(box.settings.home).is_running()
    assert "w0-0" not in worker.log, "a prompt stands in the log"
    assert re.search(r"^depth +auto", worker.log, re.MULTILINE)
    assert re.search(r"run of .* accepted: draft model in \d+ of \d+ steps?", worker.log)


@pytest.mark.thorough(fast=1)
def test_messages_that_come_twice_are_harmless(box: Box) -> None:
    batch = box.submit(*prompts(40))
    worker = box.start_worker(fake_step_seconds=SLOW_STEPS)
    publisher = box.publisher()
    for _ in range(3):
        publisher.publish([PublishableJob(row.id, row.priority) for row in box.rows(batch)])
    box.wait_states(batch, succeeded=40)
    publisher.publish([PublishableJob(row.id, row.priority) for row in box.rows(batch)])
    wait_until(lambda: publisher.depth() == 0, "the duplicates are not taken")
    publisher.close()

    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert [row.attempts for row in box.rows(batch)] == [1] * 40
    assert box.result_count(batch) == 40


@pytest.mark.thorough(fast=1)
def test_higher_priorities_run_first(box: Box) -> None:
    low = box.submit(*prompts(30), priority=1)
    high = box.submit(*prompts(30), priority=8)
    box.start_worker(fake_step_seconds="0.02")
    box.wait_states(low, succeeded=30)

    last_high = max(row.claimed_at for row in box.rows(high))
    early_low = [row for row in box.rows(low) if row.claimed_at < last_high]
    # The claims are committed in groups, so the two meet at the border, not before.
    assert len(early_low) <= 12


def test_cancelling_frees_the_slots_of_running_jobs(box: Box) -> None:
    worker = box.start_worker(fake_hang="endless")
    stuck = box.submit(*["endless story"] * 8)
    box.wait_states(stuck, running=6, queued=2)  # four slots and a look-ahead of two
    waiting = box.submit(*prompts(10))
    with box.client() as client:
        assert client.cancel(stuck) == 8
    box.wait_states(waiting, succeeded=10)

    assert box.states(stuck) == {"cancelled": 8}
    assert box.result_count(stuck) == 0
    assert worker.process.poll() is None


@pytest.mark.thorough
def test_after_kill_9_a_new_worker_ends_every_job_once(box: Box) -> None:
    batch = box.submit(*prompts(200, words=12))
    for _ in range(2):
        worker = box.start_worker(fake_step_seconds="0.02")
        done = box.states(batch).get("succeeded", 0)
        wait_until(lambda done=done: box.states(batch).get("succeeded", 0) > done + 20, "nothing runs")
        worker.kill()
        assert box.states(batch).get("running", 0) > 0, "killed between two jobs"
    box.start_worker()
    box.wait_states(batch, succeeded=200)

    assert box.result_count(batch) == 200
    attempts = [row.attempts for row in box.rows(batch)]
    assert set(attempts) <= {1, 2, 3}
    assert max(attempts) > 1, "no job was in flight when the worker was killed"
    with box.client() as client:
        assert [r.output_text for r in client.results(batch)] == [fake_output(p, 256)[0] for p in prompts(200, 12)]


def test_a_job_that_kills_its_worker_ends_as_worker_lost(embedded_box: Box) -> None:
    box = embedded_box
    batch = box.submit("poison")
    for attempt in (1, 2, 3):
        worker = box.start_worker(ready=False, fake_die="poison")
        assert worker.wait() == 86, worker.log
        assert [(row.state, row.attempts) for row in box.rows(batch)] == [("running", attempt)]
    box.start_worker(fake_die="poison")
    box.wait_states(batch, failed=1)
    assert [row.error_code for row in box.rows(batch)] == ["worker_lost"]


def test_requests_that_cannot_be_served_fail_alone(box: Box) -> None:
    batch = box.submit("good one", "bad apple", "word " * 5000)
    box.start_worker(fake_fail="apple")
    box.wait_states(batch, succeeded=1, failed=2)
    assert [row.error_code for row in box.rows(batch)] == [None, "engine_error", "prompt_too_long"]
    assert box.result_count(batch) == 1


def test_a_failing_step_ends_what_is_in_the_engine_and_the_worker_goes_on(embedded_box: Box) -> None:
    box = embedded_box
    worker = box.start_worker(fake_crash="crash")
    bad = box.submit("crash", "innocent")
    wait_until(lambda: box.states(bad).get("failed", 0) >= 1, "the step does not fail")
    good = box.submit(*prompts(5))
    box.wait_states(good, succeeded=5)
    assert "engine_error" in {row.error_code for row in box.rows(bad)}
    assert worker.process.poll() is None


def test_a_broken_engine_ends_the_worker_and_its_jobs_are_queued_again(embedded_box: Box) -> None:
    box = embedded_box
    batch = box.submit(*["crash"] * 40)
    worker = box.start_worker(ready=False, fake_crash="crash")
    assert worker.wait() == 1, worker.log

    states = box.states(batch)
    assert states.get("running", 0) == 0
    assert states["failed"] >= 1, "the first steps fail their jobs"
    counted = [row for row in box.rows(batch) if row.state == "queued" and row.attempts == 1]
    assert counted, "the attempt counts, or a poisonous job would go round for ever"
    assert "cannot go on" in worker.log


@pytest.mark.thorough
def test_celery_inspects_a_running_worker(box: Box) -> None:
    box.start_worker(fake_hang="endless")
    batch = box.submit("endless story")
    box.wait_states(batch, running=1)
    celery = [sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app"]

    ping = box.run(*celery, "inspect", "ping")
    assert ping.returncode == 0, ping.stderr
    assert "pong" in ping.stdout
    active = box.run(*celery, "inspect", "active", "--json")
    assert active.returncode == 0, active.stderr
    (job,) = box.rows(batch)
    assert f'"args": [{job.id}]' in active.stdout
    assert "endless" not in active.stdout

    grow = box.run(*celery, "control", "pool_grow", "2")
    assert "--max-batch-size" in grow.stdout + grow.stderr, "Flower offers it on every worker's page"

    message = next(part for part in active.stdout.split('"') if part.startswith(f"{job.id}-"))
    revoke = box.run(*celery, "control", "terminate", "SIGTERM", message)
    assert revoke.returncode == 0, revoke.stderr
    box.wait_states(batch, cancelled=1)


def test_celery_worker_is_refused(embedded_box: Box) -> None:
    bare = embedded_box.run(sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app", "worker")
    assert bare.returncode != 0
    assert "python worker.py" in bare.stderr


@pytest.mark.thorough
def test_a_second_worker_on_the_device_is_refused(embedded_box: Box) -> None:
    box = embedded_box
    first = box.start_worker()
    second = box.start_worker(ready=False)
    assert second.wait() == 2
    assert "--allow-shared-device" in second.log
    assert "Traceback" not in second.log
    third = box.start_worker("--allow-shared-device")
    batch = box.submit(*prompts(20))
    box.wait_states(batch, succeeded=20)

    # The broker belongs to the first, but it stays for the third.
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    batch = box.submit(*prompts(20))
    box.wait_states(batch, succeeded=20)
    third.send(signal.SIGTERM)
    assert third.wait() == 0
    assert not EmbeddedBroker(box.settings.home).is_running()


def test_a_worker_that_shares_the_device_keeps_its_jobs_when_others_come_and_go(embedded_box: Box) -> None:
    box = embedded_box
    first = box.start_worker()
    sharing = box.start_worker("--allow-shared-device", fake_hang="endless", shutdown_grace="0")
    first.send(signal.SIGTERM)
    assert first.wait() == 0, first.log
    batch = box.submit(*["endless story"] * 4)
    box.wait_states(batch, running=4)
    box.start_worker("--allow-shared-device")
    assert {(row.state, row.attempts, row.lease) for row in box.rows(batch)} == {("running", 1, 1)}
    sharing.send(signal.SIGTERM)
    assert sharing.wait() == 0, sharing.log
    box.wait_states(batch, succeeded=4)
    assert {(row.attempts, row.lease) for row in box.rows(batch)} == {(1, 2)}


def test_a_broker_that_dies_while_the_models_load_and_stays_away_is_the_error(
    embedded_box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was prepared has begun then."""
    starts = iter([EmbeddedBroker.start])

    def start_once(broker: EmbeddedBroker) -> bool:
        for start in starts:
            return start(broker)
        raise BrokerUnreachableError("the embedded broker cannot be started")

    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setattr(EmbeddedBroker, "start", start_once)
    with pytest.raises(BrokerUnreachableError):
        run_worker(embedded_box.settings, handle_signals=False)
    assert not EmbeddedBroker(embedded_box.settings.home).is_running()


def test_a_worker_that_cannot_start_says_why(embedded_box: Box, short_tmp: object) -> None:
    box = embedded_box
    worker = box.start_worker(ready=False, redis_url="redis://:hidden@127.0.0.1:1/0")
    assert worker.wait() == 3
    assert worker.log.startswith("starting the worker ...\n"), "importing torch takes a while"
    assert "redis://:***@127.0.0.1:1/0" in worker.log
    assert "hidden" not in worker.log
    worker = box.start_worker(ready=False, database_url="postgresql://nobody:hidden@127.0.0.1:1/none")
    assert worker.wait() == 3
    assert "hidden" not in worker.log
    assert "Traceback" not in worker.log
    assert not EmbeddedBroker(box.settings.home).is_running()


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_can_be_stopped_while_it_loads(embedded_box: Box, number: signal.Signals) -> None:
    script = (
        "import sys, time\n"
        "from helix_jobs.worker import process as worker, workplace\n"
        "from helix_jobs.settings import Settings\n"
        "workplace.load_engine = lambda *_: (print('loading', flush=True), time.sleep(600))\n"
        "sys.exit(worker.run_worker(Settings.from_environment()))\n"
    )
    loading = embedded_box.spawn(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert loading.stdout is not None
    assert loading.stdout.readline() == "loading\n"
    assert EmbeddedBroker(embedded_box.settings.home).is_running()
    loading.send_signal(number)
    loading.communicate(timeout=20)
    assert loading.returncode == 130
    assert not EmbeddedBroker(embedded_box.settings.home).is_running()
    assert embedded_box.worker_rows() == []


@pytest.mark.thorough
def test_the_embedded_broker_may_go_while_a_worker_loads(embedded_box: Box) -> None:
    """Its owner stops it when it leaves, as it cannot know of a worker that has not entered its row yet."""
    script = (
        "import sys\n"
        "from helix_jobs.worker import process as worker, workplace\n"
        "from helix_jobs.settings import Settings\n"
        "load = workplace.load_engine\n"
        "wait = lambda: (print('loading', flush=True), sys.stdin.readline())\n"
        "workplace.load_engine = lambda *arguments: (wait(), load(*arguments))[1]\n"
        "sys.exit(worker.run_worker(Settings.from_environment(), allow_shared_device=True))\n"
    )
    box = embedded_box
    owner = box.start_worker()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=box.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as successor:
        assert successor.stdout is not None
        assert successor.stdout.readline() == "loading\n"
        owner.send(signal.SIGTERM)
        assert owner.wait() == 0, owner.log
        batch = box.submit("a b c")
        assert successor.stdin is not None
        successor.stdin.write("go on\n")
        successor.stdin.flush()
        try:
            wait_until(lambda: box.states(batch) == {"succeeded": 1} or successor.poll() is not None, "nothing runs")
        finally:
            successor.send_signal(signal.SIGTERM)
            _, log = successor.communicate(timeout=20)
        assert successor.returncode == 0, log
    assert not EmbeddedBroker(box.settings.home).is_running()


def test_a_killed_worker_does_not_keep_the_embedded_broker_alive(embedded_box: Box) -> None:
    box = embedded_box
    killed = box.start_worker()
    other = box.start_worker("--allow-shared-device")
    killed.kill()
    other.send(signal.SIGTERM)
    assert other.wait() == 0, other.log
    assert not EmbeddedBroker(box.settings.home).is_running()


@pytest.mark.thorough
def test_the_embedded_broker_is_brought_back(embedded_box: Box) -> None:
    box = embedded_box
    batch = box.submit(*prompts(120, words=16))
    worker = box.start_worker(fake_step_seconds=SLOW_STEPS)
    wait_until(lambda: box.states(batch).get("succeeded", 0) > 5, "nothing runs")
    shut_down_broker(box)
    box.wait_states(batch, succeeded=120)
    assert box.result_count(batch) == 120
    assert worker.process.poll() is None, worker.log


@pytest.mark.thorough
def test_who_holds_the_embedded_brokers_start_lock_does_not_stop_the_heartbeat(embedded_box: Box) -> None:
    box = embedded_box
    worker = box.start_worker()
    beats = {row.heartbeat_at for row in box.worker_rows()}
    with FileLock(box.settings.home / "broker" / "start.lock"):
        shut_down_broker(box)

        def beat_twice() -> bool:
            beats.update(row.heartbeat_at for row in box.worker_rows())
            return len(beats) > 2

        wait_until(beat_twice, "no heartbeat")
    batch = box.submit("hello")
    box.wait_states(batch, succeeded=1)
    assert worker.process.poll() is None, worker.log


def test_shims_are_short() -> None:
    assert len((ROOT / "worker.py").read_text(encoding="utf-8").splitlines()) < 15
