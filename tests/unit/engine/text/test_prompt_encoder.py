"""Prompts are encoded in a process of their own, and nothing a model's files do there holds up the worker."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
from tokenizers import normalizers

from helix_jobs.engine.text import bounded_process, prompt_encoder
from helix_jobs.engine.text.bounded_process import BoundedProcess, ProcessEndedError, ProcessLimits
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.errors import EngineError, ExhaustedError, InvalidRequestError, ModelError, PromptTooLongError
from tests.unit.engine.text.bounded_prompts import SHORT, with_template
from tests.unit.engine.text.opened_encoder import end_answers, limit, opened, system_process
from tests.unit.engine.text.sample_templates import ENDLESS
from tests.unit.engine.text.small_tokenizers import byte_level_with_bos
from tests.unit.engine.tiny_models import VOCAB_SIZE, tokenizer
from tests.worker_box import comes_true, wait_until

QUESTION = [{"role": "user", "content": "hi"}]

LOOP = "{% if messages[0].content == 'loop' %}" + ENDLESS["nested loops"] + "{% endif %}{{ messages[0].content }}"
FAILURE = r"too much memory|of processor time|fails on the messages \(|writes more than|crashed \(SIG"


@pytest.fixture
def encoder():
    made = []

    def make(tok=None, limits=SHORT):
        made.append(PromptEncoder(tok or tokenizer(), limits))
        return made[-1]

    make.forget = made.clear
    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("text", ["hello", "hello there, world", "é€😀 \u2028\n", "a</s>b", " ", "x" * 3000])
def test_ids_are_those_of_the_tokenizer_itself(encoder, text):
    tok = byte_level_with_bos()
    made = encoder(tok)
    assert list(made.encode_prompt(text)) == tok(text)["input_ids"]
    chat = made.encode_messages([{"role": "user", "content": text + "!"}], {}).token_ids
    assert list(chat) == tok(f"<s>{text}!</s>", add_special_tokens=False)["input_ids"]
    assert chat[0] == 0
    assert 0 not in chat[1:]


def test_a_prompt_that_brings_its_bos_token_gets_no_second_one(encoder):
    made = encoder(byte_level_with_bos())
    assert made.encode_prompt("<s>hello") == made.encode_prompt("hello")
    assert made.encode_prompt("<s><s>hello")[:3] == (0, 0, made.encode_prompt("hello")[1])
    assert made.encode_prompt("a<s>hello").count(0) == 2


def test_more_ids_than_are_of_use_are_counted_and_not_sent(encoder):
    made = encoder()
    assert len(made.encode_prompt("abcd", most=4)) == 4
    with pytest.raises(PromptTooLongError, match=r"the context holds 5, one new token .*truncate_prompt"):
        made.encode_prompt("abcde", most=4)


def test_a_model_without_template_answers_prompts_alone(encoder):
    made = encoder(with_template(None))
    assert made.probe() is None
    assert made.encode_prompt("hi")
    with pytest.raises(InvalidRequestError, match="has no chat template; submit a prompt instead"):
        made.encode_messages(QUESTION, {})


def test_a_damaged_template_fails_the_messages_alone(encoder):
    made = encoder(with_template("{% for %}"))
    assert made.probe() is None
    assert made.encode_prompt("hi")
    with pytest.raises(InvalidRequestError, match=r"template is damaged \(TemplateSyntaxError\)"):
        made.encode_messages(QUESTION, {})


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_fails_the_request_alone(encoder, name):
    """It behaves while it is tried, and goes wrong with this question."""
    source = "{% if messages[0].content == 'hi!' %}" + ENDLESS[name] + "{% endif %}{{ messages[0].content }}"
    made = encoder(with_template(source))
    assert made.encode_messages(QUESTION, {})
    with pytest.raises(InvalidRequestError, match=FAILURE):
        made.encode_messages([{"role": "user", "content": "hi!"}], {})
    assert made.encode_messages(QUESTION, {})


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("source", [ENDLESS["nested loops"], "{{ 9 ** (9 ** 9) % 7 }}"])
def test_a_template_that_does_not_end_at_the_first_try_is_no_model(encoder, source):
    """The second is computed when the template is compiled."""
    with pytest.raises(ModelError, match=r"took more than 0\.5 s of processor time; use another model, or put a sound"):
        encoder(with_template(source)).probe()


def test_a_tokenizer_that_takes_all_memory_fails_the_request_alone(encoder):
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    made = encoder(tok)
    with pytest.raises(InvalidRequestError, match=FAILURE):
        made.encode_prompt("a")
    assert made.encode_prompt("b")


def test_a_tokenizer_that_panics_over_a_prompt_fails_the_request_alone(encoder):
    """Its process goes on: the next prompt waits for no other."""
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.Precompiled(bytes([4, *[0] * 8]))
    made = encoder(tok)
    made.probe()
    before = children(made)
    with pytest.raises(InvalidRequestError, match=r"tokenizer fails on the prompt \(LibraryPanicError\); change it"):
        made.encode_prompt("secret")
    with pytest.raises(InvalidRequestError, match=r"tokenizer fails on the prompt \(LibraryPanicError\); change it"):
        made.encode_messages(QUESTION, {})
    assert children(made) == before


@pytest.mark.thorough
def test_where_the_system_sets_no_limits_the_worker_watches(encoder):
    """As on Windows: the process does not bound itself."""
    grow = "{% if messages[0].content == 'grow' %}" + ENDLESS["doubling"] + "{% endif %}"
    made = encoder(with_template(grow + LOOP), replace(SHORT, bounds_itself=False))
    with pytest.raises(InvalidRequestError, match=r"took more than 0\.5 s of processor time"):
        made.encode_messages([{"role": "user", "content": "loop"}], {})
    with pytest.raises(InvalidRequestError, match=r"took more than (500 MB of memory|0\.5 s of processor time)"):
        made.encode_messages([{"role": "user", "content": "grow"}], {})
    assert made.encode_messages(QUESTION, {})


def test_a_process_that_somebody_stops_is_not_waited_for_for_ever(encoder):
    made = encoder()
    assert made.encode_prompt("hi")
    (stopped,) = opened(made).processes
    limit(stopped, ProcessLimits(wall_factor=2.0))
    (process,) = children(made)
    process.suspend()
    with pytest.raises(InvalidRequestError, match=r"did not answer for \d+ s"):
        made.encode_prompt("hi")
    assert made.encode_prompt("hi")


def test_a_process_that_somebody_kills_is_replaced(encoder):
    made = encoder()
    before = made.encode_prompt("hi")
    (first,) = children(made)
    first.kill()
    first.wait()
    assert made.encode_prompt("hi") == before
    (second,) = children(made)
    assert second.pid != first.pid


def test_a_process_that_is_killed_at_work_is_asked_again_and_then_given_up(encoder):
    made = encoder(with_template(LOOP), replace(SHORT, seconds=60.0))
    made.probe()
    ended = set()

    def are_killed():
        for process in children(made):
            if process.pid not in ended and process.cpu_times().user > 0.5:
                process.kill()
                ended.add(process.pid)
        return len(ended) >= 2

    killer = threading.Thread(target=comes_true, args=(are_killed, 100))
    killer.start()
    with pytest.raises(EngineError, match="ended with SIGKILL; `retry` runs it again"):
        made.encode_messages([{"role": "user", "content": "loop"}], {})
    killer.join()
    assert len(ended) == 2


def test_a_long_prompt_does_not_hold_up_the_others(encoder):
    """The one that does not end keeps its process to itself."""
    made = encoder(with_template(LOOP), replace(SHORT, seconds=20.0))
    made.probe()
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(made.encode_messages, [{"role": "user", "content": "loop"}], {})
        for _ in range(3):
            assert made.encode_messages(QUESTION, {})
        assert not endless.done()
        made.close()
        with pytest.raises(EngineError):
            endless.result(60)


def test_threads_get_each_its_own_answer(encoder):
    made = encoder()
    texts = ["".join(chr(97 + (i * j) % 26) for j in range(1 + i)) for i in range(60)]
    alone = [made.encode_prompt(text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(made.encode_prompt, texts)) == alone


def test_its_processes_end_with_it(encoder):
    made = encoder()
    made.encode_prompt("hi")
    (process,) = children(made)
    made.close()
    assert not process.is_running()
    assert made.encode_prompt("hi")
    (process,) = children(made)
    del made
    encoder.forget()
    gc.collect()
    process.wait(10)


def test_a_prompt_that_waits_for_a_process_ends_with_it_too(encoder, monkeypatch):
    """Else a worker that ends would start another process for a prompt of nobody's."""
    monkeypatch.setattr(prompt_encoder, "_PATIENCE", 0.05)
    made = encoder(with_template(LOOP), replace(SHORT, seconds=20.0, processes=1))
    made.probe()
    free = opened(made).free
    get, waiting = free.get, threading.Event()

    def get_late(timeout):
        waiting.set()
        return get(timeout=timeout)

    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(made.encode_messages, [{"role": "user", "content": "loop"}], {})
        wait_until(free.empty, "the process is not taken")
        free.get = get_late
        other = pool.submit(made.encode_prompt, "hi")
        assert waiting.wait(20)
        made.close()
        for one in (endless, other):
            with pytest.raises(EngineError, match="the process that tokenises prompts"):
                one.result(20)
    assert not opened(made).processes


