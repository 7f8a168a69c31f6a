"""BareTokenizer: a model's tokenizer and the few settings that requests need, without its weights.

Helix need not know the model's architecture: a server computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import GenerationConfig, PretrainedConfig

from helix_jobs.engine.loading.checkpoint import look_up_checkpoint
from helix_jobs.engine.loading.demo_model import DEMO_MODEL
from helix_jobs.engine.loading.hub_model import download_description
from helix_jobs.engine.loading.model_source import open_source
from helix_jobs.engine.loading.pretrained import pretrained_arguments, read_tokenizer
from helix_jobs.engine.loading.token_ids import check_token_ids
from helix_jobs.engine.loading.tokenizer_trial import try_tokenizer
from helix_jobs.engine.loading.vocabulary import end_token_ids
from helix_jobs.engine.model.description_files import read_config
from helix_jobs.engine.model.model_words import in_words, subject
from helix_jobs.engine.text.decoders import check_decoder
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.errors import HelixError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerBase

# Where the settings of a model's language part stand, if it has other parts.
_PARTS: Final = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class BareTokenizer:
    """A model as far as its requests and answers are concerned.

    Attributes:
        tokenizer: A fast one.
        vocab_size: Token ids that the model may emit.
        max_context: Positions that the model was made for; None if its files do not say.
        eos_token_ids: Tokens that end an output.
        turn_end_ids: Tokens that a GGUF file names as ends of a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    max_context: int | None
    eos_token_ids: frozenset[int]
    turn_end_ids: frozenset[int] = frozenset()


def open_tokenizer(name: str, home: Path, on_progress: Callable[[str], None]) -> BareTokenizer:
    """Read a model's tokenizer and settings. Of a model on the hub no weights are downloaded.

    Args:
        name: A directory, a hub id, a ``.gguf`` file, here or on the hub, or ``demo``.
        home: HELIX_HOME; the demo model is kept under it.
        on_progress: Receives one line for each thing that is done.

    Raises:
        ModelNotFoundError: No such model, or it lacks its configuration or tokenizer.
        ModelError: Its files are damaged.
        UnsupportedArchitectureError: It is a GGUF file of an architecture that Helix does not know.
        ExhaustedError: The system cannot start a process to try its tokenizer in.
    """
    if name != DEMO_MODEL and ".gguf" not in name.lower():
        folder = Path(name).expanduser()
        return _from_folder(name, folder if folder.is_dir() else download_description(name, on_progress))
    if name == DEMO_MODEL:
        return _from_folder(name, look_up_checkpoint(name, home, on_progress).folder)
    source = open_source(name, home, on_progress)
    return BareTokenizer(
        source.tokenizer,
        int(source.config.vocab_size),
        int(source.config.max_position_embeddings),
        end_token_ids(source.tokenizer, source.config, None),
        source.turn_end_ids,
    )


def _from_folder(name: str, folder: Path) -> BareTokenizer:
    config = read_config(name, folder)
    check_token_ids(name, folder)
    try_tokenizer(name, folder)
    try:
        with panics_as_errors(), pretrained_arguments(folder) as (place, arguments):
            tokenizer = read_tokenizer(place, arguments)
            check_decoder(name, tokenizer)
            has_generation = (folder / "generation_config.json").is_file()
            generation = GenerationConfig.from_pretrained(place, **arguments) if has_generation else None
    except HelixError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ModelNotFoundError(
            f"{subject(name, folder)} has a tokenizer that cannot be read ({in_words(error)}); fetch the model's "
            "tokenizer files again"
        ) from error
    stated = PretrainedConfig.from_dict({"eos_token_id": _setting(config, "eos_token_id")})
    vocab_size = _setting(config, "vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise ModelError(f"model {name}: its config.json says no vocab_size; fetch the model again")
    context = _setting(config, "max_position_embeddings")
    return BareTokenizer(
        tokenizer,
        vocab_size,
        context if type(context) is int and context > 0 else None,
        end_token_ids(tokenizer, stated, generation),
    )


def _setting(config: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401  (any JSON value)
    """A setting of the language model, which may be a part of a larger one."""
    parts = (config.get(part) for part in _PARTS)
    return next(
        (part[name] for part in (config, *parts) if isinstance(part, dict) and part.get(name) is not None), None
    )
