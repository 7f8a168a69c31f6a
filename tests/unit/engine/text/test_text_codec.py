"""Token ids become the text that the model wrote: with its first space, without half characters and special tokens."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.text.codec import Context
from helix_jobs.engine.text.stop_strings import StopStringWatch
from helix_jobs.errors import InvalidRequestError
from tests.unit.engine.text.small_tokenizers import (
    EMOJI,
    KINDS,
    byte_level,
    chat_tokenizer,
    codec,
    ids,
    sentence_pieces,
)
from tests.unit.engine.tiny_models import loaded, tiny_model, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_goes_on_from_its_prompt_wherever_they_are_cut(kind):
    tok = KINDS[kind]()
    made = codec(tok)
    text = "the quick text 😀 hello漢字 world, is small é"
    whole = ids(tok, text)
    for cut in range(1, len(whole)):
        prompt, output = whole[:cut], whole[cut:]
        shown = made.decode(output, made.context(prompt))
        assert made.decode(prompt) + shown == text


def test_the_first_space_is_the_output_s_own():
    tok = sentence_pieces()
    made = codec(tok)
    prompt, output = ids(tok, "hello"), ids(tok, "hello world")[len(ids(tok, "hello")) :]
    assert made.decode(output) == "world"
    assert made.decode(output, made.context(prompt)) == " world"
    # Nothing stands before an output whose prompt has no text.
    assert made.context([1]) == Context()
    assert made.decode(output, made.context([1])) == "world"
    assert made.decode(output, made.context([*prompt, 2])) == " world"
    assert made.decode([], made.context(prompt)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_cut_at_any_token_ends_with_its_last_whole_character(kind):
    tok = KINDS[kind]()
    made = codec(tok)
    whole = ids(tok, EMOJI)
    seen = set()
    for count in range(len(whole) + 1):
        shown = made.decode(whole[:count])
        assert EMOJI.startswith(shown)
        seen.add(shown)
    assert {EMOJI[:n] for n in range(len(EMOJI) + 1)} - seen <= {"a😀b😃😄 "[: n + 1] for n in range(7)}
    assert EMOJI in seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_replacement_character_that_the_model_wrote_stays(kind):
    tok = KINDS[kind]()
    made = codec(tok)
    assert made.decode(ids(tok, "a\ufffd")) == "a\ufffd"
    # A byte that cannot go on is one, too, and so is one that did not go on.
    byte = {"byte level": "\u00ff", "sentence pieces": "<0xFF>"}[kind]
    assert made.decode([*ids(tok, "a"), tok.convert_tokens_to_ids(byte)]) == "a\ufffd"


def test_special_tokens_within_a_character_do_not_hide_that_it_is_cut():
    tok = byte_level()
    made = codec(tok)
    eos = tok.convert_tokens_to_ids("</s>")
    first, *rest = ids(tok, "漢")
    assert made.decode([first, eos]) == ""
    assert made.decode([first, eos, *rest]) == "漢"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", ["😄", "b😃", " é", "\ufffd", "字", "a"])
def test_stop_texts_are_found_at_the_token_that_completes_them(kind, stop):
    tok = KINDS[kind]()
    made = codec(tok)
    output = ids(tok, "x" * 90 + EMOJI)
    context = made.context(ids(tok, "hello"))
    text = made.decode(output, context)
    for chunk in (1, 3, 7):
        watch = StopStringWatch(made, [stop], context)
        found, done = None, 0
        while found is None and done < len(output):
            step = min(chunk, len(output) - done)
            done += step
            found = watch.find(output[:done], step)
        if stop not in text:
            assert found is None
            continue
        assert found is not None
        count, before = found
        assert before == text[: text.index(stop)]
        assert stop in made.decode(output[:count])
        assert stop not in made.decode(output[: count - 1])


def test_a_stop_text_that_begins_with_a_space_is_found_at_the_start():
    tok = sentence_pieces()
    made = codec(tok)
    prompt, output = ids(tok, "hello"), ids(tok, "hello world text")[len(ids(tok, "hello")) :]
    for is_chat in (False, True):
        watch = StopStringWatch(made, [" world"], made.context(prompt), is_chat=is_chat)
        counts = [found for n in range(1, len(output) + 1) if (found := watch.find(output[:n], 1))]
        assert counts[0][1] == ""
    later = StopStringWatch(made, [" text"], made.context(prompt), is_chat=True)
    assert later.find(output, len(output))[1] == "world"
    later = StopStringWatch(made, [" text"], made.context(prompt))
    assert later.find(output, len(output))[1] == " world"


def engine(model, tok, turn_end=(), eos=()):
    models = replace(loaded(model, "none", eos), tokenizer=tok, turn_end_ids=frozenset(turn_end))
    return Engine(
        models, EngineConfig(speculation=SpeculationConfig(depth=0)), CacheConfig(num_blocks=200, block_size=4)
    )


def ask(name, **fields):
    params = {key: fields.pop(key) for key in ("stop", "ignore_eos", "max_tokens") if key in fields}
    return Request(request_id=name, seed=0, sampling_params=SamplingParams(**params), **fields)


def test_prompt_and_output_are_what_transformers_makes_of_both():
    tok = sentence_pieces(bytes_too=False)
    model = tiny_model(seed=3, vocab_size=len(tok))
    prompts = ["hello", "the quick", "one two three", "small", "fox"]
    with closing(engine(model, tok)) as made:
        results = made.generate(ask(p, prompt=p, max_tokens=12, ignore_eos=True) for p in prompts)
    for prompt, result in zip(prompts, results, strict=True):
        given, out = transformers_generates(model, tok, prompt)
        assert result.output_token_ids == tuple(out[len(given) :])
        before, whole = (tok.decode(part, skip_special_tokens=True) for part in (given, out))
        assert before + result.output_text == whole
    assert any(result.output_text.startswith(" ") for result in results)


def test_stop_texts_end_where_those_of_transformers_do():
    tok = sentence_pieces(bytes_too=False)
    model = tiny_model(seed=3, vocab_size=len(tok))
    stops = []
    with closing(engine(model, tok)) as made:
        for prompt in ("hello", "the quick", "one two three", "small", "fox"):
            (free,) = made.generate([ask("free", prompt=prompt, max_tokens=12, ignore_eos=True)])
            stops.append(free.output_text[:2])
            (cut,) = made.generate([ask("cut", prompt=prompt, max_tokens=12, ignore_eos=True, stop=(stops[-1],))])
            given, out = transformers_generates(model, tok, prompt, stop_strings=[stops[-1]], tokenizer=tok)
            assert (cut.finish_reason, cut.output_text) == (FinishReason.STOP, "")
            assert cut.output_token_ids == tuple(out[len(given) :])
    assert any(stop.startswith(" ") for stop in stops)


def transformers_generates(model, tok, prompt, **arguments):
    given = torch.tensor([tok(prompt)["input_ids"]])
    out = model.generate(
        given, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, **arguments
    )  # fmt: skip
    return given[0].tolist(), out[0].tolist()


def test_a_special_token_as_a_stop_text_is_its_id():
    tok = chat_tokenizer()
    made = codec(tok)
    im_end = tok.convert_tokens_to_ids("<|im_end|>")
    assert made.stop_token_ids(["<|im_end|>", "x", "ab", "<|im"]) == {im_end}
    for stop in ("<|im_end|>\n", "user: <|im_end|>"):
        with pytest.raises(InvalidRequestError, match=rf"holds the special token .*its id {im_end} in stop_token_ids"):
            made.stop_token_ids([stop])
        with pytest.raises(InvalidRequestError, match="special token"):
            made.encode(ask("a", prompt_token_ids=(2, 3), stop=(stop,)))


def test_the_engine_stops_at_a_special_token_that_is_a_stop_text():
    tok = chat_tokenizer()
    model = tiny_model(seed=5, vocab_size=len(tok))
    made = engine(model, tok)
    (free,) = made.generate([ask("free", prompt_token_ids=(4, 5, 6), max_tokens=40, ignore_eos=True)])
    (place, end) = next((i, t) for i, t in enumerate(free.output_token_ids) if i and t not in free.output_token_ids[:i])
    # Give that token the name of an end of turn: it becomes special, and its text is never shown.
    named = chat_tokenizer()
    named.add_special_tokens({"additional_special_tokens": [tok.convert_ids_to_tokens(end)]})
    stop = (named.convert_ids_to_tokens(end),)
    made = engine(model, named)
    (cut,) = made.generate([ask("cut", prompt_token_ids=(4, 5, 6), max_tokens=40, ignore_eos=True, stop=stop)])
    assert cut.finish_reason is FinishReason.STOP
    assert cut.output_token_ids == free.output_token_ids[:place]


def test_the_end_of_a_turn_ends_answers_to_messages_and_no_plain_prompt():
    tok = chat_tokenizer()
    model = tiny_model(seed=5, vocab_size=len(tok))
    prompt = tok(tok.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False))["input_ids"]
    (free,) = engine(model, tok).generate([ask("free", prompt_token_ids=tuple(prompt), max_tokens=40, ignore_eos=True)])
    (place, end) = next((i, t) for i, t in enumerate(free.output_token_ids) if i and t not in free.output_token_ids[:i])
    with closing(engine(model, tok, turn_end=[end])) as made:
        chat, plain, on = made.generate(
            [
                ask("chat", messages=({"role": "user", "content": "hi"},), max_tokens=40),
                ask("plain", prompt_token_ids=tuple(prompt), max_tokens=40),
                ask("on", messages=({"role": "user", "content": "hi"},), max_tokens=40, ignore_eos=True),
            ]
        )
    assert (chat.output_token_ids, chat.finish_reason) == (free.output_token_ids[:place], FinishReason.STOP)
    assert plain.output_token_ids == on.output_token_ids == free.output_token_ids


def test_no_messages_are_refused_as_such():
    with pytest.raises(InvalidRequestError, match="messages is empty; give at least one message"):
        codec(tokenizer()).encode(ask("a", messages=()))