def test_a_tokenizer_that_is_a_program_is_refused():
    class Slow:
        is_fast = False
        chat_template = None

    with pytest.raises(ModelError, match=r"is a program of its own \(a slow tokenizer\).*save it as tokenizer.json"):
        PromptEncoder(Slow())


@pytest.mark.parametrize(
    "refusal",
    [BlockingIOError(11, "Resource temporarily unavailable"), OSError(24, "Too many open files"), MemoryError()],
    ids=repr,
)
def test_a_machine_without_processes_is_not_the_request_s_fault(encoder, monkeypatch, refusal):
    made = encoder()

    def exhausted(*_, **__):
        raise refusal

    with monkeypatch.context() as patched:
        patched.setattr(bounded_process.subprocess, "Popen", exhausted)
        with pytest.raises(type(refusal)):
            made.encode_prompt("hi")
        if not isinstance(refusal, MemoryError):
            with pytest.raises(ExhaustedError, match="raise the limit"):
                made.probe()
    assert made.encode_prompt("hi")


def test_a_process_without_a_thread_to_talk_to_it_is_not_the_request_s_fault(encoder, monkeypatch):
    made = encoder()

    def exhausted(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(bounded_process.threading.Thread, "start", exhausted)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            made.encode_prompt("hi")
    assert made.encode_prompt("hi")


def test_where_a_second_process_cannot_be_started_the_first_is_waited_for(encoder, monkeypatch):
    made = encoder(with_template(LOOP), replace(SHORT, seconds=5.0))
    made.probe()

    def exhausted(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("helix_jobs.engine.text.prompt_encoder._PATIENCE", 0.05)
    (process,) = opened(made).processes
    taken = opened(made).take()
    assert taken is process
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patched:
        tried = threading.Event()
        patched.setattr(bounded_process.subprocess, "Popen", lambda *_, **__: (tried.set(), exhausted()))
        waiting = pool.submit(made.encode_messages, QUESTION, {})
        assert tried.wait(20)
        assert not waiting.done()
        opened(made).free.put(taken)
        assert waiting.result(20)


def test_a_process_that_cannot_be_looked_at_is_at_work_all_the_same(encoder, monkeypatch):
    """Its figures are files, and no descriptor is left to read them."""
    made = encoder(with_template(LOOP), replace(SHORT, seconds=0.7))
    made.probe()

    def exhausted(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bounded_process.psutil, "Process", exhausted)
    with pytest.raises(InvalidRequestError, match=FAILURE):
        made.encode_messages([{"role": "user", "content": "loop"}], {})


def test_its_environment_holds_no_settings(encoder, monkeypatch):
    monkeypatch.setenv("HELIX_DATABASE_URL", "postgresql://helix:secret@db/helix")
    made = encoder()
    made.encode_prompt("hi")
    (process,) = children(made)
    assert not [name for name in process.environ() if name.startswith("HELIX_")]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_process_that_is_gone_when_the_request_is_written_is_known_to_be_gone(size):
    """The request stands in the pipe's buffer then, and closing the pipe fails on it."""
    process = BoundedProcess("helix_jobs.engine.text.prompt_process", ProcessLimits())
    system_process(process).kill()
    system_process(process).wait(20)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(process.ask, b"x" * size + b"\n", 20.0)
        try:
            with pytest.raises(ProcessEndedError, match="SIGKILL"):
                asked.result(20)
        finally:
            end_answers(process)  # lets the thread end even if nothing else does
    assert not process.is_alive


def test_outputs_are_decoded_while_a_prompt_does_not_end(encoder):
    tok = with_template(LOOP)
    made = encoder(tok, replace(SHORT, seconds=20.0))
    codec = TextCodec(tok, VOCAB_SIZE, made)
    with ThreadPoolExecutor(1) as pool:
        made.probe()
        endless = pool.submit(made.encode_messages, [{"role": "user", "content": "loop"}], {})
        assert codec.decode([2, 3, 4]) == "abc"
        assert not endless.done()
        codec.close()
        with pytest.raises(EngineError):
            endless.result()


def children(made):
    """Living processes of this encoder; those of other tests may not have ended yet."""
    found = []
    for one in list(opened(made).processes):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(system_process(one).pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
