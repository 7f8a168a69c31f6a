"""Views of batches, workers, answers and bad lines: JSON with stable keys for programs, tables for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.brakes import in_words
from helix_jobs.cli.console import clock_time, show, timestamp
from helix_jobs.plain_text import paragraphs, printable, shorten
from helix_jobs.reports.outcome_words import refused_answers
from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.wording import counted, duration, percent, rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import Console, JustifyMethod, RenderableType
    from rich.table import Table
    from rich.text import Text

    from helix_jobs.errors import BadLine
    from helix_jobs.storage.records import BatchStatus, JobResult, JobSummary, Worker

_STATE_STYLES: Final = {
    BatchState.SUBMITTING: "dim",
    BatchState.QUEUED: "yellow",
    BatchState.RUNNING: "cyan",
    BatchState.PAUSED: "yellow",
    BatchState.DONE: "green",
    BatchState.CANCELLED: "magenta",
}
_SHOWN_PROMPT: Final = 100
_SHOWN_ANSWER: Final = 280
_SHOWN_LINES: Final = 5
_WIDE: Final = 76


def batch_json(status: BatchStatus, forecast: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One batch for programs, with its forecast if known. Keys are stable: new ones may come, none is renamed."""
    return {
        "id": status.id,
        "name": status.name,
        "source": status.source,
        "state": str(status.state),
        "created_at": timestamp(status.created_at),
        "started_at": timestamp(status.started_at),
        "finished_at": timestamp(status.finished_at),
        "cancelled_at": timestamp(status.cancelled_at),
        "paused_at": timestamp(status.paused_at),
        "paused_why": status.paused_why,
        "brakes": status.brakes,
        "total": status.total,
        "counts": {str(state): status.counts[state] for state in JobState},
        "prompt_tokens": status.prompt_tokens,
        "cached_prompt_tokens": status.cached_prompt_tokens,
        "completion_tokens": status.completion_tokens,
        "draft_tokens": status.draft_tokens,
        "accepted_tokens": status.accepted_tokens,
        "cut_off": status.cut_off,
        "refused": status.refused,
        "from_cache": status.from_cache,
        "acceptance_rate": status.acceptance_rate,
        "tokens_per_second": status.tokens_per_second,
        "deadline": timestamp(status.deadline),
        "forecast": forecast,
        "errors": {str(code): number for code, number in sorted(status.error_counts.items())},
    }


def worker_json(worker: Worker) -> dict[str, Any]:
    """One live worker for programs."""
    return {
        "id": worker.id,
        "hostname": worker.hostname,
        "pid": worker.pid,
        "device": worker.device,
        "target_model": worker.target_model,
        "draft_model": worker.draft_model,
        "slots": worker.slots,
        "started_at": timestamp(worker.started_at),
        "heartbeat_at": timestamp(worker.heartbeat_at),
    }


def job_json(job: JobSummary) -> dict[str, Any]:
    """One job for programs: its ids and its state."""
    return {
        "job_id": job.job_id,
        "line": job.line,
        "custom_id": job.custom_id,
        "state": str(job.state),
        "priority": job.priority,
        "attempts": job.attempts,
        "tries": job.tries,
        "error_code": job.error_code,
    }


def job_line(job: JobSummary) -> str:
    """One job on one line, in columns. Not a table: a million jobs are printed as they are read."""
    reason = f"  {job.error_code}" if job.error_code else ""
    return f"{job.job_id:>9}  {job.line:>9}  {job.state:<9}  {shorten(printable(job.custom_id or '-'), 60)}{reason}"


JOB_HEADER: Final = f"{'JOB':>9}  {'LINE':>9}  {'STATE':<9}  CUSTOM_ID"


def bad_line_json(bad: BadLine) -> dict[str, Any]:
    """One bad line for programs."""
    return {"line": bad.line, "field": bad.field, "reason": bad.reason, "remedy": bad.remedy}


