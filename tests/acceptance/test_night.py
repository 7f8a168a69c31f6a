"""An evening end to end, as docs/night.md tells it: a table, a plan, a run that is disturbed, a report, a second run.

It takes as long as the demo model needs for 2,000 rows, and prints what was promised beside what was had.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

QUESTIONS: Final = Path(__file__).parent.parent / "data" / "spec_bench.jsonl"
TASKS: Final = ("Answer in one sentence", "Name the topic in three words", "Write a title", "List two facts")
TEMPLATE: Final = "{{ task }}: {{ question }}"
ROWS: Final = 2_000
CHANGED: Final = ROWS // 100
PATIENCE: Final = 4 * 3600.0
# Each look starts a process, which takes a second of a processor from the worker.
LOOK_SECONDS: Final = 15.0
ASKED: Final = ("--template", "ask.j2", "--chat", "--id", "id", "--max-tokens", "32")


def table_rows() -> list[dict[str, str]]:
    """Each of Spec-Bench's 480 questions with four tasks, and its 80 second turns."""
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    asked = [(task, one["category"], one["turns"][0]) for one in questions for task in TASKS]
    asked += [(TASKS[0], one["category"], one["turns"][1]) for one in questions if len(one["turns"]) > 1]
    return [
        {"id": f"q{number}", "category": category, "task": task, "question": question}
        for number, (task, category, question) in enumerate(asked, 1)
    ]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Evening:
    """A folder in which somebody types commands, with the demo model and the embedded default."""

    def __init__(self, folder: Path, demo_home: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        (home / "models").symlink_to(demo_home / "models")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
        self.environment = {**kept, "HELIX_HOME": str(home), "HELIX_LOCK_DIR": str(folder / "locks")}
        self.worker: subprocess.Popen[bytes] | None = None

    def helix(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "helix_jobs", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode in codes, f"{arguments}: {done.stderr}"
        return done.stdout

    def figures(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.helix(*arguments, "--json", codes=codes))
        return found

    def status(self, batch: str) -> dict[str, Any]:
        return self.figures("status", batch)

    def start_worker(self) -> None:
        log = self.folder / "worker.txt"
        with log.open("ab") as output:
            begun = log.stat().st_size
            command = [sys.executable, "-m", "helix_jobs", "worker"]
            self.worker = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: b"Ready." in log.read_bytes()[begun:], lambda: log.read_text(encoding="utf-8"), 900.0)

    def end_worker(self, number: signal.Signals) -> None:
        assert self.worker is not None
        self.worker.send_signal(number)
        self.worker.wait(300.0)
        self.worker = None

    def wait_succeeded(self, batch: str, count: int) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while (status := self.status(batch))["counts"]["succeeded"] < count:
            assert time.monotonic() < deadline, status
            time.sleep(LOOK_SECONDS)
        return status


def promised_and_had(
    plan: dict[str, Any], looks: dict[str, dict[str, Any]], done: dict[str, Any], seconds: float
) -> Iterator[str]:
    """The plan's figures and those of a look at each of these parts, beside what came out."""
    yield f"tokens in: {plan['prompt_tokens']:,}, had {done['prompt_tokens']:,}"
    yield f"tokens out: {plan['completion_tokens']:,}, had {done['completion_tokens']:,}"
    low, median, high = (plan["seconds"][part] for part in ("low", "median", "high"))
    yield f"done in ten hours: {plan['by']}"
    yield f"seconds: {median:.0f} ({low:.0f} to {high:.0f}), had {seconds:.0f}"
    for part, look in looks.items():
        yield f"end as forecast at {part}: {look['forecast']}, had {done['finished_at']}"


@pytest.fixture
def evening(demo_home: Path) -> Iterator[Evening]:
    folder = Path(tempfile.mkdtemp(prefix="hx-"))
    evening = Evening(folder, demo_home)
    yield evening
    if evening.worker is not None:
        evening.worker.kill()
        evening.worker.wait()
    shutil.rmtree(folder, ignore_errors=True)


def test_an_evening(evening: Evening) -> None:
    rows = table_rows()
    assert len(rows) == ROWS
    write_table(evening.folder / "questions.csv", rows)
    (evening.folder / "ask.j2").write_text(TEMPLATE, encoding="utf-8")

    morning = (datetime.now().astimezone() + timedelta(hours=10)).strftime("%Y-%m-%dT%H:%M")
    plan = evening.figures("plan", "questions.csv", *ASKED, "--by", morning)
    evening.start_worker()
    began = time.monotonic()
    first = evening.figures("submit", "questions.csv", *ASKED, "--deadline", morning)["batch_id"]
    early = evening.wait_succeeded(first, ROWS // 4)

    evening.helix("pause", first)
    wait_until(lambda: evening.status(first)["counts"]["running"] == 0, "running jobs end", 300.0)
    stood = evening.status(first)["counts"]["succeeded"]
    paused_at = time.monotonic()
    time.sleep(10.0)
    assert evening.status(first)["counts"]["succeeded"] == stood, "nothing begins in a pause"
    evening.helix("resume", first)
    away = time.monotonic() - paused_at

    half = evening.wait_succeeded(first, ROWS // 2)
    killed_at = time.monotonic()
    evening.end_worker(signal.SIGKILL)
    evening.start_worker()
    away += time.monotonic() - killed_at
    done = evening.wait_succeeded(first, ROWS)
    took = time.monotonic() - began

    evening.helix("report", first, "-o", "report.html")
    assert "Tokens written" in (evening.folder / "report.html").read_text(encoding="utf-8")

    for row in rows[:: ROWS // CHANGED]:
        row["question"] += " Be brief."
    write_table(evening.folder / "questions.csv", rows)
    plan_again = evening.figures("plan", "questions.csv", *ASKED)
    assert plan_again["from_cache"] == ROWS - CHANGED
    again = time.monotonic()
    second = evening.figures("submit", "questions.csv", *ASKED)["batch_id"]
    last = evening.wait_succeeded(second, ROWS)
    took_again = time.monotonic() - again
    diff = evening.figures("diff", first, second, codes=(0, 1))
    evening.end_worker(signal.SIGINT)

    for line in promised_and_had(plan, {"a quarter": early, "half": half}, done, took - away):
        print(line)  # noqa: T201  (what docs/night.md tells)
    print(f"{away:.0f} s paused or without a worker")  # noqa: T201
    print(f"second run, seconds: {plan_again['seconds']}, had {took_again:.0f} with submit")  # noqa: T201
    print(f"stored answers {last['from_cache']}, computed {ROWS - last['from_cache']}; {diff['summary']}")  # noqa: T201
    assert done["completion_tokens"] > 0
    assert last["from_cache"] == ROWS - CHANGED, "whatever is as it was costs nothing"
