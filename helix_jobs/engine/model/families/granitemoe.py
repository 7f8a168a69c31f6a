"""Granite 3 with experts: Llama with experts, and factors of embeddings, scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import FeedForwardDescription, LayerDescription, ModelDescription

_BLOCK = "block_sparse_moe"
# The names in checkpoints, and those of transformers 5's modules.
RENAMES = (
    (f".{_BLOCK}.input_linear.weight", f".{_BLOCK}.experts.gate_up_proj"),
    (f".{_BLOCK}.output_linear.weight", f".{_BLOCK}.experts.down_proj"),
    (f".{_BLOCK}.router.layer.", f".{_BLOCK}.router."),
)


def describe(config: PretrainedConfig, shared: FeedForwardDescription | None = None) -> ModelDescription:
    """Granite's description; ``shared`` is a shared expert."""

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention=replace(layer.attention, scaling=float(config.attention_multiplier)),
            residual_scale=float(config.residual_multiplier),
        )

    choice = router(
        config.num_local_experts,
        config.num_experts_per_tok,
        f"{_BLOCK}.router.weight",
        score="selected",
        rounds_weights=True,
    )
    made = experts(config.hidden_act, choice, _BLOCK, shared)
    return replace(
        with_experts(llama.describe(config).with_layers(changed), lambda _: made, every_layer),
        embedding_scale=float(config.embedding_multiplier),
        logit_scale=1 / config.logits_scaling,
    )


FAMILY = Family("granitemoe", "GraniteMoeForCausalLM", describe, renames=RENAMES)
