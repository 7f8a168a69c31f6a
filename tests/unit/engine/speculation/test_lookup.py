from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.request import EncodedRequest, FinishReason
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.sequence import Sequence
from helix_jobs.engine.speculation.drafters.lookup import NO_MATCH, LookupDrafter
from helix_jobs.engine.speculation.drafters.match_calibrator import MatchCalibrator
from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH, MIN_MATCH
from helix_jobs.engine.speculation.drafters.output_corpus import END_OF_OUTPUT
from tests.unit.engine.speculation.naive_search import naive_find

POOL = BlockPool(1, 16)
texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)
PRIOR = {"own": LookupDrafter()._own_prior, "corpus": LookupDrafter()._corpus_prior}
FLOOR = 0.15


def sequence(prompt, output=(), name="a", temperature=0.0):
    params = SamplingParams(max_tokens=10_000, temperature=temperature)
    made = Sequence(
        EncodedRequest(request_id=name, sampling_params=params, seed=1, prompt_token_ids=tuple(prompt)),
        BlockTable(POOL),
        frozenset(),
        100_000,
    )
    made.commit(list(output), 0.0)
    return made


def finished(sequence):
    sequence.finish(FinishReason.LENGTH)
    return sequence


def naive_proposal(text, followers, length, limit, prior):
    """The definition, one token at a time, with the copy appended to the text it is copied from."""
    text = list(text)
    copied = []
    while len(copied) < limit and followers:
        following = [text[f + len(copied)] for f in followers]
        most = max(following.count(token) for token in following)
        token = next(token for token in following if following.count(token) == most)
        if token == END_OF_OUTPUT or prior.confidence(length + len(copied), most, len(following)) < FLOOR:
            break
        followers = [f for f, other in zip(followers, following, strict=True) if other == token]
        copied.append(token)
        text.append(token)
    return tuple(copied)


def naive_match(own, corpus, limit):
    if len(own) < MIN_MATCH:
        return ()
    length, followers = naive_find(own, own)
    corpus_length, corpus_followers = naive_find(corpus, own)
    if corpus_length > length:
        return naive_proposal(corpus, corpus_followers, corpus_length, limit, PRIOR["corpus"])
    return naive_proposal(own, followers, length, limit, PRIOR["own"])


@given(texts, texts, st.lists(st.tuples(texts, texts), max_size=6), st.integers(0, 9))
def test_proposes_what_a_naive_search_proposes(prompt, output, learned, limit):
    drafter = LookupDrafter()
    for number, (other_prompt, other_output) in enumerate(learned):
        drafter.forget(finished(sequence(other_prompt, other_output, name=str(number))))
    own = sequence(prompt, output)
    match = drafter.match(own, limit)
    assert match.token_ids == naive_match(own.token_ids, drafter._corpus.tokens, limit)
    assert len(match.confidence) == len(match.token_ids) <= limit
    assert all(FLOOR <= confidence < 1 for confidence in match.confidence)
    assert (match.match_length >= MIN_MATCH) == bool(match.token_ids)


@given(texts, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12))
def test_a_sequence_that_grows_step_by_step_equals_one_seen_at_once(prompt, steps):
    grown = LookupDrafter()
    own = sequence(prompt)
    for accepted in steps:
        own.commit(accepted, 0.0)
        assert grown.match(own, 5) == LookupDrafter().match(sequence(own.token_ids), 5)


def test_copies_what_followed_in_the_prompt():
    match = LookupDrafter().match(sequence([5, 6, 7, 8, 9, 1, 2, 5, 6], [7]), 3)
    assert match.token_ids == (8, 9, 1)
    assert match.match_length == 3
    assert not match.from_corpus
    assert list(match.confidence) == sorted(match.confidence), "every accepted token lengthens the match"


def test_it_goes_on_behind_tokens_that_are_forced():
    match = LookupDrafter().match(sequence([5, 6, 7, 8, 9, 1, 2], [5]), 3, (6, 7))
    assert (match.token_ids, match.match_length) == ((8, 9, 1), 3)
    # The match may begin in the forced tokens; a copy that reaches the end of the text goes on with them.
    assert LookupDrafter().match(sequence([30, 6, 7], [5]), 4, (6, 7)).token_ids == (5, 6, 7, 5)
    assert LookupDrafter().match(sequence([7, 8], [5]), 3, (6, 9)) is NO_MATCH


def test_nothing_seen_before_gives_nothing():
    assert LookupDrafter().match(sequence(range(20), [99]), 4) is NO_MATCH


@pytest.mark.parametrize("prompt", [[7], [7, 7], [7, 8]])
def test_texts_too_short_to_match_give_nothing(prompt):
    assert LookupDrafter().match(sequence(prompt), 4) is NO_MATCH


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_no_proposal(limit):
    drafter = LookupDrafter()
    assert drafter.match(sequence([1, 2, 3, 1, 2]), limit) is NO_MATCH
    assert drafter.num_entries == 0


