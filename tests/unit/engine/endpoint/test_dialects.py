"""What each kind of server is asked, and what is refused before it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.endpoint.llama_server_dialect import LlamaServerDialect
from helix_jobs.engine.endpoint.openai_dialect import LlamaCppPythonDialect, OpenAIDialect
from helix_jobs.engine.endpoint.piece import UnreadableAnswerError
from helix_jobs.engine.endpoint.vllm_dialect import VllmDialect
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import InvalidFieldError
from tests.unit.engine.endpoint.served import ask, ids_of, prompt
from tests.unit.engine.tiny_settings import EOS

DIALECTS = (VllmDialect(), LlamaServerDialect(), LlamaCppPythonDialect(), OpenAIDialect())
SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 2**40 + 3, "presence_penalty": 0.5}
NARROWED: dict[str, Any] = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2}
# A value other than the default of every sampling field that a server may not have.
FIELDS: dict[str, Any] = {
    "min_tokens": 2,
    "top_k": 7,
    "min_p": 0.1,
    "stop_token_ids": (3,),
    "repetition_penalty": 1.2,
    "bad_words": ("bad",),
    "allowed_token_ids": (3, 4),
    "ignore_eos": True,
    "logprobs": 2,
    "prompt_logprobs": 1,
}


@pytest.mark.thorough(fast=16)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_kept_or_refused_by_name(make_server: Any, open_engine: Any, dialect: Any, field: str) -> None:
    kind = {"vLLM": "vllm", "OpenAI-compatible server": "openai"}.get(dialect.name, dialect.name)
    server = make_server(kind)
    engine = open_engine(server)
    if field in dialect.fields:
        engine.encode(prompt("abc", **{field: FIELDS[field]}))
        return
    with pytest.raises(InvalidFieldError, match=f"^{field}: {dialect.name} cannot") as refused:
        engine.encode(prompt("abc", **{field: FIELDS[field]}))
    assert refused.value.field == field
    assert "Helix's own engine" in refused.value.remedy
    assert not server.asked


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"adapter": "polite"}, "adapter"),
        ({"score_choices": ScoreChoices(options=("yes", "no"))}, "choices"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"constraint": Constraint("grammar", 'start: "a"')}, "constraint"),
        ({"reasoning": ReasoningOptions(max_tokens=5)}, "reasoning"),
    ],
)
def test_what_no_server_does_for_helix_is_refused(
    make_server: Any, open_engine: Any, fields: dict[str, Any], name: str
) -> None:
    server = make_server()
    with pytest.raises(InvalidFieldError) as refused:
        open_engine(server).encode(prompt("abc", **fields))
    assert refused.value.field == name
    assert not server.asked


def asked_of(kind: str, make_server: Any, open_engine: Any, **fields: Any) -> dict[str, Any]:
    server = make_server(kind)
    assert ask(open_engine(server), "abc", **fields).error is None
    (body,) = server.asked
    assert body.pop("stream") is True
    assert body.pop("model") == "served/model"
    return dict(body)


def test_vllm_is_asked_for_all_that_shapes_the_answer(make_server: Any, open_engine: Any) -> None:
    more = {"bad_words": ("bad",), "allowed_token_ids": (9, 4), "logit_bias": {"3": 1.5}, "logprobs": 2}
    body = asked_of("vllm", make_server, open_engine, **SAMPLED, **NARROWED, **more, min_tokens=1)
    assert body == {
        "prompt": ids_of("abc"),
        "max_tokens": 50,
        "min_tokens": 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.2,
        "stop_token_ids": [EOS],
        "ignore_eos": True,
        "seed": 5,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "logit_bias": {"3": 1.5},
        "bad_words": ["bad"],
        "allowed_token_ids": [9, 4],
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
    }


def test_llama_server_is_asked_for_all_that_shapes_the_answer(make_server: Any, open_engine: Any) -> None:
    more = {"logit_bias": {"3": 1.5}, "logprobs": 0}
    body = asked_of("llama-server", make_server, open_engine, **SAMPLED, **NARROWED, **more)
    assert body == {
        "prompt": ids_of("abc"),
        "n_predict": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.0,
        "repeat_penalty": 1.2,
        "repeat_last_n": 53,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "cache_prompt": True,
        "return_tokens": True,
        "seed": 5,
        "logit_bias": [[3, 1.5]],
        "n_probs": 1,
    }


def test_other_servers_are_asked_in_text(make_server: Any, open_engine: Any) -> None:
    plain = {
        "prompt": "abc",
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.0,
        "seed": 5,
        "stop": ["!", "?", "x", "y"],
    }
    stop = ("!", "?", "x", "y", "z")
    assert asked_of("openai", make_server, open_engine, **SAMPLED, stop=stop) == plain
    narrowed = asked_of("llama-cpp-python", make_server, open_engine, **SAMPLED, **NARROWED, stop=stop)
    assert narrowed == {**plain, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2}


def test_a_greedy_answer_needs_no_seed(make_server: Any, open_engine: Any) -> None:
    for kind in ("vllm", "llama-server", "llama-cpp-python", "openai"):
        body = asked_of(kind, make_server, open_engine)
        assert "seed" not in body
        assert body["temperature"] == 0.0


def test_the_context_bounds_the_answer(make_server: Any, open_engine: Any) -> None:
    """vLLM refuses a request for more tokens than its context holds."""
    server = make_server()
    ask(open_engine(server), "a" * 190, max_tokens=50)
    assert server.asked[0]["max_tokens"] == 10


SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("dialect", "constraint", "form"),
    [
        (VllmDialect(), Constraint("json_schema", SCHEMA), {"structured_outputs": {"json": json.loads(SCHEMA)}}),
        (VllmDialect(), Constraint("json_object"), {"structured_outputs": {"json_object": True}}),
        (VllmDialect(), Constraint("regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        (LlamaServerDialect(), Constraint("json_schema", SCHEMA), {"json_schema": json.loads(SCHEMA)}),
        (LlamaServerDialect(), Constraint("json_object"), {"json_schema": {"type": "object"}}),
        (
            LlamaServerDialect(),
            Constraint("choice", '["a b", "\\"\\\\\\n\U0001f600"]'),
            {"grammar": 'root ::= "a b" | "\\U00000022\\U0000005c\\U0000000a\\U0001f600"'},
        ),
    ],
)
def test_a_form_is_told_in_the_server_s_own_words(
    make_server: Any, open_engine: Any, dialect: Any, constraint: Constraint, form: dict[str, Any]
) -> None:
    kind = "vllm" if dialect.name == "vLLM" else dialect.name
    server = make_server(kind)
    ask(open_engine(server), "abc", constraint=constraint)
    assert {name: server.asked[0].get(name) for name in form} == form


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.name)
def test_what_no_such_server_sends_is_told(dialect: Any) -> None:
    good = {"choices": [{"text": "a", "token_ids": [1], "finish_reason": None}], "stop": False, "tokens": [1]}
    dialect.read(good)
    for wrong in (
        {},
        {"choices": 1},
        {"choices": [1, 2]},
        {"choices": [{"text": 5, "token_ids": ["a"]}], "stop": False, "tokens": "abc"},
        {"choices": [{"text": {}, "token_ids": [-1]}], "stop": False, "tokens": [True]},
        {"choices": [{"text": "", "finish_reason": "abort"}], "stop": True, "stop_type": "none"},
    ):
        with pytest.raises(UnreadableAnswerError):
            dialect.read(wrong)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [None]},
        {"tokens": ["token_id:5"], "token_logprobs": [None], "top_logprobs": [None]},
        {"tokens": ["token_id:5"], "token_logprobs": [], "top_logprobs": []},
        {"tokens": ["token_id:99999999999999999999"], "token_logprobs": [-1.0]},
        [1],
    ],
)
def test_log_probabilities_without_ids_are_told(logprobs: Any) -> None:
    with pytest.raises(UnreadableAnswerError):
        VllmDialect().read({"choices": [{"text": "a", "token_ids": [1], "logprobs": logprobs, "finish_reason": None}]})
