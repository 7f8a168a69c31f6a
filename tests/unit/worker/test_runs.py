"""What a run's row and its log line say."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.engine.speculation.depth.controller import DepthReason
from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter
from helix_jobs.engine.speculation.speculator import MIXED
from helix_jobs.observability.logging import configure_logging
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.storage.records import RunTotals
from helix_jobs.storage.schema import runs
from helix_jobs.storage.workers import register_worker
from helix_jobs.worker.runs import (
    REASON_WORDS,
    DatabaseRunRecorder,
    describe_drafting,
    describe_reasons,
    log_run,
    run_totals,
)
from tests.store_helpers import now, worker

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database


def totals_of(before: EngineCounters, after: EngineCounters) -> RunTotals:
    return run_totals(before, after, jobs_finished=1, seconds=1.0)


def test_a_runs_figures_are_the_difference_of_two_snapshots() -> None:
    before = EngineCounters(steps=10, sequence_steps=40, decode_sequence_steps=30, completion_tokens=100)
    after = EngineCounters(
        steps=20, sequence_steps=80, decode_sequence_steps=50, completion_tokens=160, draft_tokens=60, peak_blocks=7
    )
    totals = run_totals(before, after, jobs_finished=3, seconds=2.0)
    assert (totals.steps, totals.mean_batch_size, totals.mean_depth) == (10, 4.0, 3.0)
    assert (totals.completion_tokens, totals.tokens_per_second, totals.peak_blocks) == (60, 30.0, 7)
    empty = run_totals(before, before, jobs_finished=0, seconds=0.0)
    assert (empty.mean_batch_size, empty.mean_depth, empty.tokens_per_second) == (None, None, None)


def test_times_and_reasons_are_those_of_the_run():
    before = EngineCounters(
        steps=4,
        cached_prompt_tokens=16,
        preemptions=1,
        schedule_seconds=1.0,
        draft_seconds=2.0,
        target_seconds=3.0,
        attention_seconds=0.5,
        verify_seconds=4.0,
        depth_reasons={"lookup": 3, "off:cost": 1},
    )
    after = EngineCounters(
        steps=9,
        cached_prompt_tokens=48,
        preemptions=3,
        schedule_seconds=1.5,
        draft_seconds=2.25,
        target_seconds=5.0,
        attention_seconds=0.75,
        verify_seconds=4.125,
        depth_reasons={"lookup": 3, "off:cost": 4, "model": 2},
    )
    totals = totals_of(before, after)
    assert (totals.cached_prompt_tokens, totals.preemptions) == (32, 2)
    assert (totals.schedule_seconds, totals.draft_seconds, totals.target_seconds) == (0.5, 0.25, 2.0)
    assert (totals.attention_seconds, totals.verify_seconds) == (0.25, 0.125)
    assert totals.depth_reasons == {"off:cost": 3, "model": 2}, "lookup decided no step of this run"


def test_an_attention_time_that_nobody_measured_is_unknown_not_zero():
    totals = totals_of(EngineCounters(target_seconds=1.0), EngineCounters(steps=1, target_seconds=2.0))
    assert totals.attention_seconds is None


def test_every_reason_of_a_step_has_words():
    reasons = {reason.value for reason in DepthReason if reason is not DepthReason.PAYS}
    assert reasons | {DraftModelDrafter.name, MIXED} == set(REASON_WORDS), "a finding drafter goes by its own name"


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (
            RunTotals(
                draft_tokens=40, accepted_tokens=30, mean_depth=0.4, depth_reasons={"off:cost": 27, "lookup": 42}
            ),
            "drafted 0.4 tokens a sequence and step, 75% accepted: lookup in 42 of 69 steps, off for cost in 27",
        ),
        (RunTotals(depth_reasons={"off:cost": 1}), "nothing drafted: off for cost in 1 of 1 step"),
        (RunTotals(draft_tokens=8, mean_depth=4.0), "drafted 4.0 tokens a sequence and step, 0% accepted"),
        (RunTotals(), "nothing drafted"),
    ],
)
def test_what_was_drafted_and_why_is_said_in_words(totals, said):
    assert describe_drafting(totals) == said


def test_a_reason_without_words_is_shown_as_it_is_and_ties_keep_one_order():
    assert describe_reasons({"new": 2, "model": 2}) == "draft model in 2 of 4 steps, new in 2"


def test_the_json_line_has_the_figures_by_the_names_of_the_columns():
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    log_run(7, RunTotals(steps=2, depth_reasons={"lookup": 2}, target_seconds=1.5), 2.0)
    entry = json.loads(stream.getvalue())
    assert (entry["run_id"], entry["depth_reasons"], entry["target_seconds"]) == (7, {"lookup": 2}, 1.5)
    assert entry["message"].endswith("; nothing drafted: lookup in 2 of 2 steps")


def test_a_runs_log_line_carries_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="helix_jobs")
    totals = RunTotals(steps=4, jobs_finished=1, completion_tokens=10, draft_tokens=8, accepted_tokens=6)
    log_run(3, totals, 2.0)
    (record,) = caplog.records
    assert record.getMessage().startswith("run of 2.0 s: 1 job, 10 tokens, ")
    assert record.figures["run_id"] == 3
    assert (record.figures["jobs_finished"], record.figures["acceptance_rate"]) == (1, 0.75)


def test_a_run_that_begins_and_ends_after_the_writer_was_closed_is_logged_alone(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's step under way has outlasted the time that a stop gives it."""
    caplog.set_level(logging.INFO, logger="helix_jobs")
    writer = GroupCommitWriter(sqlite_database)
    assert writer.close(20)
    recorder = DatabaseRunRecorder(writer, "me")
    run = recorder.begin(EngineCounters())
    recorder.end(run, EngineCounters(steps=1), jobs_finished=0, idle_seconds=0.0)
    assert run.row_id is None
    assert [record.getMessage()[:7] for record in caplog.records] == ["a run c", "run of "]


class Told:
    """A meter that tells this, one after the other."""

    def __init__(self, joules: list[float | None]) -> None:
        self._joules = iter(joules)

    def joules(self) -> float | None:
        return next(self._joules)


@pytest.mark.parametrize(("told", "spent"), [([100.0, 350.5], 250.5), ([None, 10.0], None), ([10.0, None], None)])
def test_a_run_has_what_the_device_took_meanwhile(
    database: Database, told: list[float | None], spent: float | None
) -> None:
    writer = GroupCommitWriter(database)
    with database.write() as c:
        register_worker(c, worker("me"), now())
    recorder = DatabaseRunRecorder(writer, "me", Told(told))
    run = recorder.begin(EngineCounters())
    recorder.end(run, EngineCounters(steps=1), jobs_finished=0, idle_seconds=0.0)
    assert writer.close(20)
    with database.read() as c:
        assert c.execute(select(runs.c.energy_joules)).scalars().all() == [spent]
