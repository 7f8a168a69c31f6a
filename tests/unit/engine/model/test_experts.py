"""Experts: who computes which token, what the router decides, and that every part of both counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.devices.shape_sizes import padded_rows
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.description import UnsupportedSettingError
from helix_jobs.engine.model.expert_description import RouterDescription
from helix_jobs.engine.model.experts import Experts, group_by_expert, most_rows
from helix_jobs.engine.model.families.sparse import router
from helix_jobs.engine.model.families.sparse_registry import SPARSE_FAMILIES
from helix_jobs.engine.model.feed_forward import PlainFeedForward
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.router import Router, choose
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.router_linear import RouterLinear
from tests.unit.engine.model.family_case import Case, error, prompts
from tests.unit.engine.model.family_cases import PLAIN_CASES
from tests.unit.engine.tiny_models import copy_of, decoder_logits, reference_logits
from tests.unit.engine.weights.opened_linear import held_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.decoder import Decoder

HIDDEN, NUM_EXPERTS = 4, 5
SPARSE = {family.model_type for family in SPARSE_FAMILIES}
SPARSE_CASES = [case for case in PLAIN_CASES if case.architecture in SPARSE]


@given(st.data())
def test_every_expert_of_every_token_has_a_row_of_its_own(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, num_experts))
    order = st.permutations(range(num_experts)).map(lambda experts: experts[:top_k])
    choice = np.asarray(data.draw(st.lists(order, min_size=1, max_size=40)), dtype=np.int64)
    groups = group_by_expert(choice, num_experts)
    owners = np.repeat(groups.experts, groups.counts)
    assert len(set(groups.places.tolist())) == choice.size
    places = groups.places.reshape(top_k, -1).T
    assert (owners[places] == choice).all()
    assert (groups.tokens[places] == np.arange(len(choice))[:, None]).all()
    assert set(groups.experts) == set(choice.reshape(-1).tolist())
    assert groups.counts == [padded_rows(int((choice == expert).sum())) for expert in groups.experts]
    assert sum(groups.counts) <= most_rows(choice.size, num_experts)
    # Padding repeats a token of the group.
    for expert, tokens in zip(groups.experts, np.split(groups.tokens, np.cumsum(groups.counts)[:-1]), strict=True):
        assert set(tokens.tolist()) == set(np.flatnonzero((choice == expert).any(axis=1)).tolist())


def test_padding_is_bounded_in_groups_of_any_size() -> None:
    assert all(padded_rows(count) <= most_rows(count, 1) for count in range(1, 5000))


class Unused(PlainFeedForward):
    """An expert that no token has chosen."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"computed {len(hidden)} rows")


def some_experts(used: set[int], top_k: int) -> Experts:
    """Experts of which tokens choose only those in ``used``; expert ``i`` multiplies by ``i + 1``."""
    chosen = torch.full((NUM_EXPERTS,), -100.0).index_fill(0, torch.tensor(sorted(used)), 0.0)
    identity = torch.eye(HIDDEN)
    rule = RouterDescription(weight="", top_k=top_k, score="selected")
    return Experts(
        Router(RouterLinear(torch.zeros(NUM_EXPERTS, HIDDEN), chosen), None, rule, torch.float32),
        tuple(
            (PlainFeedForward if index in used else Unused)(
                DenseLinear(identity * (index + 1), None), DenseLinear(identity, None), torch.nn.Identity()
            )
            for index in range(NUM_EXPERTS)
        ),
    )


def test_experts_that_no_token_chooses_are_not_touched() -> None:
    hidden = torch.randn(7, HIDDEN)
    assert torch.allclose(some_experts({1, 3}, 2)(hidden), 3 * hidden)  # the mean of 2 and 4
    assert torch.allclose(some_experts({4}, 1).add_to(hidden, hidden), 6 * hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_computes_a_row_alike_in_any_company(dtype: torch.dtype) -> None:
    linear = RouterLinear(torch.randn(48, 96).to(dtype), torch.randn(48).to(dtype))
    hidden = torch.randn(50, 96).to(dtype)
    whole = linear(hidden)
    for start, end in ((0, 1), (3, 5), (7, 24), (1, 50), (49, 50)):
        assert torch.equal(linear(hidden[start:end]), whole[start:end])


def test_groups_bound_the_choice() -> None:
    logits = torch.tensor([[5.0, -9.0, -9.0, 1.0, 2.0, 2.0]])
    rule = RouterDescription(weight="", top_k=2, score="sigmoid", num_groups=2, kept_groups=1)
    # Two good experts beat one that is better: a group scores the sum of its two best.
    assert set(choose(logits, None, rule)[0][0].tolist()) == {4, 5}
    assert 0 in choose(logits, None, replace(rule, num_groups=1))[0][0]
    # Unless a group scores what its best expert scores.
    assert 0 in choose(logits, None, replace(rule, scored_in_group=1))[0][0]


def test_a_correction_changes_the_choice_and_not_the_weights() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    rule = RouterDescription(weight="", top_k=1, is_normalised=False)
    experts, weights = choose(logits, torch.tensor([0.0, 0.0, 9.0]), rule)
    assert experts.tolist() == [[2]]
    assert torch.equal(weights, logits.softmax(dim=-1)[:, 2:])


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"num_experts": 4, "top_k": 5}, "chooses 5 of 4 experts"),
        ({"num_experts": 0, "top_k": 1}, "impossible numbers of experts"),
        ({"num_experts": 6, "top_k": 2.0}, "impossible numbers of experts"),
        ({"num_experts": 6, "top_k": 2, "num_groups": 4}, "impossible groups"),
        ({"num_experts": 6, "top_k": 2, "num_groups": 2, "kept_groups": 3}, "impossible groups"),
        ({"num_experts": 4, "top_k": 1, "num_groups": 4}, "impossible groups"),
        ({"num_experts": 6, "top_k": 4, "num_groups": 2}, "chooses 4 of 3 experts"),
    ],
)
def test_numbers_that_no_token_can_choose_by_are_refused(numbers: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedSettingError, match=reason):
        router(**numbers)


