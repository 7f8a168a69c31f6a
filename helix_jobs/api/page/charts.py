"""Charts of a batch: how many tokens a second it made over its time, and how long its answers are. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from helix_jobs.reports.charts import Chart, Series, chart, nice_step
from helix_jobs.wording import counted, duration, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.storage.answer_sample import AnswerSample

_COLUMNS: Final = 40
_LEAST_ANSWERS: Final = 2
_HALF: Final = 0.5
_MOST: Final = 0.9


def throughput_chart(sample: AnswerSample) -> Chart | None:
    """Tokens a second, by when answers ended; None where there are too few answers."""
    answers = sample.answers
    if len(answers) < _LEAST_ANSWERS:
        return None
    begun = answers[0].created_at
    spent = (answers[-1].created_at - begun).total_seconds()
    if spent <= 0:
        return None
    # Fewer answers make fewer columns, so that a column is more than chance.
    count = max(2, min(_COLUMNS, len(answers) // 4))
    width = spent / count
    tokens = [0] * count
    for answer in answers:
        place = int((answer.created_at - begun).total_seconds() / width)
        tokens[min(place, count - 1)] += answer.tokens * sample.step
    rates = [number / width for number in tokens]
    words = [
        f"{rate(value)} tokens/s from {duration(place * width)} to {duration((place + 1) * width)}"
        for place, value in enumerate(rates)
    ]
    mean = sum(tokens) / spent
    return chart(
        "Tokens per second",
        f"{rate(mean)} tokens/s on average over {duration(spent)}, at most {rate(max(rates))}.",
        Series("tokens/s", rates, words),
        ticks_x=("start", duration(spent / 2), duration(spent)),
    )


def length_chart(sample: AnswerSample) -> Chart | None:
    """How many answers have how many tokens; None where there are too few answers."""
    lengths = sorted(answer.tokens for answer in sample.answers)
    if len(lengths) < _LEAST_ANSWERS:
        return None
    step = max(1, nice_step(lengths[-1] / _COLUMNS))
    count = lengths[-1] // step + 1
    found = Counter(length // step for length in lengths)
    shares = [100 * found[place] / len(lengths) for place in range(count)]
    words = [f"{share:.1f} % of the answers have {_span(place * step, step)}" for place, share in enumerate(shares)]
    longest = count * step
    return chart(
        "Length of answers, in tokens",
        f"Half of the answers have at most {counted(_quantile(lengths, _HALF), 'token')}, nine of ten at most "
        f"{counted(_quantile(lengths, _MOST), 'token')}, the longest {counted(lengths[-1], 'token')}.",
        Series("answers", shares, words),
        ticks_x=("0", f"{longest // 2:,}", f"{longest:,}"),
        unit=" %",
    )


def _span(first: int, step: int) -> str:
    return counted(first, "token") if step == 1 else f"{first:,} to {first + step - 1:,} tokens"


def _quantile(ordered: Sequence[int], part: float) -> int:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
