from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.cache_sections import CacheSections, KeptLayer, first_seen, num_pools, pools_of

FULL = None
GEMMA_3_1B = [FULL if layer % 6 == 5 else 512 for layer in range(26)]
GEMMA_3_27B = [FULL if layer % 6 == 5 else 1024 for layer in range(62)]
GPT_OSS = [128, FULL] * 12


def sections_of(target, draft=(), context=32768):
    layers = [[KeptLayer(window, size) for window in windows] for windows, size in ((target, 8), (draft, 2))]
    return CacheSections.of(*layers, context=context)


@pytest.mark.parametrize(
    ("target", "windows", "num_layers"),
    [
        ([FULL] * 30, [FULL], 30),
        ([4096] * 32, [4096], 32),
        ([40000, FULL], [FULL], 2),
        (GPT_OSS, [FULL, 128], 12),
        (GEMMA_3_1B, [FULL, *[512] * 6], 4),
        (GEMMA_3_27B, [FULL, *[1024] * 6], 10),
        ([FULL, 8, 16, 8], [FULL, 16, 8, 8], 1),
    ],
    ids=["full", "windows alone", "window as long as the context", "gpt-oss", "gemma 3 1b", "gemma 3 27b", "three"],
)
def test_layers_of_one_window_are_divided_into_sections_of_about_one_size(target, windows, num_layers):
    sections = sections_of(target)
    assert list(sections.windows) == windows
    assert num_pools(sections.target) == num_layers
    assert sections.frees == (set(windows) != {None})


@pytest.mark.parametrize(
    ("target", "draft", "windows"),
    [
        (GPT_OSS, GPT_OSS, [FULL, 128]),
        (GPT_OSS, [100, 128] * 4, [FULL, 128]),
        (GPT_OSS, [FULL] * 8, [FULL, 128]),
        ([4096] * 8, [FULL] * 2, [FULL]),
        ([FULL, 16], [FULL, 32], [FULL, 16]),
        ([16] * 4, [32] * 2, [32]),
    ],
)
def test_a_draft_s_layer_goes_where_at_least_as_much_is_kept_as_it_sees(target, draft, windows):
    sections = sections_of(target, draft)
    assert list(dict.fromkeys(sections.windows)) == windows
    for layers, own in ((target, sections.target), (draft, sections.draft)):
        for seen, section in zip(layers, own, strict=True):
            kept = sections.windows[section]
            assert kept is None or (seen is not None and seen <= kept)


@given(
    windows=st.lists(st.sampled_from([None, 3, 8]), min_size=1, max_size=12),
    num_blocks=st.integers(1, 60),
    step_tokens=st.integers(1, 20),
    block_size=st.integers(1, 5),
)
def test_the_longest_sequence_just_fits(windows, num_blocks, step_tokens, block_size):
    sections = sections_of(windows)
    capacity = sections.capacity(num_blocks, step_tokens, block_size)
    held = sections.most_blocks(min(capacity, 10**6), step_tokens, block_size)
    assert held <= num_blocks
    if capacity < sys.maxsize:
        assert sections.most_blocks(capacity + 1, step_tokens, block_size) > num_blocks
    # Each layer has a pool, which no other layer of its section has.
    places = list(zip(sections.target, pools_of(sections.target), strict=True))
    assert len(set(places)) == len(windows)
    assert max(pool for _, pool in places) + 1 == num_pools(sections.target)


def test_a_token_sees_itself_and_those_right_before_it():
    assert [first_seen(4, position, 2) for position in range(8)] == [0, 0, 0, 0, 0, 1, 1, 2]
    assert first_seen(1, 6, 2) == 3
    assert first_seen(None, 100, 2) == 0
