"""The report of a bench, as tables: the figures of each case, where its time went, and the ratios to the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.cli.console import show
from helix_jobs.plain_text import printable
from helix_jobs.wording import counted, percent, rate, rough_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from helix_jobs.bench.percentiles import Percentiles
    from helix_jobs.bench.report import BenchReport, CaseReport, Comparison, PeerReport

_NONE: Final = "-"
_MILLI: Final = 1e3


def show_report(console: Console, report: BenchReport) -> None:
    """Print a report for a person."""
    for line in _heading(report):
        console.print(line, soft_wrap=True)
    cases = [one for one in report.cases if one.rounds]
    if cases:
        for table in (_figures(report, cases), _time(cases)):
            console.print()
            show(console, table)
    if report.peers:
        console.print()
        show(console, _peers(report))
    for one in cases:
        failed = sum(round_.failed for round_ in one.rounds)
        if failed:
            console.print(
                f"{_where(one)}: {counted(failed, 'request')} failed; the figures leave them out.", style="red"
            )
    for peer in report.peers:
        if peer.error is not None:
            console.print(
                f"\n{peer.name}, batch {peer.batch_size}: {printable(peer.error)}", style="red", soft_wrap=True
            )
            for line in peer.error_tail.splitlines():
                console.print(f"  {printable(line)}", style="dim", soft_wrap=True)


def _heading(report: BenchReport) -> list[str]:
    machine = report.machine
    runs = next((one.rounds[0] for one in report.cases if one.rounds), None)
    lines = [
        f"{report.workload['name']}: {report.target}, {report.dtype}, {report.device}",
        f"{machine.cpu}, {counted(machine.threads, 'thread')}, torch {machine.torch}",
    ]
    if runs is not None:
        lines.append(
            f"{counted(runs.requests, 'request')}, {counted(runs.prompt_tokens, 'prompt token')}; medians of "
            f"{counted(report.workload['repeat'], 'round')}"
        )
    return lines


def _figures(report: BenchReport, cases: Sequence[CaseReport]) -> Table:
    off = {one.case: one for one in report.against_off}
    table = _table(
        ("MODE", "left"), ("BATCH", "right"), ("TOKENS/S", "right"), ("VS OFF", "right"), ("EQUAL", "right"),
        ("TTFT MS 50/90/99", "right"), ("INTER-TOKEN MS 50/90/99", "right"), ("ACCEPTED", "right"),
        ("DEPTH", "right"), ("TOKENS/STEP", "right"), ("CACHED", "right"), ("PREEMPTED", "right"),
    )  # fmt: skip
    for one in cases:
        run = one.typical
        against = off.get(one.case)
        table.add_row(
            _mode(one),
            str(one.case.batch_size),
            rate(one.tokens_per_second),
            _NONE if against is None else f"{against.ratio:.2f}x",
            _share(None if against is None else against.equal_outputs),
            _milliseconds(run.ttft_from_submission),
            _milliseconds(run.inter_token),
            _share(run.acceptance_rate),
            f"{run.mean_depth:.1f}" if run.draft_tokens else _NONE,
            _NONE if run.mean_acceptance_length is None else f"{run.mean_acceptance_length:.2f}",
            _share(run.cached_prompt_tokens / run.prompt_tokens if run.prompt_tokens else None),
            str(run.preemptions),
        )
    return table


def _time(cases: Sequence[CaseReport]) -> Table:
    table = _table(
        ("MODE", "left"), ("BATCH", "right"), ("TARGET", "right"), ("ATTENTION", "right"), ("DRAFT", "right"),
        ("VERIFY", "right"), ("SCHEDULE", "right"), ("OTHER", "right"), ("DECODE STEP", "right"), ("FLOOR", "right"),
        ("MEMORY", "right"),
    )  # fmt: skip
    for one in cases:
        run, step = one.typical, one.typical.decode_step
        shares = run.shares
        parts = [_NONE] * 6
        if shares is not None:
            attention = percent(shares.attention) if shares.attention else _NONE
            rest = (shares.draft, shares.verify, shares.schedule, shares.other)
            parts = [percent(shares.target), attention, *map(percent, rest)]
        memory = run.peak_memory_bytes if run.peak_device_bytes is None else run.peak_device_bytes
        table.add_row(
            _mode(one),
            str(one.case.batch_size),
            *parts,
            _NONE if step is None else f"{step.seconds * _MILLI:.1f} ms, {counted(step.num_tokens, 'token')}",
            _share(one.floor_share),
            _memory(memory),
        )
    return table


def _peers(report: BenchReport) -> Table:
    table = _table(
        ("PEER", "left"), ("BATCH", "right"), ("TOKENS/S", "right"), ("MEMORY", "right"), ("HELIX", "left"),
        ("RATIO", "right"), ("ROUNDS", "left"), ("EQUAL", "right"),
    )  # fmt: skip
    for peer in report.peers:
        ours = [
            one
            for one in report.against_peers
            if (one.against, one.case.batch_size, one.case.variant) == (peer.name, peer.batch_size, peer.variant)
        ]
        if not ours:
            table.add_row(_peer(peer), str(peer.batch_size), "failed" if peer.error else _NONE, *[""] * 5)
        for number, one in enumerate(ours):
            first = number == 0
            table.add_row(
                _peer(peer) if first else "",
                str(peer.batch_size) if first else "",
                _rate(peer.tokens_per_second) if first else "",
                _memory(peer.peak_memory_bytes) if first else "",
                one.case.mode.label,
                f"{one.ratio:.2f}x",
                _rounds(one),
                _share(one.equal_outputs),
            )
    return table


def _table(*columns: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title, side in columns:
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    return table


def _mode(one: CaseReport) -> str:
    return f"{one.case.mode.label}{f' ({one.case.variant})' if one.case.variant else ''}"


def _where(one: CaseReport) -> str:
    return f"{_mode(one)}, batch {one.case.batch_size}"


def _peer(peer: PeerReport) -> str:
    return f"{peer.name}{f' ({peer.variant})' if peer.variant else ''}"


def _rounds(one: Comparison) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in one.ratios)


def _rate(value: float | None) -> str:
    return _NONE if value is None else rate(value)


def _memory(value: int | None) -> str:
    return _NONE if value is None else rough_size(value)


def _share(value: float | None) -> str:
    return _NONE if value is None else percent(value)


def _milliseconds(values: Percentiles | None) -> str:
    if values is None:
        return _NONE
    return " ".join(rate(value * _MILLI) for value in (values.p50, values.p90, values.p99))
