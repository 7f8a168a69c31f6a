"""Gemma (the first generation): Llama with scaled embeddings and norms that store their weight minus one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config, rms_norm(config.rms_norm_eps, offset=1.0))
    # The first checkpoints say ``gelu`` and mean the tanh form; transformers 5 corrects that, 4 does not. No PyTorch
    # module reads the ``hidden_activation`` beside it.
    activation = "gelu_pytorch_tanh" if config.hidden_act == "gelu" else str(config.hidden_act)
    model = model.with_feed_forward(lambda _, own: replace(own, activation=activation))
    return replace(model, embedding_scale=config.hidden_size**0.5, rounds_embedding_scale=True)


FAMILY = Family("gemma", "GemmaForCausalLM", describe)
