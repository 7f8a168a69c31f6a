"""The report of a batch: what stands in it, in words. Pure; ``html`` and a template make a page of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.reports.batch_charts import batch_charts
from helix_jobs.reports.manifest_words import alike, makers_in_words, options_in_words
from helix_jobs.reports.outcome_words import FINISHES, refused_answers
from helix_jobs.reports.prompts import prompt_of, text_of
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration, energy, percent, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.reports.charts import Chart
    from helix_jobs.storage.batch_examples import ExampleJob
    from helix_jobs.storage.batch_facts import BatchFacts
    from helix_jobs.storage.batch_figures import RankedJob


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that is seen first: what it is, its value, and a line below it."""

    label: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """A job to read.

    Attributes:
        name: Its ``custom_id`` or line.
        asked: Its prompt, or the last message of its chat.
        thought: What the model thought before the answer.
        answer: The answer; None where there is none.
        facts: Its figures, or why it has no answer.
    """

    name: str
    asked: str
    thought: str | None
    answer: str | None
    facts: str


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Jobs that failed with one code: how many, and the first of them."""

    code: str
    jobs: int
    examples: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What stands in a report.

    Attributes:
        title: What the batch is called.
        state: How it stands.
        tiles: What is seen first.
        asked: Label and value of what it was submitted with.
        answered: For each kind of worker, label and value of what it is.
        charts: Its charts.
        outcomes: What became of how many jobs and answers.
        errors: The errors, the most frequent first.
        slowest: Jobs that took longest: name, time, tokens.
        longest: Jobs with the longest answers.
        times: What the engine's time went into.
        sample: Answers to read.
    """

    title: str
    state: str
    tiles: tuple[Tile, ...]
    asked: tuple[tuple[str, str], ...]
    answered: tuple[tuple[tuple[str, str], ...], ...]
    charts: tuple[Chart, ...]
    outcomes: tuple[tuple[str, str], ...]
    errors: tuple[ErrorGroup, ...]
    slowest: tuple[tuple[str, str, str], ...]
    longest: tuple[tuple[str, str, str], ...]
    times: tuple[tuple[str, str], ...]
    sample: tuple[Reading, ...]


def batch_report(facts: BatchFacts) -> BatchReport:
    """What the report of a batch says."""
    status = facts.status
    counts = sorted(status.error_counts.items(), key=lambda item: (-item[1], item[0]))
    return BatchReport(
        title=status.name or status.id,
        state=str(status.state),
        tiles=tuple(_tiles(facts)),
        asked=tuple(_asked(facts)),
        answered=tuple(tuple(makers_in_words(makers)) for makers in alike(facts.manifest.makers)),
        charts=tuple(batch_charts(facts)),
        outcomes=tuple(_outcomes(facts)),
        errors=tuple(
            ErrorGroup(code, jobs, tuple(_reading(job) for job in facts.errors.get(code, ()))) for code, jobs in counts
        ),
        slowest=tuple(_ranked(facts.figures.slowest)),
        longest=tuple(_ranked(facts.figures.longest)),
        times=tuple(_times(facts)),
        sample=tuple(_reading(job) for job in facts.sample),
    )


def _tiles(facts: BatchFacts) -> list[Tile]:
    status = facts.status
    total = status.stored if status.total is None else status.total
    unanswered = status.counts[JobState.FAILED] + status.counts[JobState.CANCELLED]
    tiles = [
        Tile("Answered", f"{status.counts[JobState.SUCCEEDED]:,}", f"of {counted(total, 'job')}"),
        Tile("Without an answer", f"{unanswered:,}", f"{percent(unanswered / total)} of all" if unanswered else ""),
    ]
    if status.elapsed_seconds is not None:
        tiles.append(Tile("Time", duration(status.elapsed_seconds), "" if status.done else "so far"))
    if status.completion_tokens:
        speed = "" if status.tokens_per_second is None else f"{rate(status.tokens_per_second)} tokens/s"
        tiles.append(Tile("Tokens written", f"{status.completion_tokens:,}", speed))
        shared = status.cached_prompt_tokens / status.prompt_tokens if status.prompt_tokens else 0.0
        saved = f"{percent(shared)} shared, not computed" if shared else ""
        tiles.append(Tile("Tokens read", f"{status.prompt_tokens:,}", saved))
    if status.acceptance_rate is not None:
        drafted = f"of {counted(status.draft_tokens, 'drafted token')}"
        tiles.append(Tile("Drafts accepted", percent(status.acceptance_rate), drafted))
    return tiles


