"""What goes wrong with one request stays with that request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import EngineError, InvalidRequestError, OutOfMemoryError, PromptTooLongError
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.ragged_prompts import prompts
from tests.unit.engine.tiny_models import (
    VOCAB_SIZE,
    as_loaded,
    greedy_beside_each,
    reference_greedy,
    request,
    tiny_engine,
    tiny_model,
)


def text_request(name, **fields):
    return Request(request_id=name, seed=1, sampling_params=SamplingParams(max_tokens=5), **fields)


def test_too_long_prompts_fail_alone():
    model = tiny_model(seed=3)
    good = prompts(3)
    engine = tiny_engine(model, "same", max_model_len=64)
    long = text_request("long", prompt_token_ids=(5,) * 64)
    encoded = request("encoded", [5] * 64, max_tokens=4)  # by an engine with a longer context
    results = engine.generate([long, encoded, *(request(str(i), p, max_tokens=6) for i, p in enumerate(good))])
    for result in results[:2]:
        assert isinstance(result.error, PromptTooLongError)
        assert result.finish_reason is None
        assert "64 tokens" in str(result.error)
    outputs = [r.output_token_ids for r in results[2:]]
    assert outputs == greedy_beside_each(model, good, outputs, 6)
    with pytest.raises(PromptTooLongError, match="shorten the prompt"):
        engine.encode(long)


def test_the_longest_prompt_that_fits_yields_one_token():
    engine = tiny_engine(max_model_len=64)
    (result,) = engine.generate([request("a", [5] * 63, max_tokens=9, ignore_eos=True)])
    assert result.completion_tokens == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": ""}, "no tokens"),
        ({}, "exactly one"),
        ({"prompt": "a", "prompt_token_ids": (1,)}, "exactly one"),
        ({"prompt_token_ids": (1, VOCAB_SIZE)}, "outside the model's vocabulary"),
        ({"prompt_token_ids": ()}, "no tokens"),
        ({"messages": ({"role": "bad", "content": "secret words"},)}, "chat template refuses"),
    ],
)
def test_requests_that_cannot_be_encoded_fail_alone(fields, reason):
    engine = tiny_engine()
    bad, good = engine.generate([text_request("bad", **fields), text_request("good", prompt="abc")])
    assert isinstance(bad.error, InvalidRequestError)
    assert reason in str(bad.error)
    assert "secret" not in str(bad.error)
    assert good.error is None
    assert good.completion_tokens > 0


def test_a_request_that_fails_while_it_is_added_leaves_nothing_behind(monkeypatch):
    engine = tiny_engine()
    asked = Request(request_id="a", seed=1, prompt="abc", sampling_params=SamplingParams(max_tokens=5, stop=("zz",)))

    def fail(*_):
        raise UnicodeError("the tokenizer cannot decode it")

    with monkeypatch.context() as patched:
        patched.setattr(opened(engine).codec, "context", fail)
        with pytest.raises(UnicodeError):
            engine.add_request(engine.encode(asked))
    assert not engine.has_unfinished()
    (again,) = engine.generate([asked])
    assert again.error is None
    engine.check_integrity()


def test_messages_go_through_the_chat_template():
    engine = tiny_engine()
    chat = engine.encode(text_request("a", messages=({"role": "user", "content": "hi"},)))
    assert chat.prompt_token_ids == engine.encode(text_request("b", prompt="u.hi!a.")).prompt_token_ids
    assert chat.is_chat


def test_the_same_id_twice_is_refused():
    engine = tiny_engine()
    engine.add_request(request("a", [1, 2]))
    with pytest.raises(InvalidRequestError, match="already in the engine"):
        engine.add_request(request("a", [1, 2]))


def test_abort_waiting_running_and_unknown():
    engine = tiny_engine(max_batch_size=2)
    for name in ("a", "b", "c"):
        engine.add_request(request(name, [3, 4, 5], max_tokens=100, ignore_eos=True))
    engine.step()
    engine.step()
    for name in ("a", "c", "nobody"):
        engine.abort(name)
    results = {}
    while engine.has_unfinished():
        results.update((r.request_id, r) for r in engine.step())
    assert results["a"].finish_reason is FinishReason.ABORTED
    assert results["a"].completion_tokens > 0
    assert results["c"].finish_reason is FinishReason.ABORTED
    assert results["c"].completion_tokens == 0
    assert results["b"].finish_reason is FinishReason.LENGTH
    engine.check_integrity()
    assert opened(engine).is_empty


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_request_alone(temperature):
    """Token 30's embedding is NaN: a prompt that holds it poisons its own row only."""
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    engine = tiny_engine(model, "same", eos=())
    params = {"max_tokens": 12, "temperature": temperature, "stop_token_ids": (30,)}
    good = [request(str(i), [3, 5, 4 + i] * i, seed=i, **params) for i in range(1, 9)]
    expected = engine.generate(good)
    mixed = engine.generate(
        [request("bad", [3, 30, 4], **params), *good, request("worse", [30] * 9, **params), *late(good)]
    )
    for bad in (mixed[0], mixed[9]):
        assert isinstance(bad.error, EngineError)
        assert "not finite" in str(bad.error)
    answers = [r.output_token_ids for r in expected]
    assert [r.output_token_ids for r in mixed[1:9]] == answers
    assert [r.output_token_ids for r in mixed[10:]] == answers


