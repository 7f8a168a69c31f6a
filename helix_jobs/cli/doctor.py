"""``doctor``: checks whether this machine, its device and its software can run Helix, and names remedies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import click

from helix_jobs.cli.console import make_console, show
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, echo_json, helix_options
from helix_jobs.plain_text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from helix_jobs.doctor.verdict import Verdict
    from helix_jobs.engine.devices.operator_checks import OperatorVerdict
    from helix_jobs.settings import Settings

_STYLES: Final = {
    "ok": "green",
    "warning": "yellow",
    "falls back": "yellow",
    "failed": "red",
    "differs": "red",
    "fails": "red",
}
_EXIT_FAILED: Final = 1


@click.command(
    "doctor", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help="Examine this machine and its device."
)
@click.option(
    "--device",
    metavar="NAME",
    help="Device to examine: directml, cuda, rocm, xpu, mps or cpu, with an index such as cuda:1; default: the one a "
    "worker would take.",
)
@helix_options
def doctor(settings: Settings, *, device: str | None, as_json: bool) -> None:
    """Examine this machine: software, devices, compiled kernels, and each operator of the engine against the CPU.

    Exit code 0 when Helix can work here, 1 when a check failed.
    """
    if device is not None:
        settings = dataclasses.replace(settings, device=device)
    from helix_jobs.doctor.diagnosis import diagnose

    diagnosis = diagnose(settings)
    if as_json:
        echo_json(
            {
                "healthy": diagnosis.is_healthy,
                "verdicts": [dataclasses.asdict(verdict) for verdict in diagnosis.verdicts],
                "operators": [dataclasses.asdict(verdict) for verdict in diagnosis.operators],
            }
        )
    else:
        console = make_console()
        if diagnosis.operators:
            show(console, _operators_view(diagnosis.operators))
            console.print()
        show(console, _verdicts_view(diagnosis.verdicts))
        console.print()
        console.print("Helix can work here." if diagnosis.is_healthy else "Something failed; see above.")
    click.get_current_context().exit(0 if diagnosis.is_healthy else _EXIT_FAILED)


def _operators_view(operators: Sequence[OperatorVerdict]) -> Table:
    """A table with a row for each operator and a column for each dtype."""
    from rich.table import Table
    from rich.text import Text

    dtypes = list(dict.fromkeys(verdict.dtype for verdict in operators))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("OPERATOR", "USED FOR", *(dtype.upper() for dtype in dtypes)):
        table.add_column(title, overflow="fold")
    rows: dict[tuple[str, str], dict[str, OperatorVerdict]] = {}
    for verdict in operators:
        rows.setdefault((verdict.operator, verdict.purpose), {})[verdict.dtype] = verdict
    for names, verdicts in rows.items():
        cells = [Text(name) for name in names]
        for dtype in dtypes:
            verdict = verdicts[dtype]
            text = f"{verdict.status}: {verdict.detail}" if verdict.detail else str(verdict.status)
            cells.append(Text(printable(text), style=_STYLES[verdict.status]))
        table.add_row(*cells)
    return table


def _verdicts_view(verdicts: Sequence[Verdict]) -> Table:
    """A table with a row for each check; the remedy is below the finding."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("CHECK", "VERDICT", "FINDING"):
        table.add_column(title, overflow="fold")
    for verdict in verdicts:
        style = _STYLES[verdict.level]
        table.add_row(Text(verdict.subject), Text(verdict.level, style=style), Text(printable(verdict.finding)))
        if verdict.remedy is not None:
            table.add_row("", "", Text(f"-> {printable(verdict.remedy)}", style=style))
    return table
