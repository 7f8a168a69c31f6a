"""The progress of a batch, as words and as a bar. Pure: `follow` passes in each status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.plain_text import printable
from helix_jobs.reports.outcome_words import refused_answers
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration, percent, rate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from helix_jobs.client.pace import Pace
    from helix_jobs.storage.records import BatchStatus

_NOT_SUCCEEDED: Final = (JobState.FAILED, JobState.CANCELLED)


def all_succeeded(status: BatchStatus) -> bool:
    """Whether every line has an answer: exit code 0, otherwise 1."""
    return status.counts[JobState.SUCCEEDED] == status.total


def progress_line(status: BatchStatus, pace: Pace, done: str | None = None) -> str:
    """One plain line: ``45 of 96 done, 8 running, 1 failed, 102 tokens/s, acceptance 71 %, about 1 min 02 s left``.

    Where a forecast says when it is ``done``, that stands in the place of the time left.
    """
    if status.total is None:
        return f"{counted(status.stored, 'line')} stored, still being submitted"
    parts = [f"{status.processed:,} of {status.total:,} done", *_details(status, pace)]
    if done is not None:
        parts.append(done)
    elif pace.eta_seconds is not None and not status.done:
        parts.append(f"about {duration(pace.eta_seconds)} left")
    return ", ".join(parts)


def submitting_notice(cancel: str) -> str:
    """Advice on a batch whose submitter may have died; ``cancel`` is the command that removes the batch."""
    return (
        "Its submission has not finished, so nothing of it runs yet. If it was interrupted, submit the file again with "
        f"the same idempotency key to finish it, or remove it with: {cancel}"
    )


def progress_view(
    status: BatchStatus, pace: Pace, notice: str | None = None, done: str | None = None
) -> RenderableType:
    """Two lines for a terminal of any width: the bar with done/total and ETA, and the figures below the bar."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    finished, total = status.processed, status.total
    bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
    bar.add_column(ratio=1, min_width=8)
    for _ in range(3):
        bar.add_column(no_wrap=True, justify="right")
    eta = "--" if pace.eta_seconds is None else duration(pace.eta_seconds)
    bar.add_row(
        ProgressBar(total=total or 1, completed=finished, pulse=total is None),
        Text(f"{finished:,}/{'?' if total is None else f'{total:,}'}", style="bold"),
        Text(percent(finished / total) if total else ""),
        Text("done" if status.done else f"ETA {eta}", style="cyan"),
    )
    figures = Text(
        "  ".join([*([done] if done else []), *_details(status, pace)]), style="dim", no_wrap=True, overflow="ellipsis"
    )
    lines: list[RenderableType] = [bar, figures]
    if notice:
        lines.append(Text(printable(notice), style="yellow"))
    return Group(*lines)


def _details(status: BatchStatus, pace: Pace) -> list[str]:
    parts = [f"{status.counts[JobState.RUNNING]:,} running"]
    parts += [f"{status.counts[state]:,} {state}" for state in _NOT_SUCCEEDED if status.counts[state]]
    if status.cut_off:
        parts.append(f"{status.cut_off:,} cut off")
    if status.refused:
        parts.append(f"{status.refused:,} tried again")
    if status.from_cache:
        parts.append(f"{status.from_cache:,} from the cache")
    if pace.tokens_per_second is not None:
        parts.append(f"{rate(pace.tokens_per_second)} tokens/s")
    if status.acceptance_rate is not None:
        parts.append(f"acceptance {percent(status.acceptance_rate)}")
    return parts


def summary_lines(status: BatchStatus) -> list[str]:
    """The summary of a batch that has ended."""
    counts = status.counts
    shown = [f"{counts[JobState.SUCCEEDED]:,} succeeded"]
    shown += [f"{counts[state]:,} {state}" for state in _NOT_SUCCEEDED if counts[state]]
    spent = "" if status.elapsed_seconds is None else f" in {duration(status.elapsed_seconds)}"
    lines = [f"{counted(status.total or 0, 'job')}: {', '.join(shown)}{spent}"]
    if status.completion_tokens:
        figures = [counted(status.completion_tokens, "token")]
        if status.tokens_per_second is not None:
            figures.append(f"{rate(status.tokens_per_second)} tokens/s")
        if status.acceptance_rate is not None:
            figures.append(f"{percent(status.acceptance_rate)} of drafted tokens accepted")
        lines.append(", ".join(figures))
    if status.cut_off:
        lines.append(f"{counted(status.cut_off, 'answer')} cut off by max_tokens or the context")
    if status.refused:
        lines.append(refused_answers(status.refused))
    if status.from_cache:
        lines.append(f"{counted(status.from_cache, 'answer')} from the cache")
    if status.error_counts:
        lines.append(
            "errors: " + ", ".join(f"{code} {number:,}" for code, number in sorted(status.error_counts.items()))
        )
    return lines
