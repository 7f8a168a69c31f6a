"""The charts of a batch's report, from its figures. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from helix_jobs.reports.charts import Chart, Series, chart, nice_step
from helix_jobs.storage.batch_figures import TTFT_EDGES, TokenSums, most_tokens
from helix_jobs.wording import counted, duration, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from helix_jobs.storage.batch_facts import BatchFacts
    from helix_jobs.storage.batch_figures import Span
    from helix_jobs.storage.batch_runs import BatchRun

_MOST_COLUMNS: Final = 40
_LEAST_ANSWERS: Final = 2
# Reasons for depths that have a series of their own; the others are one.
_MOST_REASONS: Final = 5
# As in the worker's log.
_REASONS: Final[Mapping[str, str]] = {
    "forced": "forced by a grammar",
    "lookup": "lookup",
    "model": "draft model",
    "mixed": "several drafters",
    "explore": "trying again",
    "off:cost": "off, costs too much",
    "off:acceptance": "off, too little accepted",
    "off:nothing": "off, nothing to draft",
}


def batch_charts(facts: BatchFacts) -> list[Chart]:
    """The charts that there are answers and runs for."""
    figures, span, runs = facts.figures, facts.span, facts.runs.read
    if span is None or sum(figures.lengths.values()) < _LEAST_ANSWERS:
        return []
    found = [
        throughput_chart(span, figures.over_time),
        fill_chart(span, runs),
        acceptance_chart(span, figures.over_time),
        depth_chart(span, runs),
        reasons_chart(span, runs),
        length_chart(figures.lengths),
        first_token_chart(figures.ttft),
    ]
    return [one for one in found if one is not None]


def throughput_chart(span: Span, over_time: Mapping[int, TokenSums]) -> Chart | None:
    """Tokens a second, by when answers were stored."""
    if span.seconds <= 0:
        return None
    columns = [over_time.get(place, TokenSums()) for place in range(span.columns)]
    rates = [sums.completion_tokens / span.width for sums in columns]
    mean = sum(sums.completion_tokens for sums in columns) / span.seconds
    words = [
        f"{rate(value)} tokens/s, {counted(sums.answers, 'answer')}, {_when(span, place)}"
        for place, (value, sums) in enumerate(zip(rates, columns, strict=True))
    ]
    return chart(
        "Tokens per second",
        f"{rate(mean)} tokens/s on average over {duration(span.seconds)}, at most {rate(max(rates))}. "
        "An answer counts when it ends.",
        Series("tokens/s", rates, words),
        ticks_x=_times(span),
    )


def acceptance_chart(span: Span, over_time: Mapping[int, TokenSums]) -> Chart | None:
    """The accepted part of drafted tokens, by when answers were stored."""
    columns = [over_time.get(place, TokenSums()) for place in range(span.columns)]
    drafted = sum(sums.draft_tokens for sums in columns)
    if not drafted:
        return None
    shares = [100 * sums.accepted_tokens / sums.draft_tokens if sums.draft_tokens else None for sums in columns]
    words = [
        f"{share or 0:.0f} % of {counted(sums.draft_tokens, 'drafted token')} accepted, {_when(span, place)}"
        for place, (share, sums) in enumerate(zip(shares, columns, strict=True))
    ]
    accepted = sum(sums.accepted_tokens for sums in columns)
    return chart(
        "Accepted drafts, in %",
        f"{100 * accepted / drafted:.0f} % of {counted(drafted, 'drafted token')} were accepted.",
        Series("accepted", shares, words),
        ticks_x=_times(span),
        unit=" %",
        top=100,
    )


def fill_chart(span: Span, runs: Sequence[BatchRun]) -> Chart | None:
    """How many of the workers' slots were in use, by time."""
    known = [run for run in runs if run.mean_batch_size is not None and run.slots]
    if not known:
        return None
    shares = _over_time(span, known, lambda run: 100 * (run.mean_batch_size or 0.0) / run.slots)
    words = [f"{share or 0:.0f} % of the slots in use, {_when(span, place)}" for place, share in enumerate(shares)]
    steps = sum(run.steps for run in known)
    mean = sum((run.mean_batch_size or 0.0) * run.steps for run in known) / steps
    return chart(
        "Slots in use, in %",
        f"{mean:.1f} sequences in a step on average. Other batches of the same time count as well.",
        Series("slots", shares, words),
        ticks_x=_times(span),
        unit=" %",
        top=100,
    )


def depth_chart(span: Span, runs: Sequence[BatchRun]) -> Chart | None:
    """Drafted tokens a sequence and step, by time."""
    known = [run for run in runs if run.mean_depth]
    if not known:
        return None
    depths = _over_time(span, known, lambda run: run.mean_depth or 0.0)
    words = [f"{depth or 0:.2f} tokens drafted ahead, {_when(span, place)}" for place, depth in enumerate(depths)]
    mean = sum((run.mean_depth or 0.0) * run.steps for run in known) / sum(run.steps for run in known)
    return chart(
        "Tokens drafted ahead",
        f"{mean:.2f} tokens a sequence and step on average, where anything was drafted.",
        Series("depth", depths, words),
        ticks_x=_times(span),
    )


