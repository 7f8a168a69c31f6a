"""ModelSource: a checkpoint whose configuration and tokenizer are read, and whose weights can be read."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import transformers
from transformers import AutoConfig

from helix_jobs.engine.loading.checkpoint import Checkpoint, fetched, look_up_checkpoint
from helix_jobs.engine.loading.gguf_config import gguf_config
from helix_jobs.engine.loading.gguf_tokenizer import build_gguf_tokenizer, gguf_turn_end_ids
from helix_jobs.engine.loading.layout import check_layout
from helix_jobs.engine.loading.model_sizes import sizes_of, skeleton
from helix_jobs.engine.loading.pretrained import (
    TRANSFORMERS_MAJOR,
    pretrained_arguments,
    read_tokenizer,
)
from helix_jobs.engine.loading.quantized_format import refusal
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, check_layers
from helix_jobs.engine.loading.token_ids import check_token_ids
from helix_jobs.engine.loading.tokenizer_trial import try_tokenizer
from helix_jobs.engine.model.architecture import check_architecture
from helix_jobs.engine.model.families.registry import FAMILIES, describe
from helix_jobs.engine.model.model_words import in_words, subject
from helix_jobs.engine.model.text_tower import text_config, text_settings, text_tensors
from helix_jobs.engine.text.decoders import check_decoder
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.errors import HelixError, ModelError, ModelNotFoundError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from helix_jobs.engine.loading.model_sizes import ModelSizes

logger = logging.getLogger(__name__)

# The families' names for their number of layers in config.json.
_LAYER_COUNTS: Final = ("num_hidden_layers", "n_layer", "n_layers")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model without its weights.

    Attributes:
        checkpoint: Its files.
        config: Its complete configuration.
        sizes: How large it is.
        tokenizer: A fast one.
        turn_end_ids: Tokens that a GGUF file names as ends of a turn, beside those of its chat template.
    """

    checkpoint: Checkpoint
    config: PretrainedConfig
    sizes: ModelSizes
    tokenizer: PreTrainedTokenizerBase
    turn_end_ids: frozenset[int] = frozenset()

    def with_files(self, on_progress: Callable[[str], None]) -> ModelSource:
        """The model with its weights on this machine, downloaded if they are not.

        Raises:
            ModelNotFoundError, ModelError: As in ``fetched``.
        """
        return replace(self, checkpoint=fetched(self.checkpoint, on_progress))


def open_source(name: str, home: Path, on_progress: Callable[[str], None]) -> ModelSource:
    """Find a model and read its small parts; a ``.gguf`` file on the hub is not downloaded yet, see ``with_files``.

    Raises:
        ModelNotFoundError: No such model, or it lacks its configuration or tokenizer.
        UnsupportedArchitectureError: The engine would not compute it exactly.
        ModelError: Its files are damaged.
        ExhaustedError: The system cannot start a process to try its tokenizer in.
    """
    checkpoint = look_up_checkpoint(name, home, on_progress)
    check_layers(name, stated_layers(checkpoint), checkpoint.tensors)
    if checkpoint.gguf is None:
        check_token_ids(name, checkpoint.folder)
        try_tokenizer(name, checkpoint.folder)
    config = read_configuration(checkpoint)
    # Made once for both: it takes as long as all the rest of opening a small model.
    model = skeleton(name, config)
    check_layout(name, config, model, checkpoint.tensors, is_gguf=checkpoint.gguf is not None)
    with _readable(checkpoint) as (folder, arguments):
        tokenizer = (
            read_tokenizer(folder, arguments)
            if checkpoint.gguf is None
            else build_gguf_tokenizer(name, checkpoint.gguf.architecture, checkpoint.gguf.vocabulary)
        )
        check_decoder(name, tokenizer)
    named = frozenset[int]() if checkpoint.gguf is None else gguf_turn_end_ids(checkpoint.gguf.vocabulary)
    return ModelSource(checkpoint, config, sizes_of(checkpoint, config, model), tokenizer, named)


def read_configuration(checkpoint: Checkpoint, tensors: Iterable[str] | None = None) -> PretrainedConfig:
    """Read a model's complete configuration; its number of layers is one that can be built.

    Args:
        checkpoint: The model's files.
        tensors: Names of its tensors, where these files are on the hub; None if the checkpoint has them.

    Raises:
        ModelNotFoundError: It cannot be read.
        UnsupportedArchitectureError: The engine would not compute it exactly.
        ModelError: Its numbers are none that a model can have.
    """
    with _readable(checkpoint) as (folder, arguments):
        config = _read_config(checkpoint, tensors, folder, arguments)
        _translate_rope(config, checkpoint)
        if checkpoint.quantized is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
        check_architecture(checkpoint.name, config)
        _check_release(checkpoint.name, config)
        _check_quantized(checkpoint, config)
    return config


