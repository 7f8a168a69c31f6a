"""The report of a queue bench, as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.cli.console import show
from helix_jobs.wording import counted, data_size, duration, rate, rough_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from helix_jobs.bench.queue.report import CeleryFigures, DrainFigures, Latencies, Memory, QueueReport

_MILLI: Final = 1e3
_Row = tuple[str, str, str]


def show_queue_report(console: Console, report: QueueReport) -> None:
    """Print a report for a person."""
    from rich.table import Table

    work = report.workload
    console.print(
        f"queue: {counted(work['jobs'], 'job')}, {counted(work['workers'], 'worker')} of {work['batch_size']} slots, "
        f"{report.database}, {report.broker}",
        soft_wrap=True,
    )
    console.print(f"{report.host.cpu}, {counted(report.host.logical_cores or 0, 'core')}", soft_wrap=True)
    rows = list(_rows(report))
    if not rows:
        return
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("PART", overflow="fold")
    table.add_column("JOBS/S", justify="right", overflow="fold")
    table.add_column("BESIDES", overflow="fold")
    for row in rows:
        table.add_row(*row)
    show(console, table)


def _rows(report: QueueReport) -> Iterator[_Row]:
    """The results, in the order in which they were measured."""
    if report.celery is not None:
        yield "Celery, published", rate(report.celery.published_per_second), ""
        yield "Celery, drained", rate(report.celery.drained_per_second), f"empty tasks; {_cpu(report.celery)}"
    if report.submit is not None:
        submit = report.submit
        slow = f"slowest tenth stored at {rate(submit.slowest_tenth_per_second)}"
        yield "submitted", rate(submit.per_second), f"{duration(submit.seconds)}; {slow}; {_memory(submit.memory)}"
    if report.drain is not None:
        yield from _drain_rows(report.drain, report.celery)
    if report.reading is not None:
        yield "all waiting", "", _latencies(report.reading)
    if report.export is not None:
        export = report.export
        besides = f"{duration(export.seconds)}; {rough_size(export.bytes)} of jsonl; {_memory(export.memory)}"
        yield "exported", rate(export.per_second), besides
    if report.cancel is not None:
        cancel = report.cancel
        settled = f"{duration(cancel.settled_seconds)} until nothing ran and no message was left"
        yield "cancelled", rate(cancel.per_second), f"{duration(cancel.seconds)}; {settled}"
    if report.broker_use is not None:
        use = report.broker_use
        size = f"{data_size(use.peak_bytes)} at most, {data_size(use.idle_bytes)} without messages"
        yield "broker", "", f"{counted(use.peak_depth, 'message')} at most; {size}"


def _drain_rows(drain: DrainFigures, celery: CeleryFigures | None) -> Iterator[_Row]:
    against = [] if celery is None else [f"{drain.per_second / celery.drained_per_second:.2f}x Celery alone"]
    yield (
        "drained",
        rate(drain.per_second),
        "; ".join([duration(drain.seconds), _cpu(drain), *against, _memory(drain.worker_memory)]),
    )
    if drain.engine_idle_share is not None:
        slots = "" if drain.slots_used_share is None else f"; {drain.slots_used_share:.1%} of the slots used"
        yield "engine idle", "", f"{drain.engine_idle_share:.1%} of the time{slots}"
    if drain.reading.status is not None:
        yield "while draining", "", _latencies(drain.reading)


def _cpu(figures: DrainFigures | CeleryFigures) -> str:
    return f"{figures.cpu_ms_per_job:.2f} ms of processor time a job"


def _memory(memory: Memory) -> str:
    early, late, peak = map(rough_size, (memory.early, memory.late, memory.peak))
    return f"memory {early} early, {late} late, {peak} at most"


def _latencies(reading: Latencies) -> str:
    parts = [("status", reading.status), ("list", reading.list)]
    return ", ".join(f"{name} {rate(of.p50 * _MILLI)} ms (p99 {rate(of.p99 * _MILLI)})" for name, of in parts if of)
