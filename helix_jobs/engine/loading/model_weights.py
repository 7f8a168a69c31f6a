"""The weights of an opened model, read onto the CPU. A stored output head that contradicts config.json is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from helix_jobs.engine.devices.devices import is_out_of_memory
from helix_jobs.engine.loading.generation_settings import read_generation
from helix_jobs.engine.loading.gguf_weights import read_gguf_weights
from helix_jobs.engine.loading.mxfp4_weights import read_mxfp4_weights
from helix_jobs.engine.loading.pretrained import pretrained_arguments
from helix_jobs.engine.loading.quantized_weights import read_quantized_weights
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, is_computed, is_of_layer_from
from helix_jobs.engine.loading.tower_weights import read_tower_weights
from helix_jobs.engine.model.architecture import stores_mxfp4
from helix_jobs.engine.model.families.registry import FAMILIES, describe
from helix_jobs.engine.model.model_words import in_words
from helix_jobs.engine.model.text_tower import KEY_MAPPING, TEXT_TOWERS, is_image_part, text_tensors
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.errors import HelixError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.checkpoint import Checkpoint
    from helix_jobs.engine.loading.model_source import ModelSource

logger = logging.getLogger(__name__)

_NOT_READ: Final = ("missing_keys", "unexpected_keys")


def read_weights(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Read the weights onto the CPU.

    Args:
        source: The model.
        dtype: What safetensors are converted to. The weights of a GGUF file and of a quantised checkpoint stay as they
            are stored, see ``read_gguf_weights``, ``read_quantized_weights`` and ``read_mxfp4_weights``.

    Raises:
        ModelError: The files are damaged, or weights are missing (transformers alone would make them up).
    """
    checkpoint, difference = source.checkpoint, FAMILIES[source.config.model_type].difference
    if difference is not None and (said := difference(source.config)) is not None:
        logger.warning("model %s: answers may differ from transformers': %s", checkpoint.name, said)
    try:
        with panics_as_errors():
            if checkpoint.gguf is not None:
                return read_gguf_weights(checkpoint.name, source.config, checkpoint.gguf, dtype)
            generation = read_generation(checkpoint.name, checkpoint.folder)
            if source.config.tie_word_embeddings:
                _check_tied_head(checkpoint, f"{describe(source.config).embedding}.weight")
            model = _read_directory(source, dtype)
    except HelixError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if is_out_of_memory(error):  # not the file's fault
            raise
        raise ModelError(
            f"model {checkpoint.name}: the weights cannot be read ({in_words(error)}); fetch the model again"
        ) from error
    if generation is not None:
        model.generation_config = generation
    return model


def _read_directory(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    checkpoint = source.checkpoint
    if checkpoint.quantized is not None:
        if checkpoint.quantized.rounds_activations:
            logger.warning(
                "model %s: %s also quantises activations, which Helix does not: its answers are those of the weights "
                "alone", checkpoint.name, checkpoint.quantized.name,
            )  # fmt: skip
        return read_quantized_weights(source.config, checkpoint, dtype)
    if stores_mxfp4(checkpoint.settings):
        return read_mxfp4_weights(checkpoint, source.config)
    if _may_flip_experts(checkpoint):
        return read_tower_weights(checkpoint, source.config)
    return _read_safetensors(source, dtype)


def _may_flip_experts(checkpoint: Checkpoint) -> bool:
    """Whether stacks of experts may be stored with rows and columns exchanged; experts by themselves never are."""
    tower = TEXT_TOWERS.get(str(checkpoint.settings.get("model_type")))
    return (
        tower is not None
        and tower.may_flip_experts
        and not any(stored.is_merged for stored in checkpoint.tensors.values())
    )


def _read_safetensors(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    checkpoint = source.checkpoint
    with pretrained_arguments(checkpoint.folder) as (folder, arguments):
        # With output_loading_info this returns a pair, which transformers' annotations do not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=source.config,
            dtype=dtype,
            attn_implementation="eager",  # never called; the others would check this machine
            output_loading_info=True,
            **arguments,
            use_safetensors=True,
            **({"key_mapping": KEY_MAPPING} if checkpoint.is_text_tower else {}),
        )
    model: PreTrainedModel = loaded[0]

    def is_wanted(tensor: str) -> bool:
        return not _is_unneeded(tensor, source.config) and not (checkpoint.is_text_tower and is_image_part(tensor))

    # The layout was right, so these are tensors that transformers' own reader cannot map.
    failed = {kind: sorted(filter(is_wanted, loaded[1][kind])) for kind in _NOT_READ}
    for kind, keys in failed.items():
        if keys:
            raise ModelError(
                f"model {checkpoint.name}: transformers {transformers.__version__} does not read all of its weights "
                f"({kind.replace('_', ' ')}: {len(keys)}, first {keys[0]}); use another form of the model"
            )
    return model


def _is_unneeded(tensor: str, config: PretrainedConfig) -> bool:
    """Whether nobody computes with a tensor that checkpoints of this family may hold."""
    family = FAMILIES[config.model_type]
    if is_computed(tensor) or (family.is_unread is not None and family.is_unread(config, canonical(tensor))):
        return True
    has_further = family.further_layers is not None
    return has_further and is_of_layer_from(config.num_hidden_layers, tensor)


def _check_tied_head(checkpoint: Checkpoint, embedding: str) -> None:
    """Refuse a stored output head that differs from the embedding, if the configuration says that they are one.

    Args:
        checkpoint: The model's files.
        embedding: The embedding's canonical name.

    Raises:
        ModelError: The head differs from the embedding, or one of the two is quantised and cannot be compared.
            Releases of transformers disagree on which of the two then counts.
    """
    name = checkpoint.name
    if not any(canonical(tensor) == HEAD for tensor in checkpoint.tensors):
        return
    quantized = set(map(canonical, checkpoint.matrices))
    if HEAD in quantized:
        raise ModelError(
            f"model {name} has a quantised output head ({HEAD}), but config.json says that the "
            'embedding is the head; if the head belongs to the model, set "tie_word_embeddings": false there'
        )
    if embedding in quantized:
        raise ModelError(
            f"model {name} has an output head ({HEAD}) beside a quantised embedding, but config.json "
            'says that these are one; if the head belongs to the model, set "tie_word_embeddings": false there'
        )
    stored: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as opened:
            stored_names = {tensor: tensor for tensor in opened.keys()}  # noqa: SIM118  (it is no mapping)
            own = text_tensors(stored_names) if checkpoint.is_text_tower else stored_names
            names = {tensor: canonical(name) for name, tensor in own.items()}
            stored.update(
                {short: opened.get_tensor(tensor) for tensor, short in names.items() if short in (HEAD, embedding)}
            )
    head = stored.pop(HEAD)
    if not all(torch.equal(head, other) for other in stored.values()):
        raise ModelError(
            f"model {name} has an output head ({HEAD}) that differs from its embedding, but config.json "
            'says that the embedding is the head; if it belongs to the model, set "tie_word_embeddings": false there'
        )