def batch_view(status: BatchStatus, done: str | None = None) -> Table:
    """All facts about one batch, each in a row; ``done`` says when it will be done."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(label: str, value: str | Text) -> None:
        table.add_row(label, Text(printable(value)) if isinstance(value, str) else value)

    head = Text(status.id)
    head.append(f"  {status.state}", style=_STATE_STYLES[status.state])
    row("Batch", head)
    if status.name:
        row("Name", status.name)
    if status.source and status.source != status.name:
        row("Source", status.source)
    row("Created", clock_time(status.created_at))
    row("Jobs", _job_counts(status))
    for label, value in _notes(status):
        row(label, value)
    if status.completion_tokens:
        speed = "" if status.tokens_per_second is None else f", {rate(status.tokens_per_second)} tokens/s"
        shared = f" ({status.cached_prompt_tokens:,} shared)" if status.cached_prompt_tokens else ""
        row("Tokens", f"{status.completion_tokens:,} written, {status.prompt_tokens:,} read{shared}{speed}")
    if status.acceptance_rate is not None:
        drafts = f"{status.accepted_tokens:,} of {status.draft_tokens:,}"
        row("Drafts", f"{percent(status.acceptance_rate)} accepted ({drafts})")
    if status.elapsed_seconds is not None:
        spent = duration(status.elapsed_seconds)
        row("Time", f"{spent}, finished {clock_time(status.finished_at)}" if status.finished_at else f"{spent} so far")
    if done is not None:
        row("Forecast", done)
    return table


def _notes(status: BatchStatus) -> Iterator[tuple[str, str]]:
    """What is not so with every batch."""
    if status.paused_at is not None and status.state is BatchState.PAUSED:
        yield "Paused", f"{clock_time(status.paused_at)}{f': {status.paused_why}' if status.paused_why else ''}"
    if status.deadline is not None:
        late = status.finished_at is not None and status.finished_at > status.deadline
        yield "Deadline", f"{clock_time(status.deadline)}{', missed' if late else ''}"
    if status.brakes and not status.done:
        yield "Brakes", in_words(status.brakes)
    for code, number in sorted(status.error_counts.items()):
        yield "Errors", f"{code} {number:,}"
    if status.cut_off:
        yield "Cut off", f"{counted(status.cut_off, 'answer')} by max_tokens or the context"
    if status.refused:
        yield "Tried again", refused_answers(status.refused)
    if status.from_cache:
        yield "From cache", f"{counted(status.from_cache, 'answer')} that had been stored"


def _job_counts(status: BatchStatus) -> Text:
    from rich.text import Text

    if status.total is None:
        return Text(f"{status.stored:,} stored so far, none accepted yet")
    # Cancelled jobs have ended, but do not count as done.
    done = f"{status.processed:,} of {status.total:,} done"
    text = Text(f"{done} ({percent(status.processed / status.total)})" if status.total else done)
    styles = {
        JobState.SUCCEEDED: "green",
        JobState.FAILED: "red",
        JobState.CANCELLED: "magenta",
        JobState.RUNNING: "cyan",
    }
    for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.RUNNING, JobState.QUEUED):
        if status.counts[state]:
            text.append(", ")
            text.append(f"{status.counts[state]:,} {state}", style=styles.get(state, ""))
    return text


def batches_view(batches: Sequence[BatchStatus], width: int) -> Table:
    """A row for each batch, in the order given (newest first).

    A narrow terminal shortens the name and drops the time; ids and counts are never cut.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    with_time = width >= _WIDE
    done = [f"{batch.processed:,}/{'?' if batch.total is None else f'{batch.total:,}'}" for batch in batches]
    for title, cells in (
        ("BATCH", [batch.id for batch in batches]),
        ("STATE", [str(batch.state) for batch in batches]),
        ("DONE", done),
        ("FAILED", [f"{batch.counts[JobState.FAILED]:,}" for batch in batches]),
        *([("CREATED", [clock_time(batch.created_at)[:-3] for batch in batches])] if with_time else []),
    ):
        width_needed = max(len(cell) for cell in (title, *cells))
        justify: JustifyMethod = "right" if title in {"DONE", "FAILED"} else "left"
        table.add_column(title, no_wrap=True, min_width=width_needed, justify=justify)
    table.add_column("NAME", overflow="ellipsis", no_wrap=True)
    for batch, progress in zip(batches, done, strict=True):
        failed = batch.counts[JobState.FAILED]
        table.add_row(
            batch.id,
            Text(str(batch.state), style=_STATE_STYLES[batch.state]),
            progress,
            Text(f"{failed:,}", style="red" if failed else "dim"),
            *([clock_time(batch.created_at)[:-3]] if with_time else []),
            Text(printable(batch.name or batch.source or "")),
        )
    return table


