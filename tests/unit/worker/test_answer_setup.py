"""Whose answers a worker takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.worker.answer_setup import answer_setup

if TYPE_CHECKING:
    from helix_jobs.storage.answer_cache import AnswerSetup

SETUP: dict[str, Any] = {
    "helix": "1.0",
    "engine": "helix",
    "target": {"name": "demo", "digest": "aa"},
    "draft": {"name": "lookup"},
    "adapters": {"law": "bb"},
    "dtype": "float32",
    "device": "cpu",
    "kernels": "compiled",
    "speculation_depth": "auto",
    "max_model_len": 2048,
}


def scope(setting: str = "on", **changes: Any) -> AnswerSetup:
    found = answer_setup({**SETUP, **changes}, setting)
    assert found is not None
    return found


def takes(taker: AnswerSetup, other: AnswerSetup) -> bool:
    return taker.low <= other.key <= taker.high


def test_the_same_setup_takes_its_own_answers_under_any_name_and_beside_any_batch() -> None:
    own = scope()
    assert takes(own, own)
    assert takes(own, scope(target={"name": "a copy", "digest": "aa"}, max_batch_size=7))
    assert takes(own, scope(draft=None)), "drafts change no answer"


@pytest.mark.parametrize(
    "change",
    [{"dtype": "int8"}, {"kernels": "torch"}, {"helix": "1.1"}, {"device": "cuda"}, {"max_model_len": 64}],
)
def test_another_way_to_compute_is_another_setup_unless_told(change: dict[str, Any]) -> None:
    assert not takes(scope(), scope(**change))
    assert takes(scope("model"), scope(**change))


@pytest.mark.parametrize("change", [{"target": {"name": "demo", "digest": "cc"}}, {"adapters": {"law": "dd"}}])
def test_another_model_is_another_setup_in_any_case(change: dict[str, Any]) -> None:
    assert not takes(scope("model"), scope(**change))


def test_with_a_fixed_depth_the_draft_counts() -> None:
    assert not takes(scope(speculation_depth=4), scope(speculation_depth=4, draft=None))


def test_a_model_without_a_digest_shares_nothing() -> None:
    assert answer_setup({**SETUP, "target": {"name": "demo"}}, "model") is None
    assert answer_setup({**SETUP, "engine": "endpoint", "target": {"name": "demo"}}, "on") is None
    assert answer_setup(SETUP, "off") is None
    assert answer_setup({**SETUP, "engine": "fake", "target": {"name": "fake-target"}}, "on") is not None