@contextlib.contextmanager
def _readable(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what ``pretrained_arguments`` does, and say in one sentence what goes wrong with a model's small files.

    Raises:
        ModelError: A package is missing.
        ModelNotFoundError: A file is damaged.
    """
    name = checkpoint.name
    try:
        with panics_as_errors(), pretrained_arguments(checkpoint.folder) as given:
            yield given
    except HelixError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, ImportError) and _has_tokenizer(checkpoint):  # some tokenizers need protobuf
            missing = " ".join(str(error).split())
            raise ModelError(
                f"model {name} needs a Python package that is not installed: {missing}; install it"
            ) from error
        raise ModelNotFoundError(
            f"{subject(name, checkpoint.folder)} has a configuration or a tokenizer that cannot be read "
            f"({in_words(error)}); fetch the model again, tokenizer files included"
        ) from error


def _check_quantized(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    """Refuse quantised matrices of a family that has them transposed, unless the format stores them as others.

    Raises:
        UnsupportedArchitectureError: See above.
    """
    quantized = checkpoint.quantized
    if quantized is None or quantized.turns_transposed:
        return
    if any(one.is_transposed for one in describe(config).projections):
        raise refusal(checkpoint.name, quantized.name, "with matrices that its family has transposed")


def _check_release(name: str, config: PretrainedConfig) -> None:
    """Refuse experts where transformers does not stack them.

    Raises:
        UnsupportedArchitectureError: transformers is of release 4.
    """
    if TRANSFORMERS_MAJOR < 5 and any(layer.experts is not None for layer in describe(config).layers):  # noqa: PLR2004  (a version)
        raise UnsupportedArchitectureError(
            f"model {name} has experts, which transformers {transformers.__version__} does not stack; install "
            "transformers 5"
        )


def _read_config(
    checkpoint: Checkpoint, tensors: Iterable[str] | None, folder: str, arguments: dict[str, Any]
) -> PretrainedConfig:
    """A configuration: config.json's as transformers reads it, or the one that a GGUF file's settings make."""
    if checkpoint.gguf is not None:
        return gguf_config(checkpoint.gguf)
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, **arguments)
    if checkpoint.is_text_tower:
        own = checkpoint.tensors if tensors is None else text_tensors(dict.fromkeys(tensors))
        config = text_config(checkpoint.name, config, is_tied=_is_tied(checkpoint.settings, own))
    return config


def stated_layers(checkpoint: Checkpoint) -> object:
    """The configuration's number of layers, before transformers builds lists of that length."""
    if checkpoint.gguf is not None:
        return checkpoint.gguf.num_layers
    settings = text_settings(checkpoint.settings) if checkpoint.is_text_tower else checkpoint.settings
    family = FAMILIES.get(str(settings.get("model_type")))
    lists = () if family is None else family.layer_lists
    listed = (len(settings[key]) for key in lists if isinstance(settings.get(key), list | str))
    return next(listed, next((settings[key] for key in _LAYER_COUNTS if key in settings), None))


def _is_tied(settings: Mapping[str, Any], tensors: Iterable[str]) -> bool:
    """Whether a text tower's embedding is its output head: as config.json says, else if the files have no head.

    Args:
        settings: The content of config.json.
        tensors: The language model's tensors, by their names in transformers.

    Trade-off: transformers has a default for each kind of checkpoint, and these differ from what the files hold.
    """
    key = "tie_word_embeddings"
    for part in (settings, text_settings(settings)):
        if isinstance(part.get(key), bool):
            return bool(part[key])
    return HEAD not in map(canonical, tensors)


def _has_tokenizer(checkpoint: Checkpoint) -> bool:
    return checkpoint.gguf_file is not None or next(checkpoint.folder.glob("tokenizer*"), None) is not None


def _translate_rope(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """Give transformers 4 the rotary settings that 5 knows; it would silently use defaults."""
    if TRANSFORMERS_MAJOR >= 5:  # noqa: PLR2004  (a version)
        return
    if checkpoint.gguf is not None:
        parameters = getattr(config, "rope_parameters", None)
    else:
        stored = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
        parameters = stored.get("rope_parameters")
    if not isinstance(parameters, dict):
        return
    scaling = dict(parameters)
    if "rope_theta" in parameters:
        config.rope_theta = scaling.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config.partial_rotary_factor = scaling.pop("partial_rotary_factor")
        config.rotary_pct = config.partial_rotary_factor  # GPT-NeoX's name of it
    if scaling.get("rope_type", "default") != "default":
        config.rope_scaling = scaling
    original = parameters.get("original_max_position_embeddings")
    if original is not None and scaling.get("rope_type") == "longrope":
        config.original_max_position_embeddings = original