def with_experts(decoder: Decoder, change: Callable[[Experts], Experts]) -> Decoder:
    layers = (
        replace(layer, feed_forward=change(layer.feed_forward)) if isinstance(layer.feed_forward, Experts) else layer
        for layer in decoder.layers
    )
    return replace(decoder, layers=tuple(layers))


def with_rule(**changes: Any) -> Callable[[Experts], Experts]:
    return lambda experts: replace(
        experts, router=replace(experts.router, rule=replace(experts.router.rule, **changes))
    )


def without_switch(experts: Experts) -> Experts:
    shared: Any = experts.shared
    return replace(experts, shared=shared.inner)


def without_correction(experts: Experts) -> Experts:
    return replace(experts, router=replace(experts.router, correction=None))


def without_router_bias(experts: Experts) -> Experts:
    linear: Any = experts.router.linear
    return replace(experts, router=replace(experts.router, linear=RouterLinear(held_weight(linear))))


@pytest.mark.thorough(fast=18)
@pytest.mark.parametrize(
    ("family", "change"),
    [
        *((case.architecture, with_rule(top_k=1)) for case in SPARSE_CASES),
        ("mixtral", with_rule(is_normalised=False)),
        ("qwen3_moe", with_rule(is_normalised=True)),
        ("glm4_moe", with_rule(score="softmax")),
        ("deepseek_v2", with_rule(is_normalised=True)),
        ("gpt_oss", with_rule(score="softmax", is_normalised=False)),
        *(
            (family, lambda experts: replace(experts, shared=None))
            for family in (
                *("qwen2_moe", "granitemoeshared", "glm4_moe", "dots1", "ernie4_5_moe", "hunyuan_v1_moe"),
                *("deepseek_v2", "deepseek_v3", "glm4_moe_lite"),
            )
        ),
        ("qwen2_moe", without_switch),
        *(
            (family, without_correction)
            for family in ("glm4_moe", "dots1", "ernie4_5_moe", "minimax_m2", "deepseek_v3", "glm4_moe_lite")
        ),
        ("gpt_oss", without_router_bias),
    ],
)
def test_a_part_that_changes_nothing_would_test_nothing(family: str, change: Callable[[Experts], Experts]) -> None:
    decoder = build_decoder(copy_of(Case(family).model()))
    assert error(decoder_logits(with_experts(decoder, change)), decoder_logits(decoder)) > 1e-3


def test_sinks_count() -> None:
    decoder = build_decoder(copy_of(Case("gpt_oss").model()))
    spec = decoder.attention.spec
    without = replace(spec, layers=tuple(replace(layer, sinks=None) for layer in spec.layers))
    changed = replace(decoder, attention=DenseAttention(without))
    assert error(decoder_logits(changed), decoder_logits(decoder)) > 1e-3


def row_errors(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (got.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)


@pytest.mark.thorough(fast=9)
@pytest.mark.parametrize("case", SPARSE_CASES, ids=str)
def test_rounded_models_are_close_where_they_choose_the_same_experts(case: Case) -> None:
    """Where two experts score almost alike, rounding may choose the other one; most positions are none of these."""
    model, prompt = case.model(), prompts()[3]
    expected = reference_logits(model, prompt)
    quantised = quantize(build_decoder(copy_of(model)))
    quantised.pack()
    assert 0 < float(row_errors(decoder_logits(quantised, prompt), expected).median()) < 0.25
    rounded = copy_of(model, torch.bfloat16)
    truth = reference_logits(copy_of(rounded), prompt)
    theirs = row_errors(reference_logits(rounded, prompt), truth)
    decoder = build_decoder(rounded)
    decoder.pack()
    ours = row_errors(decoder_logits(decoder, prompt), truth)
    assert 0 < float(ours.median()) < 0.1
    assert float(ours.median()) < 1.5 * float(theirs.median())