def test_a_repeated_token_is_repeated_to_the_limit():
    match = LookupDrafter().match(sequence([4] * 40), 12)
    assert match.token_ids == (4,) * 12
    assert match.match_length == MAX_MATCH
    assert LookupDrafter().match(sequence([4] * 3), 5).token_ids == (4,) * 5


def test_a_loop_goes_on_past_the_end_of_the_text():
    assert LookupDrafter().match(sequence([9, 1, 2, 3, 1, 2]), 7).token_ids == (3, 1, 2, 3, 1, 2, 3)


def test_the_longest_match_wins_over_the_latest_and_the_more_frequent():
    match = LookupDrafter().match(sequence([1, 2, 3, 70, 0, 2, 3, 80, 0, 2, 3, 80, 0, 1, 2], [3]), 1)
    assert (match.token_ids, match.match_length) == ((70,), 3)


def test_the_more_frequent_continuation_wins_then_the_latest():
    frequent = [5, 6, 70, 0, 5, 6, 70, 1, 5, 6, 80, 2, 5, 6]
    assert LookupDrafter().match(sequence(frequent), 1).token_ids == (70,)
    even = [5, 6, 70, 0, 5, 6, 80, 1, 5, 6]
    assert LookupDrafter().match(sequence(even), 1).token_ids == (80,)


def test_confidence_falls_where_continuations_part():
    prompt = [5, 6, 7, 70, 0, 5, 6, 7, 80, 1, 5, 6]
    together = LookupDrafter().match(sequence(prompt), 3)
    assert together.token_ids == (7, 80, 1)
    assert together.confidence[0] > together.confidence[1] < together.confidence[2]


def test_a_proposal_ends_where_hardly_any_continuation_agrees():
    prompt = []
    for different in range(8):
        prompt += [5, 6, 7, 100 + different]
    match = LookupDrafter().match(sequence([*prompt, 5, 6]), 6)
    assert match.token_ids == (7,)


def test_a_longer_copy_makes_up_for_dissent():
    prompt = []
    for different in range(4):
        prompt += [5, 6, 7, 8, 9, 100 + different]
    assert LookupDrafter().match(sequence([*prompt, 5, 6]), 4).token_ids == (7, 8, 9, 103)
    for different in range(4):
        prompt += [50, 60, 200 + different]
    assert LookupDrafter().match(sequence([*prompt, 1, 50, 60]), 4) is NO_MATCH


def test_finished_outputs_are_found_and_own_text_goes_before_them_at_equal_length():
    drafter = LookupDrafter()
    drafter.forget(finished(sequence([1], [5, 6, 7, 8], name="other")))
    match = drafter.match(sequence([3], [5, 6]), 4)
    assert (match.token_ids, match.from_corpus) == ((7, 8), True)
    equal = drafter.match(sequence([5, 6, 70, 3], [5, 6]), 1)
    assert (equal.token_ids, equal.from_corpus) == ((70,), False)
    longer = drafter.match(sequence([5, 6, 70, 3], [5, 6, 7]), 1)
    assert (longer.token_ids, longer.from_corpus) == ((8,), True)


def test_jobs_of_one_template_find_each_other_at_the_first_token():
    drafter = LookupDrafter()
    drafter.forget(finished(sequence([11, 12, 90, 91, 92], [40, 41, 42], name="other")))
    assert drafter.match(sequence([21, 22, 90, 91, 92], [40]), 2).token_ids == (41, 42)


def test_a_sampled_request_looks_at_its_own_text_only():
    drafter = LookupDrafter()
    drafter.forget(finished(sequence([1], [5, 6, 7, 8], name="other")))
    assert drafter.match(sequence([3], [5, 6], temperature=0.7), 4) is NO_MATCH
    assert drafter.match(sequence([5, 6, 70, 3], [5, 6], temperature=0.7), 1).token_ids == (70,)


@given(texts, texts, st.lists(st.tuples(texts, texts), max_size=4), st.integers(0, 8))
def test_what_a_sampled_request_proposes_depends_on_nothing_but_its_text(prompt, output, learned, num_accepted):
    drafter = LookupDrafter()
    for number, (other_prompt, other_output) in enumerate(learned):
        other = sequence(other_prompt, other_output, name=str(number), temperature=0.7)
        match = drafter.match(other, 8)
        for _ in range(100):
            drafter.observe(other, len(match.token_ids), min(num_accepted, len(match.token_ids)))
        drafter.forget(finished(other))
    alone = LookupDrafter().match(sequence(prompt, output, temperature=0.7), 8)
    in_company = drafter.match(sequence(prompt, output, temperature=0.7), 8)
    assert (in_company.token_ids, in_company.match_length) == (alone.token_ids, alone.match_length)