def reasons_chart(span: Span, runs: Sequence[BatchRun]) -> Chart | None:
    """Why the depths were what they were: the part of each reason in the steps, by time."""
    total: Counter[str] = Counter()
    for run in runs:
        total.update(run.depth_reasons or {})
    if not total:
        return None
    named = [reason for reason, _ in total.most_common(_MOST_REASONS)]
    columns: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(span.columns)]
    for run in runs:
        for place, part in _places(span, run):
            for reason, steps in (run.depth_reasons or {}).items():
                columns[place][reason if reason in named else "other"] += steps * part
    series = []
    for reason in [*named, *(["other"] if len(total) > len(named) else [])]:
        shares = [100 * column[reason] / sum(column.values()) if column else None for column in columns]
        name = _REASONS.get(reason, reason)
        words = [f"{name}: {share or 0:.0f} % of the steps, {_when(span, place)}" for place, share in enumerate(shares)]
        series.append(Series(name, shares, words))
    most, steps = total.most_common(1)[0]
    return chart(
        "Why so many were drafted, in % of the steps",
        f"Most often: {_REASONS.get(most, most)}, in {100 * steps / sum(total.values()):.0f} % of the steps.",
        *series,
        ticks_x=_times(span),
        unit=" %",
        top=100,
    )


def length_chart(lengths: Mapping[int, int]) -> Chart:
    """How many answers have how many tokens."""
    longest, total = max(lengths), sum(lengths.values())
    step = nice_step((longest + 1) / _MOST_COLUMNS)
    columns = [0] * (longest // step + 1)
    for tokens, answers in lengths.items():
        columns[tokens // step] += answers
    words = []
    for place, answers in enumerate(columns):
        first = place * step
        span = counted(first, "token") if step == 1 else f"{first:,} to {first + step - 1:,} tokens"
        words.append(f"{counted(answers, 'answer')} ({100 * answers / total:.1f} %) of {span}")
    end = len(columns) * step
    half, most, all_of_them = (most_tokens(_quantile(lengths, part)) for part in (0.5, 0.9, 1.0))
    return chart(
        "Length of answers, in tokens",
        f"Half of the answers have at most {counted(half, 'token')}, nine of ten at most {most:,}, "
        f"all at most {all_of_them:,}.",
        Series("answers", columns, words),
        ticks_x=("0", f"{end // 2:,}", f"{end:,}"),
    )


def first_token_chart(ttft: Mapping[int, int]) -> Chart | None:
    """How many answers began after how long."""
    total = sum(ttft.values())
    if total < _LEAST_ANSWERS:
        return None
    first, last = min(ttft), max(ttft)
    places = range(first, last + 1)
    words = [f"{counted(ttft.get(place, 0), 'answer')} began {_between(place)}" for place in places]
    half, most = _quantile(ttft, 0.5), _quantile(ttft, 0.9)
    return chart(
        "Time to the first token, from admission",
        f"Half of the answers began {_within(half)}, nine of ten {_within(most)}. The steps grow.",
        Series("answers", [ttft.get(place, 0) for place in places], words),
        ticks_x=(
            _seconds(TTFT_EDGES[first - 1]) if first else "0 s",
            "",
            _seconds(TTFT_EDGES[last]) if last < len(TTFT_EDGES) else "more",
        ),
    )


def _within(place: int) -> str:
    """When the answers up to this place of ``TTFT_EDGES`` began."""
    if place >= len(TTFT_EDGES):
        return f"after {_seconds(TTFT_EDGES[-1])} or more"
    return f"within {_seconds(TTFT_EDGES[place])}"


def _between(place: int) -> str:
    """When the answers at this place began, of which none is at the one before."""
    if place == 0 or place >= len(TTFT_EDGES):
        return _within(place)
    return f"after {_seconds(TTFT_EDGES[place - 1])} to {_seconds(TTFT_EDGES[place])}"


def _seconds(value: float) -> str:
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def _over_time(span: Span, runs: Sequence[BatchRun], value: Callable[[BatchRun], float]) -> list[float | None]:
    """The mean of a run's value in each column of the span, weighted by its steps."""
    sums, weights = [0.0] * span.columns, [0.0] * span.columns
    for run in runs:
        for place, part in _places(span, run):
            sums[place] += value(run) * run.steps * part
            weights[place] += run.steps * part
    return [total / weight if weight else None for total, weight in zip(sums, weights, strict=True)]


def _places(span: Span, run: BatchRun) -> list[tuple[int, float]]:
    """The columns that a run lies in, with the part of the run in each."""
    begun = (run.started_at - span.begun).total_seconds()
    ended = max(begun + 1e-6, (run.finished_at - span.begun).total_seconds())
    found = []
    for place in range(max(0, int(begun / span.width)), min(span.columns - 1, int(ended / span.width)) + 1):
        overlap = min(ended, (place + 1) * span.width) - max(begun, place * span.width)
        if overlap > 0:
            found.append((place, overlap / (ended - begun)))
    return found


def _when(span: Span, place: int) -> str:
    return f"from {duration(place * span.width)} to {duration((place + 1) * span.width)}"


def _times(span: Span) -> tuple[str, str, str]:
    return "start", duration(span.seconds / 2), duration(span.seconds)


def _quantile(counts: Mapping[int, int], part: float) -> int:
    """The smallest key that this part of the counts does not exceed."""
    wanted, seen = part * sum(counts.values()), 0
    for key in sorted(counts):
        seen += counts[key]
        if seen >= wanted:
            return key
    return max(counts)
