from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH, MAX_OCCURRENCES, MIN_MATCH, NgramIndex
from helix_jobs.engine.speculation.drafters.output_corpus import END_OF_OUTPUT, OutputCorpus
from tests.unit.engine.speculation.naive_search import naive_find

texts = st.lists(st.integers(0, 2), max_size=60)


def indexed(text):
    index = NgramIndex(list(text))
    index.extend()
    return index


@given(texts, st.lists(st.integers(0, 2), min_size=MIN_MATCH, max_size=30))
def test_finds_what_a_naive_search_finds(text, context):
    assert indexed(text).find(context) == naive_find(text, context)


@given(st.lists(st.integers(0, 1), min_size=MIN_MATCH, max_size=60))
def test_the_end_of_a_text_matches_earlier_text_only(text):
    length, followers = indexed(text).find(text)
    assert (length, followers) == naive_find(text, text)
    assert len(text) not in followers


@given(st.lists(texts, max_size=8))
def test_growing_equals_building_at_once(parts):
    grown = NgramIndex([])
    for part in parts:
        grown.tokens.extend(part)
        grown.extend()
    whole = indexed(grown.tokens)
    assert (grown._latest, grown._previous) == (whole._latest, whole._previous)
    assert grown.num_indexed == max(0, len(grown.tokens) - MIN_MATCH)


@given(st.lists(st.tuples(texts, st.integers(0, 40)), max_size=8), st.lists(st.integers(0, 2), min_size=2, max_size=30))
def test_a_text_that_lost_its_beginning_is_found_in_as_if_it_never_had_it(steps, context):
    index = NgramIndex([])
    for part, num_dropped in steps:
        index.tokens.extend(part)
        index.extend()
        index.drop(num_dropped)
    assert index.find(context) == naive_find(index.tokens, context)
    distinct = {tuple(index.tokens[i : i + MIN_MATCH]) for i in range(len(index.tokens) - MIN_MATCH)}
    assert index.num_entries == len(distinct) + max(0, len(index.tokens) - MIN_MATCH)


def test_the_longest_match_may_reach_the_very_first_token():
    assert indexed([1, 2, 3, 4]).find([9, 1, 2, 3]) == (3, [3])


def test_a_full_match_that_begins_with_the_text_is_found():
    text = list(range(MAX_MATCH + 1))
    assert indexed(text).find(text[:MAX_MATCH]) == (MAX_MATCH, [MAX_MATCH])
    assert indexed(text[1:]).find(text[:MAX_MATCH]) == (MAX_MATCH - 1, [MAX_MATCH - 1])


def test_every_one_of_the_latest_full_matches_is_found():
    text = [4] * 20 + [5] + [4] * 30
    assert indexed(text).find(text) == naive_find(text, text)
    assert indexed(text).find(text) == (MAX_MATCH, list(range(50, 50 - MAX_OCCURRENCES, -1)))


def test_texts_too_short_to_match_are_harmless():
    for text in ([], [1], [1, 1], [1, 2]):
        index = indexed(text)
        assert index.find([1, 1]) == (0, [])
        index.drop(len(text))
        assert index.num_entries == 0


def test_outputs_fall_out_of_the_ring_oldest_first_and_whole():
    corpus = OutputCorpus(12)
    for output in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        corpus.add(output)
    assert corpus.tokens == [1, 2, 3, END_OF_OUTPUT, 4, 5, 6, END_OF_OUTPUT, 7, 8, 9, END_OF_OUTPUT]
    corpus.add([0, 0, 3])
    assert corpus.tokens == [4, 5, 6, END_OF_OUTPUT, 7, 8, 9, END_OF_OUTPUT, 0, 0, 3, END_OF_OUTPUT]
    assert corpus.find([1, 2]) == (0, [])
    assert corpus.find([4, 5]) == (2, [2])
    assert corpus.find([0, 0]) == (2, [10])


def test_an_output_longer_than_the_ring_keeps_its_end():
    corpus = OutputCorpus(6)
    corpus.add([1, 2, 3])
    corpus.add(list(range(10, 20)))
    assert corpus.tokens == [15, 16, 17, 18, 19, END_OF_OUTPUT]
    assert corpus.find([17, 18]) == (2, [4])


def test_a_ring_without_room_holds_nothing():
    for max_tokens in (0, 1, MIN_MATCH + 1):
        corpus = OutputCorpus(max_tokens)
        corpus.add([1, 2, 3, 4])
        assert (corpus.tokens, corpus.num_entries) == ([], 0)


def test_no_match_reaches_from_one_output_into_the_next():
    corpus = OutputCorpus(100)
    corpus.add([1, 2, 3])
    corpus.add([4, 5, 6])
    assert corpus.find([3, 4]) == (0, [])
    assert corpus.find([1, 2, 3, 4, 5]) == (2, [6])


@given(st.integers(0, 40), st.lists(texts, max_size=30), st.lists(st.integers(0, 2), min_size=2, max_size=20))
def test_the_ring_stays_within_its_bound_and_finds_what_it_holds(max_tokens, outputs, context):
    corpus = OutputCorpus(max_tokens)
    held = []
    for output in outputs:
        corpus.add(output)
        assert len(corpus.tokens) <= max_tokens
        kept = output[-(max_tokens - 1) :] if max_tokens > 1 else []
        if len(kept) > MIN_MATCH:
            held.append([*kept, END_OF_OUTPUT])
        while sum(map(len, held)) > max_tokens:
            held.pop(0)
    assert corpus.tokens == [token for output in held for token in output]
    assert corpus.find(context) == naive_find(corpus.tokens, context)
    assert corpus.num_entries <= 2 * len(corpus.tokens)
