"""The oracle: what must hold after every scenario, read from the tables, the broker and the engine's own count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from helix_jobs.engine.fake_engine import fake_output
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import FINAL_STATES
from helix_jobs.token_logprobs import TokenLogprobs
from tests.worker_box import comes_true

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.storage.records import BatchStatus
    from tests.acceptance.faults.installation import Installation

BROKER_SECONDS = 15.0
# Between two readings of the clock in one process.
CLOCK_TOLERANCE = timedelta(seconds=0.05)
MAX_REPORTED = 20


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch Helix said yes to.

    Attributes:
        batch_id: The batch.
        prompts: Of its lines, in order.
        expected: Prompt and choice -> right answer; None does not look at the answers.
        allowed: The final states a job may have besides ``succeeded``, such as ``cancelled`` after a cancel.
    """

    batch_id: str
    prompts: Sequence[str]
    expected: Callable[[str, int], str] | None = field(
        default=lambda prompt, choice: fake_output(prompt, 256, choice=choice)[0]
    )
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        jobs: Accepted ones.
        lost: Without a final state, or succeeded without all the answers they asked for.
        doubled: Answers beyond those that were asked for, or final states that are more than one for a job.
        executions: Times the engine began a job, beyond one for each job that was begun.
        broken: What does not hold, in words; empty is the promise kept.
    """

    jobs: int
    lost: int
    doubled: int
    executions: int
    broken: tuple[str, ...]


def line_of(prompt: str, number: int) -> dict[str, Any]:
    """An input line. Every third asks for three answers, of which none may be lost or doubled, every fifth for numbers.

    These are the log probabilities of its tokens and its prompt's, which stand in the answers' rows.
    """
    several = {"n": 3, "temperature": 1.0} if number % 3 == 2 else {}
    numbers = {"logprobs": 1, "prompt_logprobs": 0} if number % 5 == 4 else {}
    return {"prompt": prompt, **several, **numbers}


def judge(
    installation: Installation, batches: Sequence[Accepted], *, steady_clock: bool = True, quiet_broker: bool = True
) -> Verdict:
    """Look at everything.

    Args:
        installation: Idle by now, with a living worker.
        batches: Every batch it accepted.
        steady_clock: False where the scenario set the wall clock.
        quiet_broker: Whether queue and ``unacked`` must run empty; False where no worker lives at the end.
    """
    broken: list[str] = []
    lost = doubled = 0
    with installation.client() as client:
        for batch in batches:
            found = _Batch(installation, batch, client.status(batch.batch_id))
            broken += found.check(steady_clock=steady_clock)
            lost += found.lost
            doubled += found.doubled
    if quiet_broker:
        broken += _broker_leftovers(installation)
    executions, twice = _executions(installation)
    broken += twice
    return Verdict(sum(len(batch.prompts) for batch in batches), lost, doubled, executions, tuple(broken))


class _Batch:
    """One batch against its rows."""

    def __init__(self, installation: Installation, batch: Accepted, status: BatchStatus) -> None:
        self._batch = batch
        self._status = status
        self._rows: list[Any] = installation.rows(batch.batch_id)
        with installation.read() as c:
            query = select(results).join(jobs, jobs.c.id == results.c.job_id).where(jobs.c.batch_id == batch.batch_id)
            found = c.execute(query.order_by(results.c.choice)).all()
        self._answers: dict[int, list[Any]] = {}
        for row in found:
            self._answers.setdefault(row.job_id, []).append(row)
        self.doubled = self.lost = 0

    def check(self, *, steady_clock: bool) -> list[str]:
        broken = []
        if [row.line for row in self._rows] != list(range(1, len(self._batch.prompts) + 1)):
            self.lost += max(0, len(self._batch.prompts) - len(self._rows))
            broken.append(f"{self._batch.batch_id}: {len(self._rows)} rows for {len(self._batch.prompts)} lines")
        for row, prompt in zip(self._rows, self._batch.prompts, strict=False):
            broken += [f"job {row.id}: {what}" for what in self._check_job(row, prompt, steady_clock=steady_clock)]
        broken += self._check_counters()
        return (
            [*broken[:MAX_REPORTED], f"and {len(broken) - MAX_REPORTED} more"] if len(broken) > MAX_REPORTED else broken
        )

    def _check_job(self, row: Any, prompt: str, *, steady_clock: bool) -> list[str]:
        broken = []
        answers = self._answers.get(row.id, [])
        asked = row.request.get("sampling", {}).get("n", 1)
        if row.state not in FINAL_STATES:
            self.lost += 1
            broken.append(f"is {row.state}: no final state" + (", a lease is held" if row.state == "running" else ""))
        elif row.state != "succeeded" and row.state not in self._batch.allowed:
            broken.append(f"is {row.state} ({row.error_code}: {row.error_message})")
        if row.attempts > row.max_attempts:
            broken.append(f"{row.attempts} attempts, the cap is {row.max_attempts}")
        has_answer = row.state == "succeeded" or row.error_code == "not_accepted"
        if has_answer and (choices := [answer.choice for answer in answers]) != list(range(asked)):
            self.lost += len(choices) < asked
            self.doubled += len(choices) > asked
            broken.append(f"is {row.state} with the choices {choices} of {asked}")
        if not has_answer and answers:
            self.doubled += 1
            broken.append(f"has a result and is {row.state}")
        for answer in answers if has_answer else ():
            broken += self._check_result(row, answer, prompt, steady_clock=steady_clock)
        return broken

    def _check_result(self, row: Any, result: Any, prompt: str, *, steady_clock: bool) -> list[str]:
        broken = []
        if self._batch.expected is not None and result.output_text != self._batch.expected(prompt, result.choice):
            broken.append("the result is another job's, or cut")
        broken += _check_numbers(row, result)
        if (result.worker_id, result.created_at) != (row.worker_id, row.finished_at):
            broken.append(f"the result of {result.worker_id} is not the last holder's, {row.worker_id}")
        began = result.created_at - timedelta(seconds=result.total_seconds)
        if row.claimed_at is None:
            broken.append("the result was written while nobody held the job")
        elif steady_clock and began < row.claimed_at - CLOCK_TOLERANCE:
            broken.append("the result was begun before the last claim: it is of a stale lease")
        return broken

    def _check_counters(self) -> list[str]:
        """A job that ends twice shows in the counters, as its row has room for one end only."""
        states = Counter(row.state for row in self._rows)
        counted = {str(state): count for state, count in self._status.counts.items() if state in FINAL_STATES}
        tries = sum(row.tries for row in self._rows)
        if self._status.refused != tries:
            return [f"{self._batch.batch_id}: {self._status.refused} refusals counted, the rows have {tries}"]
        over = sum(max(0, count - states[state]) for state, count in counted.items())
        self.doubled += over
        if any(count != states[state] for state, count in counted.items()):
            return [f"{self._batch.batch_id}: the counters say {counted}, the rows {dict(states)}"]
        return []


def _check_numbers(row: Any, result: Any) -> list[str]:
    """An answer has as many log probabilities as tokens, and the first answer of a job those of the prompt."""
    asked = row.request.get("sampling", {})
    counts = [
        None if data is None else len(TokenLogprobs.from_bytes(data))
        for data in (result.logprobs, result.prompt_logprobs)
    ]
    wanted = [
        result.completion_tokens if "logprobs" in asked else None,
        result.prompt_tokens if "prompt_logprobs" in asked and result.choice == 0 else None,
    ]
    return [] if counts == wanted else [f"its log probabilities are {counts}, not {wanted}"]


def _broker_leftovers(installation: Installation) -> list[str]:
    """Give the living worker time to take what is left, then say what it left."""
    publisher, names = installation.publisher(), installation.names
    left: dict[str, int] = {}

    def is_empty() -> bool:
        left["messages wait in the queue"] = publisher.depth()
        left["messages are unacked"] = installation.redis.unacked(names)
        return not any(left.values())

    comes_true(is_empty, BROKER_SECONDS)
    publisher.close()
    return [f"{count} {what}" for what, count in left.items() if count]


def _executions(installation: Installation) -> tuple[int, list[str]]:
    """Executions beyond one for each job, and leases under which a job ran twice."""
    try:
        lines = installation.executions_file.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return 0, []
    per_job = Counter(line.split(".")[0] for line in lines)
    twice = [line for line, count in Counter(lines).items() if count > 1]
    return len(lines) - len(per_job), [f"lease {line} was executed twice" for line in twice[:MAX_REPORTED]]
