from __future__ import annotations

from dataclasses import replace

import pytest

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.worker.banner import WorkerBanner

INFO = replace(
    FakeEngine().info, target_model="demo", draft_model="lookup + demo (int8)", dtype="bfloat16", kernels="compiled"
)


def lines_of(**changes):
    banner = WorkerBanner(worker_id="w", engine=replace(INFO, **changes), broker="embedded", database="sqlite")
    return dict(banner.lines())


def test_it_says_what_is_used():
    lines = lines_of()
    assert (lines["target"], lines["dtype"], lines["kernels"]) == ("demo", "bfloat16", "compiled")
    assert (lines["draft"], lines["depth"]) == ("lookup + int8 copy", "auto (chosen each step by what pays)")


def test_it_says_what_a_chat_may_ask_for():
    assert lines_of(chat="messages, thinking, no tools")["chat"] == "messages, thinking, no tools"


def test_an_int8_target_is_named_as_such():
    assert lines_of(dtype="int8")["dtype"] == "int8 (the target itself is quantised; results say int8)"


def test_a_cache_of_8_bits_is_named_as_such():
    assert "int8" not in lines_of()["KV cache"]
    said = lines_of(kv_cache_dtype="int8")["KV cache"]
    assert said.endswith("tokens); int8 with a scale for each token's head (results say bfloat16, KV int8)")


@pytest.mark.parametrize(("depth", "said"), [(0, "0 (no speculation)"), (4, "4 (fixed)")])
def test_a_fixed_depth_is_told_from_none(depth, said):
    assert lines_of(speculation_depth=depth)["depth"] == said


@pytest.mark.parametrize(
    ("draft", "said"), [(None, "none"), ("lookup", "lookup"), ("lookup + small", "lookup + small"), ("demo", "demo")]
)
def test_drafts_by_their_names(draft, said):
    assert lines_of(draft_model=draft)["draft"] == said


def test_a_target_that_overflows_float16_is_named_as_such():
    said = lines_of(dtype="float32", overflows_float16=True)["dtype"]
    assert said == "float32 (the target does not fit float16's range; this takes twice the memory)"


def test_the_cache_has_the_size_that_its_setting_asked_for():
    """HELIX_KV_CACHE_MB counts in millions of bytes, and so does what is said of the cache."""
    info = replace(FakeEngine().info, kv_cache_bytes=250 * 1_000_000, num_blocks=10)
    lines = dict(WorkerBanner(worker_id="w", engine=info, broker="b", database="d").lines())
    assert lines["KV cache"].startswith("250 MB (10 blocks")
