"""load_endpoint: from settings to an engine that asks the user's server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.endpoint.connection import Address, Connection
from helix_jobs.engine.endpoint.endpoint_engine import EndpointEngine
from helix_jobs.engine.endpoint.faults import ServerBusyError, ServerLostError, ServerRefusesError
from helix_jobs.engine.endpoint.served_text import ServedText, answer_ids
from helix_jobs.engine.grammar.grammars import Grammars
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.loading.bare_tokenizer import open_tokenizer
from helix_jobs.engine.loading.vocabulary import turn_end_ids
from helix_jobs.engine.request_encoding import RequestEncoding
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.errors import ConfigurationError, EndpointUnreachableError, TokenizerMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.endpoint.server import Server
    from helix_jobs.engine.loading.bare_tokenizer import BareTokenizer
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

# Answers asked for at once where neither the settings nor the server say. Trade-off: a server with room for more runs
# emptier; one with less keeps the others in its own queue.
DEFAULT_IN_FLIGHT: Final = 64
# Words, numbers, white space and other scripts: what tokenizers split differently.
_TRIAL_TEXT: Final = "Question 1:\n\n    what is 20251 + 2?  Answer: čtyři, четыре, 四.\tdef f(x): return x ** 2"
# The longest request where neither the model's files nor the server say.
_DEFAULT_CONTEXT: Final = 4096


def load_endpoint(settings: Settings, on_progress: Callable[[str], None] | None = None) -> EndpointEngine:
    """Read the model's tokenizer and connect to the server that the settings name.

    Raises:
        ConfigurationError: A setting is missing, has no meaning here, or the server does not take this worker.
        EndpointUnreachableError: The server does not answer.
        ModelError: The tokenizer cannot be read, or is not that of the server's model.
    """
    report = on_progress or logger.info
    address = address_of(settings)
    if settings.adapters:
        raise ConfigurationError(
            "HELIX_ADAPTERS has no meaning with HELIX_ENGINE=endpoint; load adapters into the server, and set "
            "HELIX_ENDPOINT_MODEL to an adapter's name there"
        )
    bare = open_tokenizer(settings.target_model, settings.home, report)
    prompts = PromptEncoder(bare.tokenizer, name=settings.target_model)
    encode = partial(answer_ids, prompts)
    try:
        report(f"connecting to {address.url}")
        connection = open_connection(address, encode)
        try:
            _check_tokens(connection, encode(_TRIAL_TEXT), settings.target_model)
            text = served_text(bare, prompts, connection.server.max_model_len)
        except BaseException:
            connection.close()
            raise
    except BaseException:
        prompts.close()
        raise
    in_flight = settings.max_batch_size or connection.server.slots or DEFAULT_IN_FLIGHT
    return EndpointEngine(connection, text, max_batch_size=in_flight, place=address.url)


def address_of(settings: Settings) -> Address:
    """Where the server is.

    Raises:
        ConfigurationError: The settings do not say.
    """
    if settings.endpoint_url is None:
        raise ConfigurationError(
            "HELIX_ENGINE is endpoint and HELIX_ENDPOINT_URL is not set; set it to the server's address, such as "
            "http://127.0.0.1:8000"
        )
    return Address(settings.endpoint_url, settings.endpoint_key, settings.endpoint_model)


def open_connection(address: Address, encode: Callable[[str], tuple[int, ...]]) -> Connection:
    """Connect to a server.

    Raises:
        ConfigurationError: It does not take this worker.
        EndpointUnreachableError: It does not answer yet.
    """
    try:
        return Connection(address, encode)
    except ServerRefusesError as error:
        raise ConfigurationError(f"HELIX_ENDPOINT_URL {address.url}: {error}") from error
    except (ServerLostError, ServerBusyError) as error:
        raise EndpointUnreachableError(
            f"HELIX_ENDPOINT_URL {address.url}: {error}; start the server and wait until it is ready, or correct the "
            "address"
        ) from error


def look_at_server(address: Address) -> Server:
    """What a server says it is.

    Raises:
        ConfigurationError, EndpointUnreachableError: As ``open_connection``.
    """
    connection = open_connection(address, lambda _: ())
    try:
        return connection.server
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class _Ends:
    """Tokens that end any output, and further ones that end an answer to messages."""

    eos: frozenset[int]
    turn: frozenset[int]


def served_text(bare: BareTokenizer, prompts: PromptEncoder, server_context: int | None) -> ServedText:
    """What requests to a server need of the model.

    Args:
        bare: Its tokenizer and settings.
        prompts: Encodes with this tokenizer.
        server_context: Prompt plus output tokens that the server takes at most; None if it does not say.

    Raises:
        ModelError, ExhaustedError: As ``PromptEncoder.probe``.
    """
    template = prompts.probe()
    forms = chat_forms(bare.tokenizer, template)
    named = turn_end_ids(bare.tokenizer, None if template is None else template.probe)
    ends = _Ends(bare.eos_token_ids, (named | bare.turn_end_ids | forms.turn_ends) - forms.within_turn)
    contexts = [one for one in (bare.max_context, server_context) if one is not None]
    max_model_len = min(contexts, default=_DEFAULT_CONTEXT)
    codec = TextCodec(bare.tokenizer, bare.vocab_size, prompts, max_model_len - 1)
    grammars = Grammars(lambda: TokenTable.of(bare.tokenizer, bare.vocab_size, ends.eos | ends.turn))
    encoding = RequestEncoding(codec, max_model_len, ends.eos, ends.turn, grammars=grammars, chat_forms=forms)
    bos = bare.tokenizer.bos_token_id
    return ServedText(
        codec=codec,
        encoding=encoding,
        grammars=grammars,
        forms=forms,
        max_model_len=max_model_len,
        bos_token_id=bos if isinstance(bos, int) else None,
    )


def _check_tokens(connection: Connection, token_ids: tuple[int, ...], target: str) -> None:
    """Refuse a tokenizer that is not the server's.

    Raises:
        TokenizerMismatchError: They split a text differently.
        EndpointUnreachableError: The server does not answer.
    """
    try:
        same = connection.has_tokens_of(_TRIAL_TEXT, token_ids)
    except ServerLostError as error:
        raise EndpointUnreachableError(f"{error}; start the worker again when it answers") from error
    if not same:
        raise TokenizerMismatchError(
            f"the tokenizer of {target} is not that of {connection.server.model}, which the server serves; set "
            "HELIX_TARGET_MODEL to the model whose tokenizer the server has"
        )
