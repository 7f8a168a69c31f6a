"""Everything that the report of a batch is made of, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.storage.batch_examples import ExampleJob, examples_of_error, sample_of_answers
from helix_jobs.storage.batch_figures import BatchFigures, Span, batch_figures
from helix_jobs.storage.batch_runs import BatchRuns, batch_runs
from helix_jobs.storage.manifests import Manifest, read_manifest
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.storage.database import OpenRead
    from helix_jobs.storage.records import BatchStatus

_COLUMNS: Final = 48
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """A batch as its report shows it.

    Attributes:
        status: Its counts, tokens and times.
        manifest: What made it.
        span: The time over which its answers are counted; None before its first job has begun.
        figures: What is counted of its answers.
        runs: Of the workers that answered it, while it ran.
        errors: Error code -> its first jobs.
        sample: Some answers.
    """

    status: BatchStatus
    manifest: Manifest
    span: Span | None
    figures: BatchFigures
    runs: BatchRuns
    errors: Mapping[str, Sequence[ExampleJob]]
    sample: Sequence[ExampleJob]


def batch_facts(open_read: OpenRead, batch_id: str, samples: int) -> BatchFacts:
    """Read a batch for its report, also while it runs.

    Args:
        open_read: Opens a read transaction; each part has its own.
        batch_id: The batch.
        samples: Number of answers to show.

    Raises:
        NotFoundError: No such batch.
        UnreadableRowError: A value of a row cannot be read.
    """
    with open_read() as c:
        status = batch_status(c, batch_id)
        manifest = read_manifest(c, batch_id)
        errors = {code: examples_of_error(c, batch_id, code, _EXAMPLES) for code in status.error_counts}
        sample = sample_of_answers(c, batch_id, samples)
    ended = status.finished_at or status.read_at
    span = None if status.started_at is None else Span(status.started_at, status.elapsed_seconds or 0.0, _COLUMNS)
    runs = BatchRuns()
    figures = BatchFigures()
    if span is not None:
        figures = batch_figures(open_read, batch_id, span)
        with open_read() as c:
            runs = batch_runs(c, [maker.worker_id for maker in manifest.makers], span.begun, ended)
    return BatchFacts(
        status=status, manifest=manifest, span=span, figures=figures, runs=runs, errors=errors, sample=sample
    )
