"""Charts of a batch for the page: those of its report, from a sample of its answers. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from helix_jobs.reports import batch_charts
from helix_jobs.storage.batch_figures import Span, TokenSums, counted_length

if TYPE_CHECKING:
    from helix_jobs.reports.charts import Chart
    from helix_jobs.storage.answer_sample import AnswerSample

_COLUMNS: Final = 40
_LEAST_ANSWERS: Final = 2


def charts_of_sample(sample: AnswerSample) -> list[Chart]:
    """Tokens a second over its time, and how long its answers are; none where there are too few answers.

    An answer of the sample counts for all the lines that it stands for.
    """
    if len(sample.answers) < _LEAST_ANSWERS:
        return []
    lengths: Counter[int] = Counter()
    for answer in sample.answers:
        lengths[counted_length(answer.tokens)] += sample.step
    found = [_throughput(sample), batch_charts.length_chart(lengths)]
    return [one for one in found if one is not None]


def _throughput(sample: AnswerSample) -> Chart | None:
    answers = sample.answers
    begun = answers[0].created_at
    # Fewer answers make fewer columns, so that a column is more than chance.
    columns = max(2, min(_COLUMNS, len(answers) // 4))
    span = Span(begun, (answers[-1].created_at - begun).total_seconds(), columns)
    over_time = {place: TokenSums() for place in range(columns)}
    for answer in answers:
        place = int((answer.created_at - begun).total_seconds() / span.width)
        sums = over_time[min(place, columns - 1)]
        sums.answers += sample.step
        sums.completion_tokens += answer.tokens * sample.step
    return batch_charts.throughput_chart(span, over_time)
