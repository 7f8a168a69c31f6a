from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from helix_jobs.bench import prompts
from helix_jobs.bench.prompt_file import read_prompts
from helix_jobs.bench.workloads import WORKLOADS, WorkloadOptions, build_requests, greedy
from helix_jobs.engine.request import EncodedRequest, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.errors import ConfigurationError, InputError, InvalidInputError, InvalidRequestError
from tests.unit.engine.tiny_models import VOCAB_SIZE, tokenizer

TOOL = {"type": "function", "function": {"name": "wait"}}
CODEC = TextCodec(tokenizer(), VOCAB_SIZE)


def encode(request):
    return CODEC.encode(request).token_ids


def build(name, variant=None, **options):
    kind = WORKLOADS[name]
    given = WorkloadOptions(**{"batch_size": 4, **options})
    return build_requests(kind, given, kind.variants[0] if variant is None else variant, encode)


@pytest.mark.parametrize("name", WORKLOADS)
def test_requests_are_the_same_each_time_and_all_different(name):
    made = build(name, sample=6, prompt_tokens=200)
    assert made == build(name, sample=6, prompt_tokens=200)
    assert [request.request_id for request in made] == [str(i) for i in range(6)]
    assert len({request.prompt_token_ids for request in made}) == 6
    assert all(isinstance(request, EncodedRequest) for request in made)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "decode"])
def test_defaults_are_those_of_the_workload(name):
    kind = WORKLOADS[name]
    made = build(name, prompt_tokens=30)
    assert len(made) == kind.requests
    assert {request.sampling_params for request in made} == {SamplingParams(max_tokens=kind.max_tokens)}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_decode_fills_the_batch_with_prompts_of_one_length_and_no_natural_end(batch_size):
    made = build("decode", batch_size=batch_size, prompt_tokens=24, max_tokens=9)
    assert [len(request.prompt_token_ids) for request in made] == [24] * batch_size
    assert {request.sampling_params for request in made} == {SamplingParams(max_tokens=9, ignore_eos=True)}


def common(requests):
    columns = zip(*(request.prompt_token_ids for request in requests), strict=False)
    return next(i for i, column in enumerate(columns) if len(set(column)) > 1)


def test_a_shared_prefix_is_shared_and_a_distinct_one_is_not():
    shared, distinct = (
        build("shared-prefix", variant, sample=12, prompt_tokens=100) for variant in ("shared", "distinct")
    )
    assert 100 <= common(shared) < 130
    assert common(distinct) < 10
    longer = [len(d.prompt_token_ids) - len(s.prompt_token_ids) for s, d in zip(shared, distinct, strict=True)]
    assert all(0 < number < 70 for number in longer), "the same work but for a name"


@pytest.mark.parametrize("length", [60, 200, 1000])
def test_long_prompts_reach_their_length_by_less_than_a_word(length):
    for request in build("long", sample=3, prompt_tokens=length):
        assert length <= len(request.prompt_token_ids) < length + 20


def test_bulk_samples_as_the_seed_says():
    seven, eight = (build("bulk", sample=10, seed=seed) for seed in (7, 8))
    assert seven != eight
    asked = [prompts.task(i) for i in random.Random(7).sample(range(prompts.NUM_TASKS), 10)]
    params = SamplingParams()
    texts = [
        encode(Request(request_id="", sampling_params=params, seed=0, messages=({"role": "user", "content": task},)))
        for task in asked
    ]
    assert [request.prompt_token_ids for request in seven] == texts


def test_the_built_in_tasks_are_distinct_until_they_repeat():
    tasks = [prompts.task(i) for i in range(2 * prompts.NUM_TASKS)]
    assert len(set(tasks[: prompts.NUM_TASKS])) == prompts.NUM_TASKS
    assert tasks[prompts.NUM_TASKS :] == tasks[: prompts.NUM_TASKS]


def test_text_has_the_words_asked_for_and_grows_at_its_end():
    assert [len(prompts.text(3, n).split()) for n in (1, 10, 200)] == [1, 10, 200]
    assert prompts.text(3, 200).startswith(prompts.text(3, 150))


def test_more_prompts_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"--sample 1000 is more than the 192 prompts"):
        build("bulk", sample=1000)


