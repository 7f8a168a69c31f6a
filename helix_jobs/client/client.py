"""HelixClient: submit, status, wait, results, cancel, retry, pause, purge. The public Python interface.

Imports neither torch nor, before it is needed, SQLAlchemy and Celery.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from helix_jobs.client.batch_control import MAX_ID, BatchControl
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from helix_jobs.acceptance.rule import AcceptanceRule
    from helix_jobs.brakes import Brakes
    from helix_jobs.client.acceptance import Accept
    from helix_jobs.client.inputs import Input
    from helix_jobs.client.purge import Outcome, Purged, PurgePlan
    from helix_jobs.client.submission import Submission, SubmitProgress, SubmitStage
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.errors import BadLine
    from helix_jobs.results.frames import Results
    from helix_jobs.results.join_options import JoinOptions
    from helix_jobs.results.joined import JoinedAnswers
    from helix_jobs.storage.manifests import Manifest
    from helix_jobs.storage.records import BatchStatus, JobSummary
    from helix_jobs.tables.ask import TableAsk

logger = logging.getLogger(__name__)

# Rows held while results are read: few, because a row may carry a prompt of 4 MiB.
_RESULTS_PAGE: Final = 250


class HelixClient(BatchControl):
    """Client of Helix: uses the database and, to submit, the broker.

    A context manager; without ``with``, call ``close()`` to free the connections. Thread-safe.

    Args:
        settings: The settings; by default those of the ``HELIX_*`` environment.
        time_limits: Time limits of the database, and the time after which a worker counts as silent.
    """

    def submit(
        self,
        source: Input,
        *,
        template: str | None = None,
        table: TableAsk | None = None,
        name: str | None = None,
        defaults: SamplingParams | None = None,
        truncate_prompt: TruncatePrompt | None = None,
        response_format: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        accept: AcceptanceRule | Mapping[str, Any] | Accept | None = None,
        cache: bool | None = None,
        like: str | Manifest | None = None,
        brakes: Brakes | None = None,
        deadline: datetime | None = None,
        skip_invalid: bool = False,
        rejects: str | os.PathLike[str] | BinaryIO | None = None,
        on_invalid: Callable[[BadLine], None] | None = None,
        on_progress: Callable[[SubmitProgress], None] | None = None,
        on_stage: Callable[[SubmitStage, str], None] = lambda _stage, _batch_id: None,
        on_reading: Callable[[str], None] | None = None,
    ) -> Submission:
        """Validate every line, store the batch and hand its first jobs to the broker: all or nothing.

        Args:
            source: A JSONL file's path, a binary stream of JSONL, or mappings of the accepted line forms. Beside
                ``template`` or ``table`` a table: a data frame, mappings, a binary stream, or the path of a table, of a
                folder or pattern of text files.
            template: The prompt, a Jinja2 template that is filled in for each row: short for a ``table`` of it alone.
            table: Which rows of the table become lines, and what is asked about each.
            name: The batch's name.
            defaults: Sampling fields for lines that do not give them.
            truncate_prompt: What to keep of a prompt that is too long, for lines that do not say.
            response_format: The form of the answers, for lines that give none: a value of the line's field of this
                name.
            idempotency_key: Submitting the same content again under the same key returns the first submission's batch,
                and finishes it if that submission was interrupted.
            metadata: Stored with the batch.
            accept: When an answer counts. A rule, or a mapping with its fields, holds for lines that do not give their
                own, and workers judge by it. A function judges here: this call then returns when ``accept`` does.
            cache: Whether jobs take answers that are stored already. None: greedy lines and lines with a seed of their
                own do, unless HELIX_ANSWER_CACHE is off.
            like: Another batch, by its id or its manifest: of the things above that are about lines, those not given
                here are as they were for it.
            brakes: When the batch is to pause by itself. A batch that an idempotency key names keeps its own.
            deadline: When the batch is to be done; without a time zone, by this machine's clock. Workers make its jobs
                more urgent in time, below requests that a person waits for.
            skip_invalid: Enqueue the good lines although there are bad ones.
            rejects: A path or binary stream that receives the bytes of bad lines. A path's file is made only if there
                are bad lines, and replaced whole.
            on_invalid: Called with each bad line, as it is found.
            on_progress: Called about every thousand lines.
            on_stage: Called with each new stage and the batch id. When this call is interrupted, the last stage tells
                whether the jobs run.
            on_reading: Called with how the table is read: its format, encoding and delimiter.

        Raises:
            ConfigurationError: ``template`` and ``table`` are both given, or the table needs a library that is not
                installed.
            InvalidInputError: There are bad lines; the error carries the first 10,000.
            InputError: The deadline lies in the past; there is no such file, or it holds no lines, or asks for more
                answers than HELIX_MAX_JOBS_PER_BATCH; or the bad lines cannot be written; or the rule or
                ``response_format`` is wrong.
            IdempotencyConflictError: The key names a batch with different content.
            NotFoundError: There is no batch ``like``.
            BrokerUnreachableError: HELIX_REDIS_URL is set but does not answer; nothing was stored.
            DatabaseUnreachableError: The database does not answer. A Postgres that answered before is retried for a
                minute.
            UncertainSubmissionError: The database stopped answering during the last step: the batch is stored whole or
                not at all.
            SchemaVersionError: The database's schema is not this version's.
        """
        from helix_jobs.client.acceptance import rule_of
        from helix_jobs.client.line_defaults import LineDefaults
        from helix_jobs.client.submit_source import asked_table, submit_source
        from helix_jobs.intake.constraint_fields import default_constraint

        if isinstance(like, str):
            like = self.manifest(like)
        before = LineDefaults() if like is None else LineDefaults.of_batch(like)
        submission = submit_source(
            self.settings,
            self._database,
            source,
            LineDefaults(
                before.sampling if defaults is None else defaults,
                truncate_prompt=before.truncate_prompt if truncate_prompt is None else truncate_prompt,
                accept=before.accept if accept is None else rule_of(accept),
                constraint=before.constraint if response_format is None else default_constraint(response_format),
                cache=before.cache if cache is None else cache,
            ),
            name=name,
            idempotency_key=idempotency_key,
            metadata=metadata,
            brakes=brakes,
            deadline=deadline,
            skip_invalid=skip_invalid,
            rejects=rejects,
            on_invalid=on_invalid,
            on_progress=on_progress,
            on_stage=on_stage,
            table=asked_table(template, table),
            on_reading=on_reading,
        )
        if callable(accept):
            self.accept(submission.batch_id, accept)
        return submission

    def accept(self, batch_id: str, accept: Accept, *, max_tries: int = 3, poll: float = 1.0) -> BatchStatus:
        """Judge the answers of a batch here, and have jobs whose answer is refused answered again, until none is left.

        Waits until every job has ended, and again after each round. The refused answer goes, and the next one has a
        fresh seed. A job whose last answer is refused ends as ``not_accepted`` and keeps it. If this call ends early,
        by an error of the function too, no answer and no job is lost: call it again.

        Args:
            batch_id: The batch.
            accept: Called with each answer of succeeded jobs; returns whether it counts. A job of several choices is
                refused if one of them is.
            max_tries: Most answers of a job, those included that its own rule refused.
            poll: Seconds between polls.

        Raises:
            NotFoundError: No such batch.
            InputError: ``max_tries`` is out of range.
            DatabaseUnreachableError: The database does not answer.
        """
        from helix_jobs.client.acceptance import accept_answers

        return accept_answers(self, self._database(), batch_id, accept, max_tries=max_tries, poll=poll)

    def status(self, batch_id: str) -> BatchStatus:
        """Return the counts, tokens and times of a batch.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.storage.status import batch_status

        with self._database().read() as connection:
            return batch_status(connection, batch_id)

    def list(self, limit: int = 20, offset: int = 0) -> Sequence[BatchStatus]:
        """Return the newest batches first."""
        from helix_jobs.storage.status import list_batches

        with self._database().read() as connection:
            return list_batches(connection, min(limit, MAX_ID), min(offset, MAX_ID))

    def wait(
        self,
        batch_id: str,
        timeout: float | None = None,
        poll: float = 1.0,
        on_update: Callable[[BatchStatus], None] | None = None,
    ) -> BatchStatus:
        """Return the batch's status when every job has ended, or after ``timeout`` seconds (``done`` says which).

        Args:
            batch_id: The batch.
            timeout: Seconds; None waits for ever.
            poll: Seconds between polls; the first polls come sooner, for batches that are soon done.
            on_update: Called with each status, the last one included.

        A Postgres that goes away between two polls is retried for a minute.

        Raises:
            NotFoundError: No such batch.
            DatabaseUnreachableError: The database does not answer.
            UnfinishedSubmissionError: The batch is still being submitted, and no line was added for half a minute.
        """
        from helix_jobs.client.waiting import wait_until_done

        return wait_until_done(
            self._database(),
            lambda: self.status(batch_id),
            timeout=timeout,
            poll=poll,
            submitter_silence=self.time_limits.submitter_silence,
            on_update=on_update,
        )

    def results(
        self,
        batch_id: str,
        *,
        include_failed: bool = False,
        only_failed: bool = False,
        order: Literal["line", "completion"] = "line",
    ) -> Results:
        """Yield the results so far, page by page, also while the batch runs; or give them as a data frame.

        ``to_pandas()``, ``to_polars()`` and ``to_arrow()`` of what is returned have the columns of result files.

        Trade-off: each page is its own snapshot, so a slow reader (a pager) does not make the database keep old row
        versions. In return, a job that ends meanwhile may be included or not, and a job that is retried meanwhile may
        appear twice.

        Args:
            batch_id: The batch.
            include_failed: Include failed and cancelled jobs.
            only_failed: Failed and cancelled jobs only.
            order: ``line`` (as in the input) or ``completion``.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.results.frames import Results
        from helix_jobs.storage import results

        # Check the id in this call, not at the first next().
        self.status(batch_id)

        found = results.iter_results(
            self._database().read,
            batch_id,
            order=order,
            include_failed=include_failed,
            only_failed=only_failed,
            chunk=_RESULTS_PAGE,
        )
        return Results(found)

    def joined(self, batch_id: str, table: Input, options: JoinOptions | None = None) -> JoinedAnswers:
        """The rows of the table that a batch was submitted from, with their answers as columns.

        Args:
            batch_id: The batch.
            table: The table: a path, a data frame or a list of mappings, as it was submitted.
            options: Which columns; None for the common ones.

        Raises:
            NotFoundError: No such batch.
            ConfigurationError: Two columns have the same name, or there is no schema to unnest by.
            InputError: It is not the table that the batch was submitted from.
        """
        from helix_jobs.client.stored_answers import StoredAnswers
        from helix_jobs.results.join_options import JoinOptions
        from helix_jobs.results.joined import JoinedAnswers

        stored = self.manifest(batch_id).table
        options = JoinOptions() if options is None else options
        answers = StoredAnswers(self._database().read, batch_id, _RESULTS_PAGE)
        return JoinedAnswers(table, batch_id, stored, answers, options)

    def jobs(self, batch_id: str, *states: JobState) -> Iterator[JobSummary]:
        """Yield id, line, custom id and state of a batch's jobs, in the order of ``states``; without any, all jobs.

        Raises:
            NotFoundError: No such batch.
        """
        from helix_jobs.storage import results

        self.status(batch_id)

        def pages() -> Iterator[JobSummary]:
            for state in states or tuple(JobState):
                yield from results.iter_jobs(self._database().read, batch_id, state)

        return pages()

    def discard(self, batch_id: str) -> bool:
        """Delete a batch whose submission has not finished. Returns False, and does nothing, if there is none.

        None of its jobs was accepted. A submission still running fails with an InputError.
        """
        from helix_jobs.storage import batches

        return self._database().transact(lambda c: batches.delete_batch(c, batch_id), unlimited=True)

    def purge(
        self,
        *batch_ids: str,
        older_than: timedelta | None = None,
        only: Collection[Outcome | str] = (),
        dry_run: bool = False,
        vacuum: bool = False,
        agree: Callable[[PurgePlan], bool] = lambda _plan: True,
        on_step: Callable[[Purged], None] = lambda _so_far: None,
    ) -> Purged:
        """Remove ended batches for good, with their prompts, answers and idempotency keys; returns the amounts removed.

        Batches with queued or running jobs stay, and so do files. The next purge, of whatever batches, finishes an
        interrupted one.

        Args:
            batch_ids: Batches to remove.
            older_than: Also remove batches that ended longer ago; without ``only``, rows of stopped workers and files
                that were uploaded over HTTP too.
            only: Of the batches of that age, those with one of these outcomes: ``succeeded`` (every job), ``failed`` or
                ``cancelled`` (some job), ``unfinished`` (the submission).
            dry_run: Return the amounts, but remove nothing.
            vacuum: Afterwards rewrite an older version's SQLite file, which cannot shrink in steps; no worker may run.
            agree: Called with the plan; nothing is removed unless it returns True.
            on_step: Called after each commit with the amounts removed so far.

        Raises:
            NotFoundError: No such batch.
            NotEndedError: A given batch has queued or running jobs; nothing was removed.
            DatabaseUnreachableError: The database does not answer, or is in use and cannot be rewritten.
        """
        from helix_jobs.client.purge import Outcome, Purged, measure, plan_purge, purge

        database = self._database()
        outcomes = [Outcome(outcome) for outcome in only]
        plan = plan_purge(database, older_than=older_than, batch_ids=batch_ids, only=outcomes)
        if not agree(plan):
            return Purged()
        return (
            measure(database, plan)
            if dry_run
            else purge(database, plan, on_step, vacuum=vacuum, keep_bytes=self.settings.answer_cache_mb << 20)
        )
