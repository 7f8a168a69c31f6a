"""The ``--like`` flag of ``submit``: another batch, whose options hold where none is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from helix_jobs.cli.sampling_options import SAMPLING_FLAGS
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.client.client import HelixClient
    from helix_jobs.storage.manifests import Manifest

like_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--like",
    metavar="BATCH",
    help="Repeat BATCH's options (sampling, truncation, form, rules) where none is given.",
)


def options_like(like: Manifest, defaults: SamplingParams) -> dict[str, Any]:
    """The arguments of ``submit`` by which it repeats another batch's options.

    A flag that was given goes before the other batch, and the other batch before the environment.
    """
    from helix_jobs.client.line_defaults import LineDefaults

    context = click.get_current_context()
    before = LineDefaults.of_batch(like).sampling
    given = [name for name in SAMPLING_FLAGS if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    changes = {name: getattr(defaults, name) for name in sorted(given)}
    options: dict[str, Any] = {"like": like, "defaults": SamplingParams.from_mapping(changes, before)}
    if context.get_parameter_source("truncate_prompt") is not ParameterSource.COMMANDLINE:
        options["truncate_prompt"] = None
    return options


def other_models(client: HelixClient, like: Manifest) -> str | None:
    """Say so if the workers that run have another model than those that answered the other batch."""
    answered = {(maker.target_model, _digest(maker.setup)) for maker in like.makers}
    serving = {(worker.target_model, _digest(worker.setup)) for worker in client.live_workers()}
    if not answered or not serving or any(_may_be_one(one, other) for one in answered for other in serving):
        return None
    then = ", ".join(sorted({name or "a model that is not known" for name, _ in answered}))
    now = ", ".join(sorted({name for name, _ in serving}))
    files = " with other files" if then == now else ""
    return f"Batch {like.batch_id} was answered by {then}; {counted(len(serving), 'model')} here: {now}{files}."


def _may_be_one(one: tuple[str | None, str | None], other: tuple[str | None, str | None]) -> bool:
    """Whether two models by name and digest may be the same: a worker that has just begun has not read its own yet."""
    return one[0] == other[0] and (one[1] == other[1] or None in (one[1], other[1]))


def _digest(setup: Any) -> str | None:  # noqa: ANN401  (JSON)
    return None if setup is None else setup.get("target", {}).get("digest")