def test_what_is_learned_changes_the_confidence_and_not_the_tokens():
    drafter = LookupDrafter()
    greedy, sampled = sequence([1, 2, 3, 4, 1, 2]), sequence([1, 2, 3, 4, 1, 2], name="b", temperature=1.0)
    before = drafter.match(greedy, 3)
    for _ in range(500):
        drafter.match(greedy, 3)
        drafter.observe(greedy, 3, 0)
    after = drafter.match(greedy, 3)
    assert after.token_ids == before.token_ids
    assert after.confidence[0] < 0.05
    assert after.confidence[1:] == before.confidence[1:], "tokens behind a rejection were never tried"
    assert drafter.match(sampled, 3).confidence == before.confidence


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_is_learned_does_not_move_the_floor(temperature):
    drafter = LookupDrafter()
    own = sequence([5, 6, 70, 0, 5, 6, 80, 1, 5, 6, 90, 2, 5, 6], temperature=temperature)
    lone = sequence([1, 2, 3, 4, 1, 2], name="b", temperature=temperature)
    before = drafter.match(own, 2)
    assert before.confidence[0] < 0.2
    for _ in range(500):
        drafter.match(lone, 1)
        drafter.observe(lone, 1, 0)
    after = drafter.match(own, 2)
    assert after.token_ids == before.token_ids == (90, 2)
    assert after.confidence[0] < FLOOR


def test_only_the_verified_part_of_a_proposal_teaches():
    drafter = LookupDrafter()
    own = sequence([1, 2, 3, 4, 1, 2])
    before = drafter.match(own, 3)
    drafter.observe(own, 1, 1)
    after = drafter.match(own, 3)
    assert after.confidence[0] > before.confidence[0]
    assert after.confidence[1:] == before.confidence[1:]


def test_a_truncated_output_is_no_longer_found():
    drafter = LookupDrafter()
    own = sequence([9, 8], [1, 2, 3, 1, 2, 3])
    assert drafter.match(own, 1).token_ids == (1,)
    own.truncate_output(2)
    assert drafter.match(own, 1) is NO_MATCH
    own.truncate_output(0)
    drafter.forget(finished(own))
    assert drafter.num_entries == 0


def test_a_truncated_output_is_learned_as_it_stands():
    drafter = LookupDrafter()
    own = sequence([9], [1, 2, 3, 4])
    drafter.match(own, 1)
    own.truncate_output(3)
    drafter.forget(finished(own))
    assert drafter.match(sequence([7], [1, 2], name="b"), 4).token_ids == (3,)


def test_forgotten_sequences_hold_no_memory_and_come_back_the_same():
    drafter = LookupDrafter()
    drafter.forget(sequence([1, 2], name="unknown"))
    own = sequence([1, 2, 3, 4, 1], [2])
    before = drafter.match(own, 3)
    assert drafter.num_entries > 0
    drafter.forget(own)
    assert drafter.num_entries == 0
    assert drafter.match(own, 3) == before


def test_a_name_used_again_does_not_see_the_earlier_text():
    drafter = LookupDrafter()
    drafter.match(sequence([1, 2, 3, 4, 1, 2]), 3)
    assert drafter.match(sequence([6, 7, 8, 9, 1, 2]), 3) is NO_MATCH


def test_an_index_is_bounded_by_its_sequence():
    drafter = LookupDrafter()
    own = sequence(range(50))
    for token in range(200):
        own.commit([token % 7], 0.0)
        drafter.match(own, 4)
        assert drafter.num_entries <= 2 * len(own)


def test_ten_thousand_outputs_stay_within_the_bound():
    drafter = LookupDrafter(max_corpus_tokens=2_000)
    draws = random.Random(1)
    for number in range(10_000):
        drafter.forget(
            finished(sequence([1, 2, 3], draws.choices(range(500), k=draws.randrange(12)), name=str(number)))
        )
        assert drafter.num_entries <= 4_000
    assert drafter.num_entries > 3_000, "the ring is used"
    assert drafter._corpus.tokens.count(END_OF_OUTPUT) < 1_000


def test_without_a_corpus_own_text_still_serves():
    drafter = LookupDrafter(max_corpus_tokens=0)
    drafter.forget(finished(sequence([1], [5, 6, 7, 8], name="other")))
    assert drafter.match(sequence([3], [5, 6]), 4) is NO_MATCH
    assert drafter.match(sequence([5, 6, 7, 5], [6]), 1).token_ids == (7,)


def test_every_prior_rate_is_above_the_floor():
    """Votes alone may end a proposal: a match whose every occurrence agrees is always proposed."""
    for prior in PRIOR.values():
        assert isinstance(prior, MatchCalibrator)
        assert min(prior.confidence(length, 1, 1) for length in range(MIN_MATCH, MAX_MATCH + 1)) >= FLOOR
