"""The progress and pace of a batch, as words and as a bar. Pure: `follow` passes in each status."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.cli.console import printable
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration, percent, rate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from helix_jobs.storage.records import BatchStatus

_NOT_SUCCEEDED: Final = (JobState.FAILED, JobState.CANCELLED)
_WINDOW_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The pace of a batch; None where it is not known yet.

    Attributes:
        tokens_per_second: Tokens of finished jobs per second.
        eta_seconds: Seconds until the last job ends, if the others take as long.
    """

    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class PaceMeter:
    """Measures the pace of one batch over the last minute of its updates.

    Trade-off: a short window follows a change of pace sooner, but jumps whenever several jobs end together. A minute is
    calm enough to read, and soon right again after a worker joins or a laptop wakes up.
    """

    def __init__(self, window: float = _WINDOW_SECONDS) -> None:
        self._window = window
        # (time, finished jobs, completion tokens)
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, now: float, status: BatchStatus) -> Pace:
        """Add ``status``, read at the monotonic time ``now``, and return the pace."""
        finished, tokens = status.finished, status.completion_tokens
        self._samples.append((now, finished, tokens))
        # Keep one sample at or before the start of the window, so that the samples span the whole window.
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:  # noqa: PLR2004  (a span has two ends)
            self._samples.popleft()
        start, finished_then, tokens_then = self._samples[0]
        elapsed, ended = now - start, finished - finished_then
        if elapsed <= 0 or ended <= 0:
            return Pace(tokens_per_second=status.tokens_per_second if tokens else None)
        remaining = (status.total or 0) - finished
        return Pace(tokens_per_second=(tokens - tokens_then) / elapsed, eta_seconds=max(remaining, 0) * elapsed / ended)


def all_succeeded(status: BatchStatus) -> bool:
    """Whether every line has an answer: exit code 0, otherwise 1."""
    return status.counts[JobState.SUCCEEDED] == status.total


def progress_line(status: BatchStatus, pace: Pace) -> str:
    """One plain line: ``45 of 96 done, 8 running, 1 failed, 102 tokens/s, acceptance 71 %, about 1 min 02 s left``."""
    if status.total is None:
        return f"{counted(status.stored, 'line')} stored, still being submitted"
    parts = [f"{status.processed:,} of {status.total:,} done", *_details(status, pace)]
    if pace.eta_seconds is not None and not status.done:
        parts.append(f"about {duration(pace.eta_seconds)} left")
    return ", ".join(parts)


def submitting_notice(cancel: str) -> str:
    """Advice on a batch whose submitter may have died; ``cancel`` is the command that removes the batch."""
    return (
        "Its submission has not finished, so nothing of it runs yet. If it was interrupted, submit the file again with "
        f"the same idempotency key to finish it, or remove it with: {cancel}"
    )


def progress_view(status: BatchStatus, pace: Pace, notice: str | None = None) -> RenderableType:
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
    figures = Text("  ".join(_details(status, pace)), style="dim", no_wrap=True, overflow="ellipsis")
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
        parts.append(f"{status.refused:,} refused")
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
        lines.append(f"{counted(status.refused, 'answer')} refused by acceptance rules")
    if status.error_counts:
        lines.append(
            "errors: " + ", ".join(f"{code} {number:,}" for code, number in sorted(status.error_counts.items()))
        )
    return lines
