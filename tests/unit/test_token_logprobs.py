"""Log probabilities are read back as they were written, and damage is noticed."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.token_logprobs import NO_TOKEN, TokenLogprobs, TokenText


@st.composite
def made_up(draw: st.DrawFn) -> TokenLogprobs:
    alternatives, tokens = draw(st.integers(0, 20)), draw(st.integers(0, 12))
    count = tokens * (1 + alternatives)
    ids = draw(st.lists(st.integers(NO_TOKEN, 2**31 - 1), min_size=count, max_size=count))
    numbers = st.floats(width=32, max_value=0.0, allow_nan=False) | st.just(math.nan)
    logprobs = draw(st.lists(numbers, min_size=count, max_size=count))
    texts = {one: TokenText(draw(st.binary(max_size=6)), draw(st.booleans())) for one in set(ids)}
    return TokenLogprobs(alternatives, array("i", ids), array("f", logprobs), texts)


@pytest.mark.thorough
@given(made_up())
def test_what_is_written_is_read_back_bit_for_bit(made: TokenLogprobs) -> None:
    found = TokenLogprobs.from_bytes(made.to_bytes())
    assert found.num_alternatives == made.num_alternatives
    assert found.token_ids == made.token_ids
    assert found.logprobs.tobytes() == made.logprobs.tobytes()
    assert found.texts == made.texts
    assert len(found) == len(list(found)) == len(made)


@pytest.mark.thorough
@given(made_up(), st.data())
def test_damage_is_noticed_or_harmless(made: TokenLogprobs, data: st.DataObject) -> None:
    whole = made.to_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), whole[:place]):
        try:
            found = TokenLogprobs.from_bytes(damaged)
        except ValueError:
            continue
        assert found.token_ids == made.token_ids, "zlib has a checksum: what passes is what was written"


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01", b"\x01nonsense"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="log probabilities"):
        TokenLogprobs.from_bytes(data)


def test_a_total_leaves_out_what_has_no_logprob() -> None:
    made = TokenLogprobs(1, array("i", [5, -1, 6, 6, 7, 8]), array("f", [math.nan, math.nan, -0.5, -0.5, -2.0, -1.0]))
    assert made.total() == -2.5
    assert made.total(2) == -0.5
    assert TokenLogprobs(0, array("i", [5, 6]), array("f", [-math.inf, -1.0])).total() == -10_000.0
    first, second, third = made
    assert (first.logprob, first.alternatives) == (None, ())
    assert second.alternatives == ((6, -0.5),)
    assert (third.token_id, third.logprob, third.alternatives) == (7, -2.0, ((8, -1.0),))
