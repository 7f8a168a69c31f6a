"""ExpertsDescription: a feed-forward of many experts, of which each token uses a few; and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import FeedForwardDescription, NormDescription, ProjectionDescription

RouterScore = Literal["softmax", "sigmoid", "selected", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterDescription:
    """How a token chooses its experts, and how much each of them counts.

    A token's logits are ``weight @ token + bias``. Its ``top_k`` experts are those of the highest scores.

    Attributes:
        weight: The parameter ``[num_experts, hidden_size]``.
        top_k: Experts of each token.
        score: ``softmax`` of all logits, ``sigmoid`` of each logit, or ``selected``: the softmax of the chosen logits
            alone (GPT-OSS); ``mixed``: of each expert in turn, the softmax of the logits near it (SparseMixer, Liu et
            al. 2024, arXiv:2409.12136).
        jitter: How near logits are that count beside a chosen one, where experts are ``mixed``: twice this, relatively.
        chooses_by_logits: Whether the choice compares logits and not scores (Kolibri).
        bias: The parameter ``[num_experts]``, or None.
        correction: A tensor of ``num_experts`` numbers that is added to the scores for the choice only, or None
            (Wang et al. 2024, arXiv:2408.15664).
        num_groups: Groups of equal size in which experts stand.
        scored_in_group: Best experts of a group whose sum is its score (DeepSeek-V3: two; DeepSeek-V2: one).
        kept_groups: Groups in which a token may choose (DeepSeek-V3, arXiv:2412.19437).
        is_normalised: Whether the weights of the chosen experts are divided by their sum.
        sum_offset: Is added to that sum.
        least_sum: Least value of that sum.
        scale: Factor of the weights.
        is_exact: Whether logits are computed in float32, whatever the model's dtype.
        rounds_weights: Whether weights are rounded to the model's dtype.
        norm: The parameter ``[hidden_size]`` that is the weight of an RMS norm of what the router reads, or None
            (Gemma 4).
        norm_scale: Factor of that weight.
        norm_eps: Added to the norm's mean square.
        expert_scale: The parameter ``[num_experts]``, a factor of each expert's weight; or None (Gemma 4).
    """

    weight: str
    top_k: int
    score: RouterScore = "softmax"
    jitter: float = 0.0
    chooses_by_logits: bool = False
    bias: str | None = None
    correction: str | None = None
    num_groups: int = 1
    scored_in_group: int = 2
    kept_groups: int = 1
    is_normalised: bool = True
    sum_offset: float = 0.0
    least_sum: float = 0.0
    scale: float = 1.0
    is_exact: bool = False
    rounds_weights: bool = False
    norm: str | None = None
    norm_scale: float = 1.0
    norm_eps: float = 0.0
    expert_scale: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsDescription:
    """Experts, stacked: each is a feed-forward, most often a gated one.

    Attributes:
        inner: The parameter of gates and up projections, ``[num_experts, 2 * intermediate_size, hidden_size]``; of
            half as many rows where there are no gates.
        outer: The parameter back to the hidden size, ``[num_experts, hidden_size, intermediate_size]``.
        activation: A key of ``ACTIVATIONS``.
        router: Chooses each token's experts.
        clamp: ``(alpha, limit)`` of ``ClampedSwiglu``, which then takes the place of ``activation``; or None.
        has_bias: Whether there are biases, in parameters of these names followed by ``_bias``.
        is_transposed: Whether each matrix is stored as ``[in_features, out_features]``.
        is_interleaved: Whether the rows of a gate and of an up projection alternate (GPT-OSS).
        up: The parameter of the up projections, if ``inner`` holds the gates alone; else None. All three parameters are
            then ``[num_experts * intermediate_size, hidden_size]``, one expert behind another (DBRX).
        is_gated: Whether the activation is applied to a gate.
        shared: A feed-forward that computes every token and is added, or None.
        shared_gate: A product of one output, whose sigmoid is the shared feed-forward's factor; or None (Qwen 2).
    """

    inner: str
    outer: str
    activation: str
    router: RouterDescription
    clamp: tuple[float, float] | None = None
    has_bias: bool = False
    is_transposed: bool = False
    is_interleaved: bool = False
    up: str | None = None
    is_gated: bool = True
    shared: FeedForwardDescription | None = None
    shared_gate: ProjectionDescription | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideDescription:
    """Norms of a layer whose experts stand beside its feed-forward; the fields are those of ``ExpertsBeside``."""

    dense_norm: NormDescription
    dense_out_norm: NormDescription
    experts_norm: NormDescription
    experts_out_norm: NormDescription
