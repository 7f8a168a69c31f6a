"""``preview``: the first prompts as they would be submitted, with their token counts. Nothing is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.console import make_console, show
from helix_jobs.cli.group import HelixCommand, echo_json, helix_options
from helix_jobs.cli.sampling_options import sampling_options, truncation_option
from helix_jobs.cli.setting_options import setting_options, with_options
from helix_jobs.cli.streams import standard_input
from helix_jobs.cli.table_options import InputPath, table_options
from helix_jobs.cli.views import bad_line_json, bad_lines_view
from helix_jobs.client.alike import alike
from helix_jobs.errors import HelixError, InvalidRequestError, RequestError
from helix_jobs.plain_text import paragraphs, printable
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from helix_jobs.client.preview import Preview
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.new_job import NewJob
    from helix_jobs.settings import Settings
    from helix_jobs.tables.ask import TableAsk

_EXIT_BAD: Final = 2
_QUESTIONS: Final = ("prompt", "prompt_token_ids", "messages")


@click.command("preview", cls=HelixCommand, short_help="Show the first prompts of a file, and store nothing.")
@click.argument("file", metavar="FILE", type=InputPath(exists=True, readable=True, allow_dash=True))
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Prompts to show.")
@setting_options("target_model")
@table_options
@sampling_options
@truncation_option
@helix_options
def preview(
    settings: Settings,
    file: str,
    defaults: SamplingParams,
    truncate_prompt: TruncatePrompt | None,
    *,
    table: TableAsk | None,
    rows: int,
    target_model: str | None,
    as_json: bool,
) -> None:
    """Show the first prompts of FILE (- is standard input) as `submit` would store them, with their token counts.

    Takes the options of `submit` that say what is asked. The target model's tokenizer counts, and its chat template is
    applied; its weights are not needed.

    Exit code 2 if there are bad lines among the first ones.
    """
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.client.preview import preview_lines

    effective = with_options(settings, {"target_model": target_model})
    console = make_console(stderr=True)
    readings: list[str] = []
    found = preview_lines(
        effective,
        standard_input() if file == "-" else file,
        LineDefaults(defaults, truncate_prompt),
        count=rows,
        table=table,
        on_reading=readings.append,
    )
    counts, context = _token_counts(effective, found.jobs, console)
    if as_json:
        echo_json(_preview_json(found, counts, effective.target_model, context, readings))
    else:
        for reading in readings:
            console.print(
                f"Reading {'standard input' if file == '-' else printable(file)} as {reading}", soft_wrap=True
            )
        _print_prompts(found, counts, context)
        if found.bad_lines:
            show(console, bad_lines_view(alike(found.bad_lines)))
        end = "There are more lines." if found.has_more else "These are all lines."
        console.print(f"{end} Nothing was stored.", soft_wrap=True)
    if found.bad_lines:
        click.get_current_context().exit(_EXIT_BAD)


def _token_counts(settings: Settings, jobs: Sequence[NewJob], console: Console) -> tuple[list[int | str], int | None]:
    """Tokens of each prompt, or why there is no count; and the model's context."""
    if not jobs:
        return [], None
    if settings.engine == "fake":
        return _fake_counts(settings, jobs)
    from helix_jobs.client.preview import engine_request
    from helix_jobs.engine.loading.prompt_counter import PromptCounter

    try:
        counter = PromptCounter(
            settings.target_model, settings.home, lambda line: console.print(f"{line} ...", soft_wrap=True)
        )
    except HelixError as error:
        console.print(f"No token counts: {printable(str(error))}", style="yellow", soft_wrap=True)
        return [f"unknown: {type(error).__name__}"] * len(jobs), None
    with counter:
        counts: list[int | str] = []
        for job in jobs:
            try:
                counts.append(counter.count(engine_request(job)))
            except InvalidRequestError as error:
                counts.append(str(error))
        return counts, counter.max_context


def _fake_counts(settings: Settings, jobs: Sequence[NewJob]) -> tuple[list[int | str], int]:
    """The same for the fake engine, which needs no model: its tokens are words."""
    from helix_jobs.client.preview import engine_request
    from helix_jobs.engine.loading.open_engine import load_engine

    engine = load_engine(settings)
    counts: list[int | str] = []
    for job in jobs:
        try:
            counts.append(len(engine.encode(engine_request(job)).prompt_token_ids))
        except RequestError as error:
            counts.append(str(error))
    return counts, engine.info.max_model_len


def _preview_json(
    found: Preview, counts: Sequence[int | str], model: str, context: int | None, readings: Sequence[str]
) -> dict[str, Any]:
    prompts: list[dict[str, Any]] = []
    for job, count in zip(found.jobs, counts, strict=True):
        asked: dict[str, Any] = {name: job.request[name] for name in _QUESTIONS if name in job.request}
        told = {"tokens": count, "reason": None} if isinstance(count, int) else {"tokens": None, "reason": count}
        prompts.append({"line": job.line, "custom_id": job.custom_id, **told, **asked})
    return {
        "reading": readings[0] if readings else None,
        "target_model": model,
        "context": context,
        "prompts": prompts,
        "invalid": [bad_line_json(fault) for bad in found.bad_lines for fault in bad.faults],
        "has_more": found.has_more,
    }


def _print_prompts(found: Preview, counts: Sequence[int | str], context: int | None) -> None:
    for job, count in zip(found.jobs, counts, strict=True):
        name = "" if job.custom_id is None else f" {printable(job.custom_id)}"
        if not isinstance(count, int):
            told = printable(count)
        elif context is not None and count >= context:
            told = f"{counted(count, 'token')}, more than the context of {context:,} takes"
        else:
            told = counted(count, "token")
        click.secho(f"line {job.line}{name}: {told}", bold=True)
        for title, text in _texts(job):
            click.echo(paragraphs(f"{title}{text}"))
        click.echo()


def _texts(job: NewJob) -> list[tuple[str, str]]:
    """What the model is asked, each text with its role."""
    request = job.request
    if "messages" in request:
        return [(f"{message['role']}: ", str(message["content"])) for message in request["messages"]]
    if "prompt" in request:
        return [("", request["prompt"])]
    return [("token ids: ", " ".join(map(str, request["prompt_token_ids"])))]
