"""Calls that an engine is made to write: valid, the same with drafts, and behind a thinking within its budget."""

from __future__ import annotations

import json

import jsonschema
import pytest

from helix_jobs.engine.chat_options import ReasoningOptions, ToolUse
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModels
from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from tests.unit.engine.text.call_models import CALL_MODELS, byte_tokenizer
from tests.unit.engine.tiny_models import as_loaded, tiny_model

SCHEMA = {
    "type": "object",
    "properties": {
        "river": {"type": "string", "enum": ["Elbe", "Oder"]},
        "depth": {"type": "integer", "minimum": 1, "maximum": 9},
        "sure": {"type": "boolean"},
    },
    "required": ["river", "depth", "sure"],
    "additionalProperties": False,
}
FUNCTIONS = tuple(
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("look_up", "forget")
)
QUESTION = ({"role": "user", "content": "How long is the Elbe?"},)


def engine_of(kind, depth):
    template, tokens, special = CALL_MODELS[kind]
    tokenizer = byte_tokenizer(template, tokens, special)
    prompts = PromptEncoder(tokenizer)
    forms = chat_forms(tokenizer, prompts.probe())
    target, draft = (
        as_loaded(name, tiny_model(seed=seed, vocab_size=len(tokenizer), max_position_embeddings=2048))
        for name, seed in (("target", 0), ("draft", 1))
    )
    models = LoadedModels(
        target=target,
        draft=draft if depth else None,
        tokenizer=tokenizer,
        eos_token_ids=frozenset({tokenizer.eos_token_id}),
        vocab_size=len(tokenizer),
        max_context=2048,
        turn_end_ids=forms.turn_ends,
        chat_forms=forms,
        prompts=prompts,
    )
    return Engine(
        models,
        EngineConfig(speculation=SpeculationConfig(depth=max(1, depth)), max_batch_size=3),
        CacheConfig(num_blocks=600, block_size=16),
    )


def asked(name, *, budget=None, temperature=0.0, **tools):
    return Request(
        request_id=name,
        seed=7,
        messages=QUESTION,
        sampling_params=SamplingParams(max_tokens=400, temperature=temperature),
        tools=ToolUse(tools=FUNCTIONS, **tools),
        reasoning=None if budget is None else ReasoningOptions(max_tokens=budget),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", CALL_MODELS)
def test_a_call_that_is_demanded_is_valid_and_the_same_with_drafts(kind):
    outputs = []
    for depth in (0, 4):
        engine = engine_of(kind, depth)
        try:
            thinks = engine.encode(asked("x")).reasoning is not None
            budget = 5 if thinks else None
            requests = [
                asked("named", budget=budget, only="forget"),
                asked("any", budget=budget, is_required=True, is_parallel=False),
                asked("sampled", budget=0 if thinks else None, temperature=1.0, only="look_up"),
            ]
            results = engine.generate(requests)
        finally:
            engine.close()
        for request, result in zip(requests, results, strict=True):
            assert result.error is None
            assert result.finish_reason is FinishReason.TOOL_CALLS, result.output_text
            assert result.is_valid
            assert result.tool_calls is not None
            (call,) = result.tool_calls
            assert call["function"]["name"] in ("look_up", "forget")
            assert request.tools.only in (None, call["function"]["name"])
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
            assert result.output_text == ""
            assert (result.reasoning_tokens or 0) <= (budget or 0)
        outputs.append([result.output_token_ids for result in results[:2]])
    assert outputs[0] == outputs[1]


@pytest.mark.thorough
def test_a_budget_of_a_model_with_channels_closes_its_thinking_and_leaves_it_the_choice():
    engine = engine_of("harmony", 3)
    try:
        for tools in (None, {"is_required": False}):
            request = asked("x", budget=3, **(tools or {}))
            if tools is None:
                request = Request(
                    request_id="x",
                    seed=1,
                    messages=QUESTION,
                    sampling_params=SamplingParams(max_tokens=60),
                    reasoning=ReasoningOptions(max_tokens=3),
                )
            form = engine.encode(request).reasoning
            assert form is not None
            assert len(form.closings) == (1 if tools is None else 2)
            (result,) = engine.generate([request])
            assert result.error is None
            assert (result.reasoning_tokens or 0) <= 3
    finally:
        engine.close()
