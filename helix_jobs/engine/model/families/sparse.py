"""What families with experts share: checked numbers, and the description of experts as transformers 5 stacks them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.model.description import FeedForwardDescription, UnsupportedSettingError
from helix_jobs.engine.model.expert_description import ExpertsDescription, RouterDescription
from helix_jobs.engine.model.families.settings import check_setting, projection

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def router(num_experts: int, top_k: int, weight: str = "mlp.gate.weight", **rule: Any) -> RouterDescription:  # noqa: ANN401  (the fields of a RouterDescription)
    """A router.

    Args:
        num_experts: Experts of a layer.
        top_k: Experts of a token.
        weight: See ``RouterDescription``.
        rule: The other fields of a ``RouterDescription``.

    Raises:
        UnsupportedSettingError: No token can choose so many experts, or experts do not fall into so many groups.
    """
    made = RouterDescription(weight=weight, top_k=top_k, **rule)
    counts = {"experts": num_experts, "experts of a token": top_k, "groups": made.num_groups, "kept": made.kept_groups}
    if any(type(count) is not int or count < 1 for count in counts.values()):
        raise UnsupportedSettingError(f"has impossible numbers of experts, {counts}")
    group_size = num_experts // made.num_groups
    is_too_small = made.num_groups > 1 and group_size < made.scored_in_group
    if num_experts % made.num_groups or made.kept_groups > made.num_groups or is_too_small:
        raise UnsupportedSettingError(f"has impossible groups of experts, {counts}")
    if top_k > made.kept_groups * group_size:
        raise UnsupportedSettingError(f"chooses {top_k} of {made.kept_groups * group_size} experts")
    return made


def experts(
    activation: str, choice: RouterDescription, block: str = "mlp", shared: FeedForwardDescription | None = None
) -> ExpertsDescription:
    """Experts in the module ``block``."""
    return ExpertsDescription(
        inner=f"{block}.experts.gate_up_proj",
        outer=f"{block}.experts.down_proj",
        activation=str(activation),
        router=choice,
        shared=shared,
    )


def shared_expert(activation: str, module: str) -> FeedForwardDescription:
    """A shared expert: a gated feed-forward in this module."""
    return FeedForwardDescription(
        inner=projection(f"{module}.gate_proj", f"{module}.up_proj"),
        outer=projection(f"{module}.down_proj"),
        activation=str(activation),
    )


def first_sparse_layer(config: Any) -> int:  # noqa: ANN401  (the settings of several families)
    """The first layer that has experts.

    Raises:
        UnsupportedSettingError: No layer is named, or experts are in some of the layers behind it.
    """
    check_setting(config, "moe_layer_freq", 1)
    first = config.first_k_dense_replace
    if type(first) is not int:
        raise UnsupportedSettingError(f"has first_k_dense_replace {first!r:.40}, which must be a whole number")
    return first


def with_experts(
    model: ModelDescription, made: Callable[[int], ExpertsDescription], is_sparse: Callable[[int], bool]
) -> ModelDescription:
    """The model with experts, made by their layer's index, in the layers that have them."""

    def changed(index: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, experts=made(index)) if is_sparse(index) else layer

    return model.with_layers(changed)


def has_experts_by_layer(config: Any) -> Callable[[int], bool]:  # noqa: ANN401  (the settings of several families)
    """Whether a layer has experts, of a configuration that says so of each.

    Raises:
        UnsupportedSettingError: It does not say so of each.
    """
    kinds = config.mlp_layer_types
    if len(kinds) != config.num_hidden_layers or not {*kinds} <= {"dense", "sparse"}:
        raise UnsupportedSettingError("has mlp_layer_types that do not say of each layer whether it has experts")
    return lambda index: bool(kinds[index] == "sparse")


def every_layer(_index: int) -> bool:
    """Experts in every layer."""
    return True


def deepseek_router(config: Any, block: str = "mlp") -> RouterDescription:  # noqa: ANN401  (the settings of several families)
    """DeepSeek-V3's router (arXiv:2412.19437): sigmoids, groups, and a correction for the choice."""
    return router(
        config.n_routed_experts,
        config.num_experts_per_tok,
        f"{block}.gate.weight",
        score="sigmoid",
        correction=f"{block}.gate.e_score_correction_bias",
        num_groups=config.n_group,
        kept_groups=config.topk_group,
        is_normalised=bool(config.norm_topk_prob),
        sum_offset=1e-20,
        scale=float(config.routed_scaling_factor),
        is_exact=True,
    )