def _asked(facts: BatchFacts) -> list[tuple[str, str]]:
    manifest = facts.manifest
    rows = [("Batch", manifest.batch_id)]
    if manifest.source:
        rows.append(("File", manifest.source))
    rows.append(("Submitted", manifest.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")))
    if manifest.content_digest:
        rows.append(("Lines' digest", manifest.content_digest))
    return [*rows, *options_in_words(manifest.defaults, manifest.metadata)]


def _outcomes(facts: BatchFacts) -> list[tuple[str, str]]:
    status, figures = facts.status, facts.figures
    rows = [(f"Jobs {state}", f"{status.counts[state]:,}") for state in JobState if status.counts[state]]
    for reason, answers in figures.finish_reasons.most_common():
        words = FINISHES.get(reason, f"ended by {reason}")
        rows.append((f"{words[:1].upper()}{words[1:]}", counted(answers, "answer")))
    again = sum(jobs for attempts, jobs in figures.attempts.items() if attempts > 1)
    if again:
        rows.append(("Jobs begun again after a lost worker or server", f"{again:,}"))
    if status.refused:
        refused = sum(jobs for tries, jobs in figures.tries.items() if tries)
        rows.append(("Tried again", f"{refused_answers(status.refused)}, of {counted(refused, 'job')}"))
    if status.from_cache:
        rows.append(("Jobs whose answer came from the cache", f"{status.from_cache:,}"))
    if status.cached_prompt_tokens:
        part = status.cached_prompt_tokens / max(1, status.prompt_tokens)
        rows.append(("Prompt tokens shared with other jobs", f"{status.cached_prompt_tokens:,} ({percent(part)})"))
    return rows


def _times(facts: BatchFacts) -> list[tuple[str, str]]:
    runs = facts.runs
    parts = {
        "Target model": sum(run.target_seconds or 0.0 for run in runs.read) * runs.step,
        "Drafts": sum(run.draft_seconds or 0.0 for run in runs.read) * runs.step,
        "Verification and sampling": sum(run.verify_seconds or 0.0 for run in runs.read) * runs.step,
        "Scheduling": sum(run.schedule_seconds or 0.0 for run in runs.read) * runs.step,
    }
    whole = sum(parts.values())
    if not whole:
        return []
    rows = [(label, f"{duration(seconds)} ({percent(seconds / whole)})") for label, seconds in parts.items()]
    preempted = sum(run.preemptions or 0 for run in runs.read) * runs.step
    if preempted:
        rows.append(("Sequences that had to make room", f"{preempted:,}"))
    rows += _energy(facts)
    if runs.step > 1:
        rows.append(("Estimated", f"from one of {runs.step} of the {counted(runs.count, 'run')} of its workers"))
    return rows


def _energy(facts: BatchFacts) -> list[tuple[str, str]]:
    """What the devices took in the runs whose devices tell; other batches of these runs are included, as for times."""
    told = [run for run in facts.runs.read if run.energy_joules is not None]
    joules, tokens = sum(run.energy_joules or 0.0 for run in told), sum(run.completion_tokens for run in told)
    if not joules:
        return []
    each = f", {rate(joules / tokens)} J a token written" if tokens else ""
    silent = len(facts.runs.read) - len(told)
    missing = f"; the devices of {counted(silent * facts.runs.step, 'run')} do not tell" if silent else ""
    return [("Energy of the devices", f"{energy(joules * facts.runs.step)}{each}{missing}")]


def _ranked(ranked: Sequence[RankedJob]) -> list[tuple[str, str, str]]:
    return [
        (_name(job.custom_id, job.line), duration(job.total_seconds), f"{job.completion_tokens:,}") for job in ranked
    ]


def _reading(job: ExampleJob) -> Reading:
    if job.error_code is not None:
        facts = f"{job.error_code}: {job.error_message or ''}"
    else:
        spent = "" if job.total_seconds is None else f", {duration(job.total_seconds)}"
        facts = f"{counted(job.completion_tokens or 0, 'token')}{spent}, {job.finish_reason or ''}"
    answer = job.output_text
    if job.tool_calls:
        calls = "\n".join(text_of(call.get("function")) for call in job.tool_calls)
        answer = f"{answer}\n{calls}" if answer else calls
    return Reading(_name(job.custom_id, job.line), prompt_of(job.request), job.reasoning_text, answer, facts)


def _name(custom_id: str | None, line: int) -> str:
    return f"line {line:,}" if custom_id is None else custom_id