def test_a_request_is_computed_again_in_clean_blocks_whatever_its_neighbours_leave():
    """Blocks are given up before anybody has seen whether what they hold is finite: here each one that is free is not.

    Plain products give the rows behind a sequence's last token a weight of zero, and zero times NaN is NaN.
    """
    model = tiny_model(seed=3)
    prompt = [3, 5, 4, 7, 9, 11]
    engine = tiny_engine(model, "none", eos=(), token_budget=4, num_blocks=30)
    cache = opened(engine).target.cache
    engine.add_request(request("good", prompt, max_tokens=9))
    results, again = [], 0
    while not results:
        for pool in (*cache.keys, *cache.values):
            # [num_blocks, num_kv_heads * block_size * width]
            pool.view(30, -1)[opened(engine).pool._free] = float("nan")
        results = engine.step()
        again = max(again, engine.counters().preemptions)
    assert again > 0, "its first blocks were not clean"
    assert results[0].error is None
    assert results[0].output_token_ids == reference_greedy(model, prompt, 9)


def late(requests):
    """The same requests again, behind the others: they reuse the blocks that the first ones leave."""
    return [replace(r, request_id=f"late-{r.request_id}") for r in requests]


def test_a_request_larger_than_the_cache_fails_alone():
    engine = tiny_engine(num_blocks=8, block_size=4)
    bad, good = engine.generate(
        [
            request("bad", [3, 4, 5], max_tokens=100, ignore_eos=True),
            request("good", [3, 4], max_tokens=5, ignore_eos=True),
        ]
    )
    assert isinstance(bad.error, OutOfMemoryError)
    assert "HELIX_KV_CACHE_MB" in str(bad.error)
    assert good.completion_tokens == 5


def test_times_and_counters_add_up():
    engine = tiny_engine(max_batch_size=3)
    results = engine.generate(request(str(i), p, max_tokens=9, ignore_eos=True) for i, p in enumerate(prompts(7)))
    counters = engine.counters()
    assert counters.completion_tokens == sum(r.completion_tokens for r in results) == 63
    assert counters.prompt_tokens == sum(r.prompt_tokens for r in results)
    assert counters.draft_tokens == sum(r.draft_tokens for r in results) > 0
    assert counters.accepted_tokens == sum(r.accepted_tokens for r in results)
    assert counters.sequence_steps / counters.steps <= 3
    for result in results:
        assert 0 <= result.ttft_seconds <= result.total_seconds
        assert result.ttft_seconds + result.decode_seconds <= result.total_seconds + 1e-6
        assert result.queue_seconds >= 0
    assert max(r.queue_seconds for r in results) > 0


def test_counters_move_with_every_step():
    """A run's figures are differences of snapshots, so a long answer counts where it happens, not where it ends."""
    engine = tiny_engine(draft="same")
    engine.add_request(request("a", [1, 2, 3], max_tokens=40, ignore_eos=True))
    before = engine.counters()
    for step in range(1, 5):
        engine.step()
        after = engine.counters()
        assert after.steps == step
        assert after.prompt_tokens == 3
        assert after.completion_tokens > before.completion_tokens
        assert after.draft_tokens == 4 * (step - 1)
        before = after
    assert before.accepted_tokens > 0


def test_close_frees_what_is_held():
    engine = tiny_engine()
    engine.add_request(request("a", [1, 2, 3], max_tokens=50))
    engine.step()
    engine.close()
    engine.close()
    assert not engine.has_unfinished()
    assert opened(engine).is_empty


