"""Bad words and truncated prompts become tokens beside the prompt, in processes with limits; ends that answers keep."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from tokenizers import normalizers

from helix_jobs.engine import prompt_truncation
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.engine.request import EncodedRequest, FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.engine.text import codec as codec_module
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.engine.text.stop_strings import StopStringWatch
from helix_jobs.errors import InvalidRequestError, PromptTooLongError
from tests.unit.engine.text.bounded_prompts import SHORT
from tests.unit.engine.text.letters import encode
from tests.unit.engine.text.small_tokenizers import byte_level, sentence_pieces
from tests.unit.engine.text.small_tokenizers import byte_level_with_bos as with_bos
from tests.unit.engine.tiny_models import ALPHABET, EOS, VOCAB_SIZE, loaded, reference_greedy, tiny_model, tokenizer

CONTEXT = 40


@contextmanager
def engine(tok=None, turn_end=(), **config):
    tok = tok or tokenizer()
    models = replace(loaded(tiny_model(seed=3, vocab_size=len(tok))), tokenizer=tok, turn_end_ids=frozenset(turn_end))
    speculation = SpeculationConfig(depth=3, adaptive=False, drafters=("lookup",))
    config = EngineConfig(speculation=speculation, max_model_len=CONTEXT, **config)
    with closing(Engine(models, config, CacheConfig(num_blocks=60, block_size=4))) as made:
        yield made


def ask(prompt="abc", truncate=None, messages=None, **params):
    return Request(
        request_id="a",
        seed=0,
        prompt=None if messages else prompt,
        messages=messages,
        truncate_prompt=truncate,
        sampling_params=SamplingParams(**params),
    )


# Bad words


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_a_word_has_the_forms_that_a_text_gives_it(make):
    tok = make()
    with closing(TextCodec(tok, len(tok))) as made:
        forms = made.word_token_ids(["quick", "  brown fox"])
    for text in ("quick", " quick", "brown fox", " brown fox"):
        assert tuple(tok(text, add_special_tokens=False)["input_ids"]) in forms
    assert len(forms) == len(set(forms)) == 4


def test_the_two_forms_of_a_word_are_one_where_the_tokenizer_makes_no_difference():
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Strip()
    with closing(TextCodec(tok, VOCAB_SIZE)) as made:
        assert made.word_token_ids(["ab"]) == (tuple(encode("ab")),)


def test_an_answer_without_its_bad_words_is_that_of_transformers():
    with engine() as made:
        free = made.generate([ask("hello there", max_tokens=20, ignore_eos=True)])[0]
        words = [free.output_text[1:4], free.output_text[6:8]]
        (result,) = made.generate([ask("hello there", max_tokens=20, ignore_eos=True, bad_words=words)])
    ids = [encode(form) for word in words for form in (word.lstrip(), f" {word.lstrip()}")]
    model = tiny_model(seed=3)
    assert result.output_token_ids == reference_greedy(
        model, encode("hello there"), 20, bad_words_ids=ids, eos_token_id=None
    )
    assert result.output_token_ids != free.output_token_ids
    assert words[0].lstrip() not in result.output_text


def test_what_cannot_be_a_bad_word_of_this_model_is_refused():
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Replace("z", "")
    with engine(tok) as made:
        with pytest.raises(
            InvalidRequestError, match="bad_words: a word has no tokens in this model's vocabulary; lea"
        ):
            made.encode(ask(bad_words=["ab", "zz"]))
        with pytest.raises(
            InvalidRequestError, match="bad_words: one is a token that ends the answer; leave it out, or"
        ):
            made.encode(ask(bad_words=["<eos>"]))
        assert (EOS,) in made.encode(ask(bad_words=["<eos>"], ignore_eos=True)).bad_words


def test_a_turn_s_end_is_no_bad_word_of_an_answer_to_messages_alone():
    with engine(turn_end=[ALPHABET.index("!") + 2]) as made:
        assert made.encode(ask(bad_words=["!"])).bad_words
        with pytest.raises(InvalidRequestError, match="bad_words: one is a token that ends the answer"):
            made.encode(ask(messages=({"role": "user", "content": "hi"},), bad_words=["!"]))


def test_a_request_that_encode_has_not_made_is_refused_if_it_has_bad_words():
    with engine() as made:
        params = SamplingParams(bad_words=("ab",))
        with pytest.raises(InvalidRequestError, match="bad_words were not encoded; let encode make the request"):
            made.add_request(EncodedRequest(request_id="a", prompt_token_ids=(2, 3), sampling_params=params, seed=0))
        assert not made.has_unfinished()


def test_a_tokenizer_that_takes_all_memory_over_a_word_fails_the_request_alone():
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    with closing(TextCodec(tok, VOCAB_SIZE, PromptEncoder(tok, SHORT))) as made:
        with pytest.raises(InvalidRequestError, match=r"bad_words|too much memory|processor time|crashed \(SIG"):
            made.word_token_ids(["a"])
        assert made.word_token_ids(["b"])


def test_a_tokenizer_that_panics_over_a_word_is_told_without_the_word():
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Precompiled(bytes([4, *[0] * 8]))
    with (
        closing(TextCodec(tok, VOCAB_SIZE, PromptEncoder(tok, SHORT))) as made,
        pytest.raises(InvalidRequestError, match=r"^the model's tokenizer fails on bad_words \(LibraryPanicError\)"),
    ):
        made.word_token_ids(["secret"])


def test_a_word_of_too_many_tokens_is_refused():
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 11)
    with (
        closing(TextCodec(tok, VOCAB_SIZE)) as made,
        pytest.raises(InvalidRequestError, match="bad_words: a word has more than 1024 tokens; shorten it"),
    ):
        made.word_token_ids(["a"])


# Token ids


@pytest.mark.parametrize("params", [{"logit_bias": {str(VOCAB_SIZE): 1}}, {"allowed_token_ids": [3, VOCAB_SIZE]}])
def test_a_token_that_the_model_lacks_is_refused_by_its_field(params):
    (field,) = params
    with engine() as made:
        told = rf"{field}: the model has no token {VOCAB_SIZE} \(its vocabulary is 0 to {VOCAB_SIZE - 1}\); leave it"
        with pytest.raises(InvalidRequestError, match=told):
            made.encode(ask(**params))


# Truncation


LONG = "the quick brown fox jumps over the lazy dog and then some more"


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize(
    ("truncate", "max_tokens", "kept"),
    [
        (TruncatePrompt(tokens=10), 9, LONG[-10:]),
        (TruncatePrompt(tokens=1), 9, LONG[-1:]),
        (TruncatePrompt(), 9, LONG[-(CONTEXT - 9) :]),
        (TruncatePrompt(keep="start_and_end"), 9, LONG[:15] + LONG[-16:]),
        (TruncatePrompt(keep="start_and_end", tokens=10), 9, LONG[:5] + LONG[-5:]),
        (TruncatePrompt(keep="start_and_end", tokens=1), 9, LONG[-1:]),
        (TruncatePrompt(tokens=1000), 9, None),
        (TruncatePrompt(tokens=CONTEXT), 9, None),
        (TruncatePrompt(tokens=CONTEXT - 1), 9, LONG[-(CONTEXT - 1) :]),
    ],
)
def test_a_prompt_is_truncated_to_what_is_asked(truncate, max_tokens, kept):
    with engine() as made:
        if kept is None:
            told = f"the prompt has {min(len(LONG), truncate.tokens)} tokens and the context holds {CONTEXT}"
            with pytest.raises(PromptTooLongError, match=told):
                made.encode(ask(LONG, truncate, max_tokens=max_tokens))
            return
        encoded = made.encode(ask(LONG, truncate, max_tokens=max_tokens))
        assert list(encoded.prompt_token_ids) == encode(kept)
        assert encoded.dropped_prompt_tokens == len(LONG) - len(kept)
        (result,) = made.generate([encoded])
        assert (result.prompt_tokens, result.dropped_prompt_tokens) == (len(kept), len(LONG) - len(kept))
        short = made.encode(ask("abc", truncate, max_tokens=max_tokens))
        assert short.dropped_prompt_tokens == max(0, 3 - (truncate.tokens or 3))
        assert made.encode(ask("abc")).dropped_prompt_tokens is None


def test_a_prompt_that_is_only_scored_leaves_room_for_one_token_as_every_prompt_must():
    with engine() as made:
        scored = made.encode(ask(LONG, TruncatePrompt(), max_tokens=0, echo=True, logprobs=0))
        assert len(scored.prompt_token_ids) == CONTEXT - 1
        (result,) = made.generate([scored])
        assert (result.prompt_tokens, result.dropped_prompt_tokens) == (CONTEXT - 1, len(LONG) - CONTEXT + 1)


def test_a_prompt_with_choices_is_truncated_to_leave_room_for_the_longest():
    choices = replace(ask(LONG, TruncatePrompt()), score_choices=ScoreChoices(options=("ab", "a" * 7)))
    with engine() as made:
        (result,) = made.generate([choices])
        assert result.error is None
        assert (result.prompt_tokens, result.dropped_prompt_tokens) == (CONTEXT - 8, len(LONG) - CONTEXT + 8)
        too_long = replace(choices, score_choices=ScoreChoices(options=("a" * CONTEXT,)))
        told = f"an option of choices has {CONTEXT} tokens and the context holds {CONTEXT}, which leaves no room"
        with pytest.raises(InvalidRequestError, match=told):
            made.encode(too_long)


def test_messages_are_truncated_after_the_template():
    messages = ({"role": "user", "content": LONG},)
    with engine() as made:
        encoded = made.encode(ask(None, TruncatePrompt(tokens=8), messages))
        assert list(encoded.prompt_token_ids) == encode(" more!a.")
        assert encoded.is_chat
        assert encoded.dropped_prompt_tokens == len(f"u.{LONG}!a.") - 8


def test_a_bos_token_stays_as_tokenizers_have_it():
    tok = with_bos()
    tok.backend_tokenizer.no_padding()
    tok.truncation_side = "left"
    for tokens in (2, 5, 9):
        with engine(tok) as made:
            encoded = made.encode(ask("hello there, world", TruncatePrompt(tokens=tokens)))
        expected = tok("hello there, world", truncation=True, max_length=tokens)["input_ids"]
        assert list(encoded.prompt_token_ids) == expected
        assert expected[0] == tok.bos_token_id


def test_no_room_for_a_prompt_is_told():
    with engine() as made:
        told = rf"truncate_prompt_tokens: max_tokens is {CONTEXT} and the context holds {CONTEXT}, which leaves no room"
        with pytest.raises(InvalidRequestError, match=told):
            made.encode(ask(LONG, TruncatePrompt(), max_tokens=CONTEXT))
        assert made.encode(ask(LONG, TruncatePrompt(), max_tokens=CONTEXT - 1)).prompt_token_ids == (encode(LONG)[-1],)


def test_a_prompt_that_is_truncated_has_a_largest_size_all_the_same(monkeypatch):
    monkeypatch.setattr(codec_module, "MAX_TRUNCATED_TOKENS", 50)
    with engine() as made:
        assert made.encode(ask(LONG[:50], TruncatePrompt(tokens=3))).dropped_prompt_tokens == 47
        with pytest.raises(PromptTooLongError, match="more than 50 tokens, the most that is truncated; shorten it"):
            made.encode(ask(LONG, TruncatePrompt(tokens=3)))
    assert prompt_truncation.MAX_TRUNCATED_TOKENS == 1_048_576


def test_the_fake_engine_truncates_words():
    made = FakeEngine(max_model_len=20)
    (encoded,) = [made.encode(ask("a b c d e", TruncatePrompt(tokens=2)))]
    made.add_request(encoded)
    results = []
    while made.has_unfinished():
        results += made.step()
    assert (results[0].output_text, results[0].prompt_tokens, results[0].dropped_prompt_tokens) == ("d e", 2, 3)
    assert made.encode(ask(" ".join("x" * 40), TruncatePrompt(), max_tokens=15)).dropped_prompt_tokens == 35


# Ends


def watch(*stop, **more):
    return StopStringWatch(TextCodec(tokenizer(), VOCAB_SIZE), stop, **more)


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
@pytest.mark.parametrize(
    ("min_tokens", "found"),
    [(0, (3, "a")), (2, (3, "a")), (3, (7, "abcde")), (6, (7, "abcde")), (7, None), (20, None)],
)
def test_a_stop_text_counts_where_a_token_behind_the_least_number_completes_it(min_tokens, found, chunk):
    """As with vLLM. The first ``bc`` takes three tokens, the second seven."""
    tokens, made, hit = encode("abcdebcx"), watch("bc", min_tokens=min_tokens), None
    for start in range(0, len(tokens), chunk):
        new = tokens[start : start + chunk]
        hit = hit or made.find(tokens[: start + len(new)], len(new))
    assert hit == found


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_stop_text_that_is_kept_ends_the_answer(is_chat):
    assert watch("de", "cd", "cde", keeps_stop=True, is_chat=is_chat).find(encode("abcdef"), 6) == (4, "abcd")
    assert watch("cde", "cd", "c", keeps_stop=True, is_chat=is_chat).find(encode("abcdef"), 6) == (3, "abc")
    assert watch("ef", keeps_stop=True, is_chat=is_chat).find(encode("abcdef"), 1) == (6, "abcdef")


def test_a_space_before_a_chat_answer_does_not_belong_to_it_where_a_stop_text_is_kept():
    tok = sentence_pieces()
    with closing(TextCodec(tok, len(tok))) as made:
        prompt = tok("hello", add_special_tokens=False)["input_ids"]
        output = tok("hello world text", add_special_tokens=False)["input_ids"][len(prompt) :]
        chat = StopStringWatch(made, [" text"], made.context(prompt), is_chat=True, keeps_stop=True)
        assert chat.find(output, len(output))[1] == "world text"
        plain = StopStringWatch(made, [" text"], made.context(prompt), keeps_stop=True)
        assert plain.find(output, len(output))[1] == " world text"


def test_an_answer_keeps_the_text_or_the_token_that_ended_it():
    with engine() as made:
        fields = {"max_tokens": 20, "logit_bias": {str(EOS): -100}}
        free = made.generate([ask("hello there", **fields)])[0]
        stop = free.output_text[4:7]
        cut = made.generate([ask("hello there", stop=stop, **fields)])[0]
        kept = made.generate([ask("hello there", stop=stop, include_stop_str_in_output=True, **fields)])[0]
        assert kept.output_text == free.output_text[: free.output_text.index(stop) + 3] == cut.output_text + stop
        assert kept.output_token_ids == cut.output_token_ids == tuple(encode(kept.output_text))
        token = free.output_token_ids[5]
        first = free.output_token_ids.index(token)
        cut = made.generate([ask("hello there", stop_token_ids=[token], **fields)])[0]
        kept = made.generate([ask("hello there", stop_token_ids=[token], include_stop_str_in_output=True, **fields)])[0]
        assert cut.output_token_ids == free.output_token_ids[:first]
        assert kept.output_token_ids == free.output_token_ids[: first + 1]
        assert kept.output_text == free.output_text[: first + 1]
        assert kept.finish_reason is FinishReason.STOP
        last = made.generate(
            [
                ask(
                    "hello there",
                    stop_token_ids=[token],
                    include_stop_str_in_output=True,
                    **{**fields, "max_tokens": first + 1},
                )
            ]
        )[0]
        assert (last.output_token_ids, last.finish_reason) == (kept.output_token_ids, FinishReason.STOP)


def test_the_model_s_own_end_is_never_kept():
    with engine() as made:
        made.generate([ask()])
        biased = {"logit_bias": {str(EOS): 100}, "include_stop_str_in_output": True, "min_tokens": 3, "max_tokens": 9}
        (result,) = made.generate([ask(**biased)])
        assert (result.completion_tokens, result.finish_reason) == (3, FinishReason.STOP)
        (named,) = made.generate([ask(stop_token_ids=[EOS], **biased)])
        assert named.output_token_ids == (*result.output_token_ids, EOS)
        assert named.output_text == result.output_text, "a special token has no text"


@pytest.mark.parametrize("min_tokens", [0, 4, 9, 30])
def test_stop_texts_and_least_tokens_play_together_in_the_engine(min_tokens):
    """Whatever is drafted: the answer ends at the first stop text behind the least number of tokens."""
    with engine() as made:
        fields = {"max_tokens": 30, "logit_bias": {str(EOS): -100}}
        free = made.generate([ask("abcabc", **fields)])[0]
        stop = [*{free.output_text[place] for place in (2, 5, 8)}]
        cut = made.generate([ask("abcabc", stop=stop, min_tokens=min_tokens, **fields)])[0]
    end = next((i for i, one in enumerate(free.output_text) if one in stop and i >= min_tokens), None)
    assert cut.output_text == free.output_text[:end]
    assert cut.finish_reason is (FinishReason.LENGTH if end is None else FinishReason.STOP)
