"""ModelSource: a checkpoint whose configuration and tokenizer are read, and whose weights can be."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM

from helix_jobs.engine.architecture import check_architecture, check_model_type
from helix_jobs.engine.checkpoint import Checkpoint, find_checkpoint
from helix_jobs.engine.pretrained import TRANSFORMERS_MAJOR, pretrained_arguments, read_tokenizer, weight_arguments
from helix_jobs.errors import HelixError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Buffers that older releases stored with the weights.
_OBSOLETE = (".inv_freq", ".attn.bias", ".attention.bias", ".masked_bias")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Everything of a model but its weights."""

    checkpoint: Checkpoint
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase


def open_source(name: str, home: Path, on_progress: Callable[[str], None]) -> ModelSource:
    """Find a model and read its small parts.

    Raises:
        ModelNotFoundError: No such model, or it lacks its configuration or tokenizer.
        UnsupportedArchitectureError: The engine would not compute it exactly.
        ModelError: Its files are damaged.
    """
    checkpoint = find_checkpoint(name, home, on_progress)
    if checkpoint.gguf_file is None:
        check_model_type(name, checkpoint.folder)
    try:
        with pretrained_arguments(checkpoint.folder, checkpoint.gguf_file) as (folder, arguments):
            config = AutoConfig.from_pretrained(folder, **arguments)
            _complete(config, checkpoint)
            check_architecture(name, config)
            tokenizer = read_tokenizer(folder, arguments)
    except HelixError:
        raise
    except Exception as error:  # its readers raise anything over a damaged file
        if isinstance(error, ImportError) and _has_tokenizer(checkpoint):  # protobuf, for the tokenizers of some files
            missing = " ".join(str(error).split())
            raise ModelError(f"model {name} needs a Python package that is not installed: {missing}") from error
        raise ModelNotFoundError(
            f"model {name}: its configuration or tokenizer cannot be read from {checkpoint.folder} "
            f"({type(error).__name__}: {error}); fetch the model again, tokenizer files included"
        ) from error
    return ModelSource(checkpoint, config, tokenizer)


def _has_tokenizer(checkpoint: Checkpoint) -> bool:
    return checkpoint.gguf_file is not None or next(checkpoint.folder.glob("tokenizer*"), None) is not None


def read_weights(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Read the weights onto the CPU in ``dtype``.

    Raises:
        ModelError: The files are damaged, or weights are missing (transformers alone would make them up).
    """
    checkpoint = source.checkpoint
    name = checkpoint.name
    try:
        with pretrained_arguments(checkpoint.folder, checkpoint.gguf_file) as (folder, arguments):
            # A pair with output_loading_info, which transformers' annotations do not know.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=source.config,
                dtype=dtype,
                attn_implementation="eager",  # never called; the others would check what this machine has
                output_loading_info=True,
                **arguments,
                **weight_arguments(checkpoint.gguf_file),
            )
    except Exception as error:  # as above
        raise ModelError(
            f"model {name}: the weights cannot be read ({type(error).__name__}: {error}); fetch the model again"
        ) from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelError(f"model {name} lacks {len(missing)} weights (first {missing[0]}); fetch the model again")
    if unread := sorted(key for key in loaded[1]["unexpected_keys"] if not key.endswith(_OBSOLETE)):
        logger.warning("model %s: %d weights are of no layer of it (first %s); not used", name, len(unread), unread[0])
    if checkpoint.gguf is not None and checkpoint.gguf.rotary_factors is not None:
        rotary: Any = model.base_model.rotary_emb  # its class is the architecture's
        rotary.inv_freq.div_(checkpoint.gguf.rotary_factors)
    return model


def _complete(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """Put into a configuration what transformers' readers left out of it."""
    gguf = checkpoint.gguf
    if gguf is None:
        _translate_rope(config, checkpoint.folder)
        return
    if gguf.sliding_window is not None and config.model_type == "phi3":
        config.sliding_window = gguf.sliding_window
    if gguf.head_dim is not None and config.model_type == "qwen3":
        config.head_dim = gguf.head_dim
    if config.model_type == "gpt2":  # read, but under names that the model does not look at
        config.n_positions, config.n_inner = config.n_ctx, config.feed_forward_length


def _translate_rope(config: PretrainedConfig, folder: Path) -> None:
    """Give transformers 4 the rotary settings of a config.json that 5 wrote; it would silently take its defaults."""
    if TRANSFORMERS_MAJOR >= 5:  # noqa: PLR2004  (a version)
        return
    parameters = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("rope_parameters")
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
