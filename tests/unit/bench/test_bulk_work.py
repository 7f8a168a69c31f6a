"""Bulk work that something is measured beside: it runs dry never, and the worker's processor is kept for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from helix_jobs.bench import bulk_work, serving
from helix_jobs.bench.bulk_work import BulkWork
from helix_jobs.bench.loaded import LoadPlan
from helix_jobs.bench.serving import ServingBench, ServingPlan
from helix_jobs.errors import HelixError
from helix_jobs.settings import Settings
from helix_jobs.storage.states import JobState


class Worker:
    """Ends 90 jobs a second of a clock that only sleeping moves on, the oldest batch first."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[str, int] = {}
        self.least: int | None = None

    def hand_in(self, requests: list[dict[str, Any]]) -> str:
        assert len({request["prompt"] for request in requests}) > 1
        self.jobs[str(len(self.jobs))] = len(requests)
        return str(len(self.jobs) - 1)

    def status(self, batch: str) -> Any:
        before = sum(count for other, count in self.jobs.items() if int(other) < int(batch))
        ended = min(self.jobs[batch], max(0, int(90 * self.now) - before))
        left = {JobState.QUEUED: self.jobs[batch] - ended, JobState.RUNNING: 0}
        return SimpleNamespace(finished=ended, counts=left, completion_tokens=8 * ended)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        left = sum(self.jobs.values()) - int(90 * self.now)
        self.least = left if self.least is None else min(left, self.least)


def test_work_does_not_run_dry_however_long_a_turn_is(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    monkeypatch.setattr(bulk_work, "time", SimpleNamespace(sleep=worker.sleep, perf_counter=lambda: worker.now))
    work = BulkWork(worker, 1, 8, worker.hand_in)  # type: ignore[arg-type]
    work.begin()
    before, began = work.tokens(), worker.now
    assert before >= 3 * 8
    work.keep_up(30.0)
    assert worker.now == pytest.approx(began + 30.0)
    assert work.tokens() - before == pytest.approx(30 * 90 * 8, abs=8)
    assert worker.least is not None
    assert worker.least > 0


def test_the_broker_leaves_the_worker_s_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts on the processors that its parent is bound to."""
    said: list[str] = []

    class Share:
        def take_first(self) -> None:
            said.append("first")

        def take_others(self) -> None:
            said.append("others")

        def take_all(self) -> None:
            said.append("all")

    class Broker:
        url = "redis://127.0.0.1:1/0"

        def __init__(self, _: object) -> None: ...

        def start(self) -> None:
            said.append("broker")

        def stop(self) -> None: ...

    def start(_stack: object, _settings: object, command: str, *_: object) -> tuple[int, str]:
        said.append(command)
        if command == "serve":
            raise HelixError("it does not start")
        return 0, ""

    monkeypatch.setattr(serving, "ProcessorShare", Share)
    monkeypatch.setattr(serving, "EmbeddedBroker", Broker)
    monkeypatch.setattr(serving, "start_process", start)
    plan = LoadPlan(turns=1, seconds=1.0, max_tokens=8, is_apart=True)
    bench = ServingBench(
        Settings.from_environment({}),
        ServingPlan(command="", requests=1, max_tokens=8, load=plan),
        lambda _: None,
    )
    with pytest.raises(HelixError, match="it does not start"):
        bench.run()
    assert said == ["others", "broker", "first", "worker", "others", "serve", "all"]
