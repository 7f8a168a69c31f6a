"""Check the user's server: whether it answers, what it is, and whether its model's tokenizer is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.doctor.verdict import Level, Verdict, failure
from helix_jobs.engine.loading.load_endpoint import address_of, look_at_server
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


def check_endpoint(settings: Settings) -> list[Verdict]:
    """Ask the server what it is. Without HELIX_ENGINE=endpoint there is nothing to check."""
    if settings.engine != "endpoint":
        return []
    try:
        address = address_of(settings)
        server = look_at_server(address)
    except HelixError as error:
        return [failure("endpoint", error)]
    context = "" if server.max_model_len is None else f", up to {server.max_model_len:,} tokens"
    finding = f"{server.in_words} at {address.url} serves {server.model}{context}"
    if server.dialect.has_token_ids:
        return [Verdict("endpoint", Level.OK, finding)]
    remedy = "use vLLM or llama-server to have the tokens of answers as the server made them"
    return [Verdict("endpoint", Level.WARNING, finding, remedy)]
