"""Runs as rows: the engine's work in each busy stretch, and its one log line."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from helix_jobs.errors import HelixError
from helix_jobs.storage import workers
from helix_jobs.storage.records import RunTotals
from helix_jobs.wording import counted
from helix_jobs.worker.engine_run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from helix_jobs.engine.protocol import EnergyMeter, EngineCounters

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The engine's depth reasons in words, each to be followed by "in N steps". A reason without words is shown as it is: a
# drafter that finds drafts goes by its name.
REASON_WORDS: Final = {
    "model": "draft model",
    "mixed": "several drafters",
    "explore": "trying the draft model",
    "off:cost": "off for cost",
    "off:acceptance": "off for acceptance",
    "off:nothing": "nothing to draft",
}


class Writer(Protocol):
    """The group commit writer as this module sees it."""

    def submit(self, function: Callable[[Connection], T], /) -> Future[T]:
        """Run ``function`` in a transaction that is committed when the future resolves.

        Raises:
            HelixError: The writer is closed.
        """


class DatabaseRunRecorder:
    """Writes runs through the group commit writer, so that the engine's thread never waits for the database.

    A step that outlasts the worker's stop finds the writer closed. Its run then appears only in the log: no job can be
    finished any more, and the engine is sound.

    Args:
        writer: The group commit writer.
        worker_id: Whose runs these are.
        energy: Counts what the device takes; None where nobody does.
    """

    def __init__(self, writer: Writer, worker_id: str, energy: EnergyMeter | None = None) -> None:
        self._writer = writer
        self._worker_id = worker_id
        self._energy = energy

    def begin(self, counters: EngineCounters) -> Run:
        """Open a run. Results written later find its id in ``row_id``, as the writer keeps the order."""
        run = Run(counters, time.monotonic(), self._joules())
        now = datetime.now(UTC)

        def insert(c: Connection) -> None:
            run.row_id = workers.start_run(c, self._worker_id, now)

        def check(future: Future[None]) -> None:
            if future.cancelled() or future.exception() is not None:
                run.row_id = None
                logger.warning("a run could not be recorded; its results stand without it")

        self._submit(insert).add_done_callback(check)
        return run

    def end(self, run: Run, counters: EngineCounters, *, jobs_finished: int, idle_seconds: float) -> None:
        """Close a run and log its one line."""
        seconds = max(0.0, time.monotonic() - run.began - idle_seconds)
        spent = None if run.joules is None or (now := self._joules()) is None else now - run.joules
        totals = run_totals(
            run.counters,
            counters,
            jobs_finished=jobs_finished,
            seconds=seconds,
            joules=spent,
            step_costs=run.costs.to_json(),
        )
        ended = datetime.now(UTC) - timedelta(seconds=idle_seconds)

        def update(c: Connection) -> None:
            if run.row_id is not None:
                workers.finish_run(c, run.row_id, totals, ended)

        self._submit(update)
        log_run(run.row_id, totals, seconds)

    def _joules(self) -> float | None:
        return None if self._energy is None else self._energy.joules()

    def _submit(self, function: Callable[[Connection], None]) -> Future[None]:
        try:
            return self._writer.submit(function)
        except HelixError as error:
            refused: Future[None] = Future()
            refused.set_exception(error)
            return refused


def log_run(run_id: int | None, totals: RunTotals, seconds: float) -> None:
    """The run's one line: words for a person, and in JSON also its figures."""
    figures = {"run_id": run_id, "seconds": seconds, "acceptance_rate": totals.acceptance_rate, **asdict(totals)}
    del figures["step_costs"]
    logger.info(
        "run of %.1f s: %s, %s, %.1f tokens/s, mean batch %.1f; %s",
        seconds,
        counted(totals.jobs_finished, "job"),
        counted(totals.completion_tokens, "token"),
        totals.tokens_per_second or 0.0,
        totals.mean_batch_size or 0.0,
        describe_drafting(totals),
        extra={"figures": figures},
    )


def describe_drafting(totals: RunTotals) -> str:
    """Describe how much a run drafted, and why.

    ``drafted 0.4 tokens a sequence and step, 62% accepted: lookup in 40 of 69 steps, off for cost in 29``. With a fixed
    depth there are no reasons.
    """
    if totals.acceptance_rate is not None:
        accepted = f"{totals.acceptance_rate:.0%} accepted"
        drafted = f"drafted {totals.mean_depth or 0.0:.1f} tokens a sequence and step, {accepted}"
    else:
        drafted = "nothing drafted"
    why = describe_reasons(totals.depth_reasons)
    return f"{drafted}: {why}" if why else drafted


def describe_reasons(depth_reasons: Mapping[str, int]) -> str:
    """``lookup in 40 of 69 steps, off for cost in 27, ...``, the most frequent first; empty without reasons."""
    steps = sum(depth_reasons.values())
    ordered = sorted(depth_reasons.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{REASON_WORDS.get(reason, reason)} in {number}" for reason, number in ordered]
    if not parts:
        return ""
    return ", ".join([f"{parts[0]} of {counted(steps, 'step')}", *parts[1:]])


def run_totals(
    before: EngineCounters,
    after: EngineCounters,
    *,
    jobs_finished: int,
    seconds: float,
    joules: float | None = None,
    step_costs: Mapping[str, Any] | None = None,
) -> RunTotals:
    """Compute a run's figures from two snapshots of the engine's counters.

    ``peak_blocks`` is the engine's peak so far: the engine keeps no peak of a single run. A run that computed has spent
    time in attention. A difference of 0 therefore means that the device cannot measure it, and is stored as None.
    """
    spent = after - before
    decodes = spent.decode_sequence_steps
    return RunTotals(
        **spent.tokens(),
        steps=spent.steps,
        jobs_finished=jobs_finished,
        mean_batch_size=spent.sequence_steps / spent.steps if spent.steps else None,
        mean_depth=spent.draft_tokens / decodes if decodes else None,
        peak_blocks=spent.peak_blocks,
        tokens_per_second=spent.completion_tokens / seconds if seconds > 0 else None,
        preemptions=spent.preemptions,
        depth_reasons=spent.depth_reasons,
        schedule_seconds=spent.schedule_seconds,
        draft_seconds=spent.draft_seconds,
        target_seconds=spent.target_seconds,
        attention_seconds=spent.attention_seconds or None,
        verify_seconds=spent.verify_seconds,
        energy_joules=joules,
        step_costs=step_costs,
    )
