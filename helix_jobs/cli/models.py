"""``models``: whether models are served, and what they need here, before anything is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.console import make_console, show
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, echo_json, helix_options
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.cli.views import facts_view
from helix_jobs.plain_text import printable
from helix_jobs.wording import counted, rough_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from helix_jobs.doctor.model_report import ModelReport
    from helix_jobs.engine.loading.model_fit import Fit
    from helix_jobs.settings import Settings

_EXIT_UNFIT: Final = 1
_CACHE_UNIT: Final = 1000
_FITS: Final = {True: ("yes", "green"), False: ("no", "red"), None: ("unknown", "yellow")}


@click.command(
    "models", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help="Say what models need on this machine."
)
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@setting_options(
    "draft_model", "adapters", "device", "dtype", "max_batch_size", "speculation_depth", "kv_cache_mb", "kv_cache_dtype"
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of a sequence, prompt and output together; default: as many as the model has.",
)
@helix_options
def models(
    settings: Settings,
    *,
    names: tuple[str, ...],
    context: int | None,
    as_json: bool,
    **overrides: Any,  # noqa: ANN401  (click's own values)
) -> None:
    """Say whether MODELs are served, and how much memory each number format of them takes here.

    MODEL is a directory, a .gguf file, demo, a hub id or a file on the hub (OWNER/NAME:FILE.gguf). Only small files
    that describe a model are downloaded, and no weight is read. Without MODEL, list the model types that are served,
    and those that are not.

    Exit code 0 when a worker would start with each MODEL, 1 when one is not served or does not fit.
    """
    if not names:
        _list_types(as_json=as_json)
        return
    effective = with_options(settings, overrides)
    from helix_jobs.doctor.model_report import examine, report_models

    place = examine(effective)
    reports = report_models(names, effective, place, context)
    if as_json:
        echo_json(
            {
                "device": place.description,
                "free_bytes": place.available,
                "draft": effective.draft_model,
                "kv_cache_dtype": effective.kv_cache_dtype,
                "models": [_report_json(report) for report in reports],
            }
        )
    else:
        console = make_console()
        free = "does not tell its free memory" if place.available is None else f"{rough_size(place.available)} free"
        used = f"draft {effective.draft_model}"
        if effective.kv_cache_dtype != "auto":
            used += f", KV cache {effective.kv_cache_dtype}"
        console.print(printable(f"{place.description}, {free}; {used}"), soft_wrap=True)
        for report in reports:
            console.print()
            _print_report(console, report)
    click.get_current_context().exit(0 if all(report.is_well for report in reports) else _EXIT_UNFIT)


def _report_json(report: ModelReport) -> dict[str, Any]:
    """One model for programs. Keys are stable: new ones may come, none is renamed."""
    outline = report.outline
    return {
        "name": report.name,
        "served": outline is not None,
        "reason": report.reason,
        "remedy": report.remedy,
        "model_type": None if outline is None else outline.model_type,
        "weights": None if outline is None else outline.sizes.weights,
        "stored_dtype": None if outline is None else outline.stored_name,
        "file_bytes": None if outline is None else outline.file_bytes,
        "is_here": None if outline is None else outline.is_here,
        "context": None if outline is None else outline.sizes.context,
        "fits": report.fits[0].fits if report.fits else None,
        "advice": list(report.advice),
        "formats": [_fit_json(fit) for fit in report.fits],
    }


def _fit_json(fit: Fit) -> dict[str, Any]:
    memory = fit.memory
    return {
        "dtype": fit.chosen.name,
        "weights_bytes": memory.weights,
        "draft_bytes": memory.draft,
        "adapter_bytes": memory.adapters,
        "loading_bytes": memory.loading,
        "cache_bytes_per_1000_tokens": _CACHE_UNIT * memory.cache_per_token,
        "fits": fit.fits,
        "cache_bytes": fit.cache_bytes,
        "cache_tokens": fit.cache_tokens,
        "sequence_tokens": fit.context,
        "sequences": fit.sequences,
        "max_batch_size": fit.max_batch_size,
    }


def _print_report(console: Console, report: ModelReport) -> None:
    from rich.text import Text

    console.print(Text(printable(report.name), style="bold"), soft_wrap=True)
    outline = report.outline
    if outline is None:
        console.print(Text(printable(f"not served: {report.reason}"), style="red"), soft_wrap=True)
        if report.remedy:
            console.print(printable(f"-> {report.remedy}"), soft_wrap=True)
        return
    place = "on this machine" if outline.is_here else "to download"
    stored = outline.stored_name or "a type that the hub does not tell"
    facts = [
        ("Type", outline.model_type),
        ("Weights", f"{outline.sizes.weights / 1e6:,.0f} million, stored as {stored}"),
        ("Files", f"{rough_size(outline.file_bytes)} {place}"),
        ("Context", f"{outline.sizes.context:,} tokens"),
    ]
    show(console, facts_view(facts))
    show(console, _fits_view(report))
    for advice in report.advice:
        console.print(printable(f"-> {advice}"), soft_wrap=True)


def _fits_view(report: ModelReport) -> Table:
    """A row for each format, first the one that a worker would take."""
    from rich.table import Table
    from rich.text import Text

    length = report.fits[0].context
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("DTYPE", no_wrap=True)
    for title in ("WEIGHTS", "DRAFT", "1,000 TOKENS", "FITS", "CACHE", f"SEQUENCES OF {length:,}"):
        table.add_column(title, justify="right", no_wrap=True)
    for fit in report.fits:
        memory = fit.memory
        word, style = _FITS[fit.fits]
        table.add_row(
            fit.chosen.name,
            rough_size(memory.weights),
            rough_size(memory.draft) if memory.draft else "-",
            rough_size(_CACHE_UNIT * memory.cache_per_token),
            Text(word, style=style),
            counted(fit.cache_tokens, "token"),
            f"{fit.sequences:,}",
        )
    return table


def _list_types(*, as_json: bool) -> None:
    from helix_jobs.engine.loading.served_types import served_types, types_not_served

    served, refused = served_types(), types_not_served()
    if as_json:
        echo_json(
            {
                "served": [
                    {"model_type": one.model_type, "class_name": one.class_name, "from_gguf": one.from_gguf}
                    for one in served
                ],
                "not_served": [{"model_type": kind, "reason": reason} for kind, reason in refused.items()],
            }
        )
        return
    console = make_console()
    show(
        console,
        _types_view(
            ("SERVED", "CLASS", "FROM"),
            [
                (one.model_type, one.class_name, "safetensors, GGUF" if one.from_gguf else "safetensors")
                for one in served
            ],
        ),
    )
    console.print()
    show(console, _types_view(("NOT SERVED", "BECAUSE OF"), list(refused.items())))
    console.print()
    console.print("Every other type is refused as well. helix models MODEL says what a model needs here.")


def _types_view(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