def test_a_model_without_a_chat_template_is_named_with_the_request():
    def refuse(_):
        raise InvalidRequestError("the model has no chat template")

    with pytest.raises(ConfigurationError, match="request 0 of the workload: the model has no chat template"):
        build_requests(WORKLOADS["bulk"], WorkloadOptions(batch_size=1, sample=1), "", refuse)


def test_a_tokenizer_that_makes_nothing_of_text_does_not_hang():
    with pytest.raises(ConfigurationError, match="makes no tokens"):
        build_requests(WORKLOADS["long"], WorkloadOptions(batch_size=1, sample=1), "", lambda _: (1,))


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


FORMS = (
    {"prompt": "plain", "max_tokens": 5, "temperature": 0.5},
    {"messages": [{"role": "user", "content": "chat"}]},
    {"question_id": 81, "category": "writing", "turns": ["first turn", "second turn"]},
    {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "openai"}},
)


def test_a_file_may_hold_every_form_of_line(tmp_path):
    plain, chat, turns, openai = read_prompts(write(tmp_path / "p.jsonl", *FORMS), max_tokens=40)
    assert (plain.prompt, plain.sampling_params) == ("plain", SamplingParams(max_tokens=5, temperature=0.5))
    assert chat.messages == ({"role": "user", "content": "chat"},)
    assert turns.messages == ({"role": "user", "content": "first turn"},)
    assert (openai.prompt, openai.sampling_params.max_tokens) == ("openai", 40)


def test_a_limit_given_holds_for_every_line(tmp_path):
    made = build("bulk", file=write(tmp_path / "p.jsonl", *FORMS), max_tokens=3)
    assert [request.sampling_params.max_tokens for request in made] == [3] * 4


def test_a_sample_of_a_file_is_that_of_its_lines(tmp_path):
    file = write(tmp_path / "p.jsonl", *({"prompt": f"number {i:03}"} for i in range(50)))
    made = build("bulk", file=file, sample=5, seed=3)
    expected = random.Random(3).sample([f"number {i:03}" for i in range(50)], 5)
    decode = tokenizer().decode
    assert [decode(request.prompt_token_ids) for request in made] == [
        decode(tokenizer()(text)["input_ids"]) for text in expected
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["", "nope"], "line 2"),
        ([{"turns": []}], "line 1: turns"),
        ([{"turns": "text"}], "line 1: turns"),
        ([{"prompt": "fine"}, {"promt": "x"}], "1 bad lines .line 2: promt"),
        ([{"prompt": "a", "bad_words": ["x"]}], "line 1: bad_words: is nothing that a benchmark does; remove it"),
        ([{"prompt": "a", "truncate_prompt_tokens": 5}], "line 1: truncate_prompt: is nothing that a benchmark does"),
        ([{"prompt": "a", "choices": ["x"]}], "line 1: choices: is nothing that a benchmark does; remove it"),
        ([{"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}], "line 1: max_tokens: is nothing that"),
        ([{"prompt": "a", "guided_regex": "a+"}], "line 1: response_format: is nothing that a benchmark does"),
        ([{"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}], "line 1: tools: is nothing that a bench"),
        (
            [{"messages": [{"role": "user", "content": "a"}], "max_reasoning_tokens": 5}],
            "line 1: max_reasoning_tokens: is nothing that a benchmark does",
        ),
        ([{"prompt": "a", "n": 2, "temperature": 1}], "line 1: n: is nothing that a benchmark does; remove it"),
        ([], "holds no prompt"),
        ([""], "holds no prompt"),
    ],
)
def test_bad_files_are_refused_with_the_line(lines, said, tmp_path):
    with pytest.raises(InvalidInputError, match=said):
        read_prompts(write(tmp_path / "p.jsonl", *lines), max_tokens=8)


def test_greedy_keeps_nothing_but_the_limit_and_the_end():
    (request,) = build("decode", batch_size=1, prompt_tokens=8, max_tokens=9)
    params = replace(request.sampling_params, temperature=1.0, top_k=5, stop=("x",), stop_token_ids=(3,))
    assert greedy(replace(request, sampling_params=params)) == request
