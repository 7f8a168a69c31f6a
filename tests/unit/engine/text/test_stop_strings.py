from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.stop_strings import StopStringWatch
from tests.unit.engine.text.letters import encode
from tests.unit.engine.tiny_models import VOCAB_SIZE, request, tiny_engine, tiny_model, tokenizer


def watch(*stop):
    return StopStringWatch(TextCodec(tokenizer(), VOCAB_SIZE), stop)


def feed(watcher, tokens, chunks):
    """Grow an output by chunks of tokens, as speculation does; return the first hit."""
    done = 0
    while done < len(tokens):
        step = min(next(chunks), len(tokens) - done)
        done += step
        if found := watcher.find(tokens[:done], step):
            return found
    return None


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab.", max_size=40),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    chunks=st.lists(st.integers(1, 5), min_size=1),
)
def test_a_stop_string_is_found_where_the_text_first_has_it(text, stops, chunks):
    found = feed(watch(*stops), encode(text), itertools.cycle(chunks))
    ends = [(text.find(s) + len(s)) for s in stops if s in text]
    if not ends:
        assert found is None
        return
    count, before = found
    assert count == min(ends)
    assert before == text[: min(p for p in (text[:count].find(s) for s in stops) if p >= 0)]


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("draft", ["none", "same", "other"])
def test_the_engine_stops_at_the_same_place_whatever_the_draft(draft):
    model = tiny_model(seed=3)
    engine = tiny_engine(model, draft)
    prompts = [encode(text) for text in ("hello there", "once upon", "why?", "a b c d")]
    free = engine.generate(request(f"f{i}", p, max_tokens=40, ignore_eos=True) for i, p in enumerate(prompts))
    stops = [r.output_text[10:13] for r in free]
    cut = engine.generate(
        request(f"c{i}", p, max_tokens=40, ignore_eos=True, stop=(s,))
        for i, (p, s) in enumerate(zip(prompts, stops, strict=True))
    )
    for whole, short, stop in zip(free, cut, stops, strict=True):
        assert len(stop) == 3
        assert short.output_text == whole.output_text[: whole.output_text.index(stop)]
        assert short.finish_reason is FinishReason.STOP
        assert short.output_token_ids == whole.output_token_ids[: len(short.output_token_ids)]


def test_special_tokens_are_left_out_of_the_text():
    codec = TextCodec(tokenizer(), VOCAB_SIZE)
    assert codec.decode([0, *encode("hi"), 0]) == "hi"


def test_a_stop_string_is_found_across_tokens_that_decode_to_nothing():
    tokens = [*encode("xxa"), *[0] * 60, *encode("b"), *encode("c")]
    count, before = feed(watch("ab"), tokens, itertools.cycle([1]))
    assert before == "xx"
    assert count == 64
