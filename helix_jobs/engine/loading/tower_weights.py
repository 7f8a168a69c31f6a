"""The language model of a checkpoint whose experts are stored with rows and columns exchanged, read tensor by tensor.

transformers exchanges them when it loads the whole model (Qwen3-VL with experts), and not for the language model alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

from helix_jobs.engine.loading.bare_model import compute_frequencies, put, set_generation
from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, is_computed
from helix_jobs.engine.model.text_tower import text_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.checkpoint import Checkpoint


def read_tower_weights(checkpoint: Checkpoint, config: PretrainedConfig) -> PreTrainedModel:
    """Read a checkpoint whose tensors have passed ``check_layout``.

    Returns:
        The model that the configuration describes. Its weights are views of the mapped files, as they are stored.

    Raises:
        OSError, RuntimeError, safetensors.SafetensorError: A file cannot be read.
    """
    model = skeleton(checkpoint.name, config)
    base, head, embedding = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    compute_frequencies(base, config)
    has_head = False
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as opened:
            stored = {tensor: tensor for tensor in opened.keys()}  # noqa: SIM118  (it is no mapping)
            for tensor, theirs in text_tensors(stored).items():
                if is_computed(tensor):
                    continue
                name, value = canonical(tensor), opened.get_tensor(theirs)
                has_head = has_head or name == HEAD
                module_name, _, kind = name.rpartition(".")
                module = head if name == HEAD else base.get_submodule(module_name)
                put(module, kind, value.transpose(1, 2) if checkpoint.tensors[tensor].is_flipped else value)
    if not has_head:
        put(head, "weight", embedding.weight)
    set_generation(model, checkpoint.folder)
    read: PreTrainedModel = model
    return read