@pytest.mark.parametrize("rows", [VOCAB_SIZE - 9, VOCAB_SIZE + 9])
def test_a_draft_may_have_fewer_or_more_vocabulary_rows(rows):
    target = tiny_model(seed=3)
    narrow = as_loaded("draft", tiny_model(seed=8, vocab_size=rows))
    texts = [[VOCAB_SIZE - 1, *p, VOCAB_SIZE - 2] for p in prompts(6)]
    results = tiny_engine(target, narrow).generate(request(str(i), p, max_tokens=12) for i, p in enumerate(texts))
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(target, texts, outputs, 12)
    wild = tiny_engine(target, narrow).generate(
        request(str(i), p, seed=i, max_tokens=12, temperature=2.0) for i, p in enumerate(texts)
    )
    assert all(r.error is None and max(r.output_token_ids, default=0) < VOCAB_SIZE for r in wild)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_cannot_fail_its_request(temperature):
    """Only rows that verification reaches must be finite: token 30 poisons the target's rows behind a wrong draft."""
    model = tiny_model(seed=3)
    model.model.embed_tokens.weight[30] = float("nan")
    requests = [
        request(str(i), p, seed=i, max_tokens=15, temperature=temperature, stop_token_ids=(30,))
        for i, p in enumerate([[t for t in p if t != 30] for p in prompts(20)])
    ]
    assert all(r.error is None for r in tiny_engine(model, "none").generate(requests))
    wrong = as_loaded("draft", tiny_model(seed=5))
    assert all(r.error is None for r in tiny_engine(model, wrong).generate(requests))


def test_the_cache_s_end_does_not_depend_on_the_draft():
    model = tiny_model(seed=3)
    prompt = prompts(1)[0]
    whole = reference_greedy(model, prompt, 40)
    for draft in ("none", "same"):
        engine = tiny_engine(model, draft, num_blocks=len(prompt) + 6, block_size=1)
        (result,) = engine.generate([request("a", prompt, max_tokens=60, ignore_eos=True, stop_token_ids=(whole[6],))])
        assert result.finish_reason is FinishReason.STOP
        assert result.output_token_ids == whole[: whole.index(whole[6])]


def test_a_prompt_larger_than_the_cache_stalls_nobody():
    engine = tiny_engine(num_blocks=12, block_size=4)
    for name, length in (("small", 4), ("huge", 100), ("other", 4)):
        engine.add_request(request(name, [5] * length, max_tokens=6, ignore_eos=True))
    first = engine.step()
    assert [r.request_id for r in first] == ["huge"]
    assert isinstance(first[0].error, OutOfMemoryError)
    assert {p.request_id for p in opened(engine).scheduler.running} == {"small", "other"}


@pytest.mark.parametrize("shortage", [MemoryError(), OSError(24, "Too many open files")], ids=repr)
@pytest.mark.parametrize("stop", [(), ("x",)], ids=["at the end", "at a stop string"])
def test_an_output_that_the_machine_cannot_decode_fails_nobody(monkeypatch, stop, shortage):
    engine = tiny_engine(max_batch_size=2)
    asked = request("a", [5, 6, 7], max_tokens=4, ignore_eos=True, stop=stop)

    def refuse(*_):
        raise shortage

    monkeypatch.setattr(opened(engine).codec, "decode", refuse)
    with pytest.raises(type(shortage)):
        engine.generate([asked])


@pytest.mark.parametrize("broken", ["token_text", "decode"])
def test_an_answer_that_cannot_be_read_at_its_end_fails_alone_with_all_its_choices(monkeypatch, broken):
    """Its text is read, and then its log probabilities' texts and the part before a stop string."""
    engine = tiny_engine(tiny_model(seed=3), "same")
    asked = {"max_tokens": 6, "temperature": 1.0, "ignore_eos": True}
    original, marked = getattr(opened(engine).codec, broken), 9

    def read(token_ids, *context):
        if token_ids == marked or (isinstance(token_ids, list) and len(token_ids) == 5):
            raise UnicodeError("a secret")
        return original(token_ids, *context)

    monkeypatch.setattr(opened(engine).codec, broken, read)
    bad = {"logprobs": 0, "logit_bias": ((marked, 100.0),)} if broken == "token_text" else {"max_tokens": 5}
    unread, good = engine.generate(
        [request("bad", prompts(1)[0], n=3, **{**asked, **bad}), request("good", prompts(1)[0], **asked)]
    )
    assert isinstance(unread.error, EngineError)
    assert "UnicodeError" in str(unread.error)
    assert "secret" not in str(unread.error)
    assert good.error is None
    assert good.completion_tokens == 6
    engine.check_integrity()
    assert not engine._choices
    assert opened(engine).is_empty
