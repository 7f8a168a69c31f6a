"""The bench of the queue: what it asks for, and how it sums up. That it runs, test_readme and the test below show."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from helix_jobs.bench.queue.plan import QueuePlan
from helix_jobs.bench.queue.probes import Samples
from helix_jobs.bench.queue.report import Memory
from helix_jobs.bench.queue.session import slowest_tenth
from helix_jobs.cli.group import cli
from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob


def run(*arguments: str):
    return CliRunner().invoke(cli, ["bench", "queue", *arguments])


def accepted(plan: QueuePlan) -> list[NewJob]:
    lines = list(LineReader(SamplingParams()).read(io.BytesIO(b"".join(plan.lines()))))
    good = [line for line in lines if isinstance(line, NewJob)]
    assert len(good) == len(lines) == plan.jobs
    for job in good:
        job.seed_from("b")
    return good


def test_the_lines_are_accepted_and_take_the_steps_that_were_asked_for():
    plan = QueuePlan(command="", jobs=50, steps=(2, 5))
    lines = accepted(plan)
    assert {line.custom_id for line in lines} == {f"q-{n}" for n in range(1, 51)}
    assert list(plan.lines()) == list(plan.lines())
    assert {json.loads(line)["max_tokens"] for line in plan.lines()} == {8, 12, 16, 20}


def test_a_job_of_n_steps_takes_n_steps():
    engine = FakeEngine()
    (line,) = accepted(QueuePlan(command="", jobs=1, steps=(7, 7)))
    engine.add_request(replace(engine.encode(to_engine_request(1, line.request)), request_id="1"))
    ended = []
    while engine.has_unfinished():
        ended += engine.step()
    assert [result.target_steps for result in ended] == [7]


def test_the_slowest_tenth():
    even = [(float(n), 100 * n) for n in range(11)]
    assert slowest_tenth(even) == 100.0
    slow = [*even[:6], *((second + 1.0, lines) for second, lines in even[6:])]
    assert slowest_tenth(slow) == 50.0
    assert slowest_tenth([(0.0, 0)]) == 0.0


def test_memory_of_a_process():
    samples = Samples(
        resident={1: [10, 20, 20, 20, 20, 20, 20, 20, 90, 25], 2: [5, 50, 50, 50, 50, 50, 50, 50, 50, 50]}
    )
    assert samples.memory(1) == Memory(early=20, late=25, peak=90)
    assert samples.memory(3) == Memory(0, 0, 0)
    assert samples.largest_growth([1, 2]) == samples.memory(1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--steps", "5-2"), "'5-2'; give a number of steps"),
        (("--steps", "0"), "'0'; give a number of steps"),
        (("--jobs", "0"), "--jobs"),
        (("--json", "/nowhere/at/all.json"), "the directory of"),
        (("--database", "sqlite:///x.db", "--jobs", "1"), "give a Postgres server"),
        (("--database", "mysql://x", "--jobs", "1"), "mysql"),
        (("--database", "postgresql://nobody:secret@127.0.0.1:1/x", "--jobs", "1"), "does not answer"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, complaint):
    result = run(*arguments)
    assert result.exit_code in {2, 3}
    assert complaint in result.output
    assert "secret" not in result.output
