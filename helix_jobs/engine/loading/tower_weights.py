"""The language model of a checkpoint that may store its experts with rows and columns exchanged, read tensor by tensor.

transformers puts them upright when it loads the whole model (Qwen3-VL with experts). When it loads the language model
alone it does not, so this module does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open

from helix_jobs.engine.loading.bare_model import BareModel
from helix_jobs.engine.loading.tensor_names import canonical
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
    model = BareModel(checkpoint.name, config)
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as opened:
            stored = {tensor: tensor for tensor in opened.keys()}  # noqa: SIM118  (it is no mapping)
            for tensor, theirs in text_tensors(stored).items():
                if model.needs(name := canonical(tensor)):
                    value = opened.get_tensor(theirs)
                    model.put(name, value.transpose(1, 2) if checkpoint.tensors[tensor].is_flipped else value)
    return model.whole()