def worker_line(worker: Worker, lease: float) -> str:
    """One worker on one line, and whether it has been silent for longer than a lease."""
    draft = f" with draft {worker.draft_model}" if worker.draft_model else ""
    where = f"{worker.device} on {worker.hostname} (pid {worker.pid})"
    from helix_jobs.storage.liveness import seems_alive, silence

    silent = "" if seems_alive(worker, lease) else f"; silent for {duration(silence(worker))}, probably lost"
    return printable(f"{worker.target_model}{draft}, {where}, {counted(worker.slots, 'slot')}{silent}")


def facts_view(facts: Iterable[tuple[str, str]]) -> Table:
    """A table with a row for each fact: label and value."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(Text(label), Text(printable(value)))
    return table


def bad_lines_view(faults: Sequence[tuple[BadLine, int]]) -> Table:
    """Line, field, reason and remedy of each fault, and the number of lines it represents if that is above one."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("LINE", justify="right", no_wrap=True)
    table.add_column("FIELD", overflow="fold")
    table.add_column("REASON", overflow="fold")
    table.add_column("REMEDY", overflow="fold")
    for bad, lines in faults:
        many = "" if lines == 1 else f" (and so in {lines - 1:,} more lines)"
        cells = (shorten(printable(bad.field or ""), 60), shorten(bad.reason, 300) + many, shorten(bad.remedy, 300))
        table.add_row(f"{bad.line:,}", *(Text(cell) for cell in cells))
    return table


def answer_view(result: JobResult) -> RenderableType:
    """The start of the prompt and, below it, the shortened answer or the reason why there is none.

    A job that failed although it has an answer, which its rule refused, shows both.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    label = f"{result.line}" if result.custom_id is None else f"{result.line} {printable(result.custom_id)}"
    if result.choice:
        label += f", choice {result.choice}"
    head = Text.assemble((f"{label}  ", "bold cyan"), (shorten(prompt_text(result.request), _SHOWN_PROMPT), "bold"))
    parts = []
    if result.output_text is None or result.error_code is not None:
        reason = ": ".join(filter(None, (result.error_code, shorten(result.error_message or "", _SHOWN_ANSWER))))
        parts.append(Text(f"{result.state}, {reason}" if reason else str(result.state), style="red"))
    if result.output_text is not None:
        said = _shorten_answer(result.output_text)
        calls = [Text(f"calls {_call_text(call)}", style="magenta") for call in result.tool_calls or ()]
        parts += [Text(said or "(empty answer)")] if said or not calls else []
        parts += calls
    return Group(head, Padding(Group(*parts), (0, 0, 1, 3), expand=False))


@dataclass(frozen=True, slots=True)
class Printed:
    """How many answers were printed, and of how many jobs."""

    answers: int
    jobs: int

    def of(self, jobs: int) -> str:
        """Both counts beside the number of jobs there are: ``20 of 25``, or ``20 answers of 7 of 25 jobs``."""
        if self.answers == self.jobs:
            return f"{self.jobs:,} of {jobs:,}"
        return f"{self.answers:,} answers of {self.jobs:,} of {counted(jobs, 'job')}"


def prompt_text(request: object) -> str:
    """The prompt, or the last message of the chat."""
    if isinstance(request, dict):
        if isinstance(request.get("prompt"), str):
            return str(request["prompt"])
        messages = request.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            return str(messages[-1].get("content", ""))
    return ""


def _call_text(call: object) -> str:
    """A call as code writes it. A row that was changed by hand may hold anything."""
    function = call.get("function") if isinstance(call, dict) else None
    named = function if isinstance(function, dict) else {}
    return shorten(f"{named.get('name', '?')}({named.get('arguments', '')})", _SHOWN_ANSWER)


def _shorten_answer(text: str) -> str:
    """Shorten a text to a few lines and a few hundred characters, and keep its paragraphs."""
    lines = [line.rstrip() for line in paragraphs(text.strip()).splitlines() if line.strip()]
    kept = "\n".join(lines[:_SHOWN_LINES])
    if len(kept) > _SHOWN_ANSWER:
        return kept[: _SHOWN_ANSWER - 1].rstrip() + "…"
    return kept if len(lines) <= _SHOWN_LINES else f"{kept} …"


def print_answers(console: Console, results: Iterable[JobResult]) -> Printed:
    """Print answers and return how many."""
    answers, jobs = 0, set()
    for result in results:
        show(console, answer_view(result))
        answers += 1
        jobs.add(result.job_id)
    return Printed(answers, len(jobs))
