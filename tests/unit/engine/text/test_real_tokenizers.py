"""Real tokenizers and templates, without their weights: chats through a small random model.

They are read from the folder that ``HELIX_TEST_TOKENIZERS`` names; docs/development.md says where they come from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from helix_jobs.engine.chat_options import ReasoningOptions, ToolUse
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModels
from helix_jobs.engine.reasoning import place_of
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from tests.unit.engine.tiny_models import as_loaded, tiny_model

pytestmark = pytest.mark.slow

FOLDER = Path(os.environ.get("HELIX_TEST_TOKENIZERS", "nowhere"))
# Part of a folder's name -> the form of thinking and of calls that the model has.
KNOWN = {
    "qwen3": ("think", "hermes"),
    "mistral_nemo": (None, "mistral_list"),
    "llama3_1": (None, None),
    "gemma3": (None, None),
    "deepseek_v3": (None, "deepseek"),
    "gptoss": ("harmony", "harmony"),
}
QUESTION = ({"role": "user", "content": "Name a <think> river é"},)
TOOLS = ToolUse(tools=({"type": "function", "function": {"name": "look_up", "description": "d", "parameters": {}}},))


def packages():
    return sorted({path.parent for path in FOLDER.glob("**/tokenizer.json") if "node_modules" not in path.parts})


class Model:
    """A tiny model with a real tokenizer."""

    def __init__(self, folder):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        special = {}
        for name in ("bos_token", "eos_token"):
            token = config.get(name)
            special[name] = token["content"] if isinstance(token, dict) else token
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
        beside = folder / "chat_template.jinja"
        self.tokenizer.chat_template = beside.read_text() if beside.exists() else config.get("chat_template")
        self.prompts = PromptEncoder(self.tokenizer)
        found = self.prompts.probe()
        self.forms = chat_forms(self.tokenizer, found)
        size = len(self.tokenizer)
        target = as_loaded("tiny", tiny_model(vocab_size=size, hidden_size=16, num_attention_heads=2, head_dim=8))
        self.engine = Engine(
            LoadedModels(
                target=target,
                draft=target,
                tokenizer=self.tokenizer,
                eos_token_ids=frozenset({self.tokenizer.eos_token_id}),
                vocab_size=size,
                max_context=2048,
                turn_end_ids=self.forms.turn_ends,
                chat_forms=self.forms,
                prompts=self.prompts,
            ),
            EngineConfig(speculation=SpeculationConfig(depth=3)),
            CacheConfig(num_blocks=400, block_size=16),
        )

    def ask(self, **fields):
        given = {"messages": QUESTION, "sampling_params": SamplingParams(max_tokens=24), **fields}
        (result,) = self.engine.generate([Request(request_id="a", seed=1, **given)])
        return result


@pytest.fixture(scope="module", params=packages() or [None], ids=str)
def model(request):
    if request.param is None:
        pytest.skip("HELIX_TEST_TOKENIZERS names no folder with a tokenizer.json")
    made = Model(request.param)
    if made.tokenizer.chat_template is None:
        pytest.skip("it has no chat template")
    made.name = str(request.param)
    yield made
    made.engine.close()


def test_its_forms_are_known(model):
    for name, (thinking, calls) in KNOWN.items():
        if name in model.name:
            found = model.forms.reasoning
            assert (found.name if found else None, model.forms.calls) == (thinking, calls)
            return
    pytest.skip("no form is written down for it")


def test_its_prompt_is_transformers_own(model):
    expected = model.tokenizer.apply_chat_template(list(QUESTION), add_generation_prompt=True, tokenize=False)
    encoded = model.prompts.encode_messages(QUESTION, {})
    assert list(encoded.token_ids) == model.tokenizer.encode(expected, add_special_tokens=False)
    beginning = [*QUESTION, {"role": "assistant", "content": "The river"}]
    text = model.tokenizer.apply_chat_template(beginning, continue_final_message=True, tokenize=False)
    continued = model.prompts.encode_messages(beginning, {}, continues=True)
    assert list(continued.token_ids) == model.tokenizer.encode(text, add_special_tokens=False)


def test_a_random_models_answer_comes_in_its_parts(model):
    result = model.ask()
    assert result.error is None
    assert (
        model.ask(messages=(*QUESTION, {"role": "assistant", "content": "A"}), continue_final_message=True).error
        is None
    )


def test_its_thinking_keeps_a_budget(model):
    result = model.ask(reasoning=ReasoningOptions(max_tokens=5))
    if model.forms.reasoning is None:
        assert "marks no thinking" in str(result.error)
        return
    assert result.error is None
    encoded = model.engine.encode(
        Request(
            request_id="b",
            seed=1,
            messages=QUESTION,
            sampling_params=SamplingParams(),
            reasoning=ReasoningOptions(max_tokens=5),
        )
    )
    if encoded.reasoning is not None:
        place = place_of(result.output_token_ids, encoded.reasoning)
        assert place.stop - place.start <= 5


def test_a_call_that_is_demanded_is_valid(model):
    if model.forms.calls is None or not model.forms.shows_tools:
        pytest.skip("it writes no calls, or does not show functions")
    schema = {"type": "object", "properties": {"q": {"enum": ["a \u00e9", "b"]}}, "required": ["q"],
              "additionalProperties": False}  # fmt: skip
    function = {"name": "look_up", "description": "d", "parameters": schema}
    tools = ToolUse(tools=({"type": "function", "function": function},), only="look_up")
    reasoning = None if model.forms.reasoning is None else ReasoningOptions(max_tokens=5)
    result = model.ask(tools=tools, reasoning=reasoning, sampling_params=SamplingParams(max_tokens=200))
    assert (result.error, result.is_valid) == (None, True)
    (call,) = result.tool_calls
    assert json.loads(call["function"]["arguments"]) in ({"q": "a \u00e9"}, {"q": "b"})
    assert result.output_text == ""


def test_its_tools_are_shown_or_refused(model):
    result = model.ask(tools=TOOLS)
    if model.forms.calls is None or not model.forms.shows_tools:
        assert str(result.error).startswith("tools: ")
    else:
        assert result.error is None
