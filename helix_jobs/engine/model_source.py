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
            check_architecture(name, config)
            tokenizer = read_tokenizer(folder, arguments)
    except HelixError:
        raise
    except Exception as error:  # its readers raise anything over a damaged file
        raise ModelNotFoundError(
            f"model {name}: its configuration or tokenizer cannot be read from {checkpoint.folder} "
            f"({type(error).__name__}: {error}); fetch the model again, tokenizer files included"
        ) from error
    if checkpoint.gguf_file is None:
        _translate_rope(config, checkpoint.folder)
    return ModelSource(checkpoint, config, tokenizer)


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
                attn_implementation="eager",  # the model runner puts its own in place
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
    return model


def _translate_rope(config: PretrainedConfig, folder: Path) -> None:
    """Give transformers 4 the rotary settings of a config.json that 5 wrote; it would silently take its defaults."""
    if TRANSFORMERS_MAJOR >= 5:  # noqa: PLR2004  (a version)
        return
    parameters = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("rope_parameters")
    if isinstance(parameters, dict):
        config.rope_theta = parameters.get("rope_theta", config.rope_theta)
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config.rope_scaling = scaling
