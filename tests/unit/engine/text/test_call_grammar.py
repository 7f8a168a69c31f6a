"""The grammar of an enforced call lets through what the template writes of valid calls, and nothing else."""

from __future__ import annotations

import json

import jsonschema
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helix_jobs.engine.chat_options import ToolUse
from helix_jobs.engine.text.call_forms import read_calls
from helix_jobs.engine.text.call_grammar import call_constraint
from helix_jobs.errors import InvalidRequestError
from tests.unit.engine.text.grammar_texts import passes

LOOK_UP = {
    "type": "object",
    "properties": {"q": {"$ref": "#/$defs/text"}, "n": {"type": "integer"}},
    "required": ["q"],
    "additionalProperties": False,
    "$defs": {"text": {"type": "string"}},
}
TOOLS = (
    {"type": "function", "function": {"name": "look_up", "parameters": LOOK_UP}},
    {"type": "function", "function": {"name": "wait"}},
)
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    made.add_tokens(list(MARKS[:2]))
    made.add_special_tokens({"additional_special_tokens": list(MARKS[2:])})
    return made


def added(tokenizer):
    return {str(token.content): number for number, token in tokenizer.added_tokens_decoder.items()}


def spelt(arguments):
    return json.dumps(arguments, ensure_ascii=False)


def hermes(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {spelt(arguments)}}}\n</tool_call>'


def bare(name, arguments):
    return f'{{"name": "{name}", "parameters": {spelt(arguments)}}}'


def nemo(name, arguments):
    return f'[TOOL_CALLS][{{"name": "{name}", "arguments": {spelt(arguments)}}}]'


def named(name, arguments):
    return f"[TOOL_CALLS]{name}[ARGS]{spelt(arguments)}"


FORMS = {"hermes": hermes, "llama": bare, "mistral_list": nemo, "mistral": named}


@pytest.mark.parametrize("form", FORMS)
def test_a_required_call_is_one_of_the_functions_with_valid_arguments(tokenizer, form):
    write = FORMS[form]
    constraint = call_constraint(ToolUse(tools=TOOLS, is_required=True), form, added(tokenizer))
    for name, arguments in (
        ("look_up", {"q": 'a "é"'}),
        ("look_up", {"q": "", "n": 3}),
        ("wait", {}),
        ("wait", {"a": 1}),
    ):
        text = write(name, arguments)
        assert passes(tokenizer, constraint, text), text
        ((call,),) = [read_calls(text, form, {"look_up": LOOK_UP, "wait": {}})[1]]
        assert json.loads(call.arguments) == arguments
    for text in (
        "Sure.", "", write("look_up", {}), write("look_up", {"q": 1}), write("look_up", {"q": "", "z": 1}),
        write("go", {}), write("wait", {}) + " and", write("wait", {})[:-1],
    ):  # fmt: skip
        assert not passes(tokenizer, constraint, text), text


@pytest.mark.parametrize("form", FORMS)
def test_a_named_function_is_called_once(tokenizer, form):
    write = FORMS[form]
    constraint = call_constraint(ToolUse(tools=TOOLS, only="wait"), form, added(tokenizer))
    assert passes(tokenizer, constraint, write("wait", {}))
    assert not passes(tokenizer, constraint, write("look_up", {"q": "a"}))
    assert not passes(tokenizer, constraint, write("wait", {}) + "\n" + write("wait", {}))


def test_several_calls_are_for_parallel_calling_alone(tokenizer):
    several = {
        "hermes": hermes("wait", {}) + "\n" + hermes("look_up", {"q": "a"}),
        "mistral": named("wait", {}) + named("wait", {}),
        "mistral_list": '[TOOL_CALLS][{"name": "wait", "arguments": {}}, {"name": "wait", "arguments": {}}]',
    }
    for form, text in several.items():
        many = ToolUse(tools=TOOLS, is_required=True)
        one = ToolUse(tools=TOOLS, is_required=True, is_parallel=False)
        assert passes(tokenizer, call_constraint(many, form, added(tokenizer)), text)
        assert not passes(tokenizer, call_constraint(one, form, added(tokenizer)), text)
    bare_twice = bare("wait", {}) + "; " + bare("wait", {})
    assert not passes(tokenizer, call_constraint(ToolUse(tools=TOOLS, is_required=True), "llama", {}), bare_twice)


def test_an_answer_may_end_behind_the_line_break_after_a_call(tokenizer):
    """Qwen2.5-Coder writes one, and would have to call until max_tokens otherwise."""
    constraint = call_constraint(ToolUse(tools=TOOLS, is_required=True), "hermes", added(tokenizer))
    text = hermes("wait", {}) + "\n"
    assert passes(tokenizer, constraint, text)
    assert read_calls(text, "hermes", {"wait": {}})[0] == ""
    assert not passes(tokenizer, constraint, text + "\n")
    alone = call_constraint(ToolUse(tools=TOOLS, only="wait"), "hermes", added(tokenizer))
    assert not passes(tokenizer, alone, text)


def tagged(name, arguments):
    """As the template of Qwen3-Coder writes a call."""
    values = {key: value if isinstance(value, str) else spelt(value) for key, value in arguments.items()}
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


PAINT = {
    "type": "object",
    "properties": {
        "what": {"type": "string"},
        "colour": {"type": "string", "enum": ["red", "a/b (c)"]},
        "code": {"type": "string", "minLength": 1, "maxLength": 3},
        "coats": {"type": "integer", "minimum": 1},
        "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}},
        "either": {"type": ["string", "null"]},
        "never": False,
    },
    "required": ["what", "any"],
    "$defs": {"note": {"type": "string"}},
}
PAINT_TOOLS = (*TOOLS, {"type": "function", "function": {"name": "paint", "parameters": PAINT}})


@pytest.mark.parametrize(
    "arguments",
    [
        {"what": "a door", "any": 1},
        {"what": "", "any": {"a": [None]}},
        {"what": "\n two\nlines\n\n", "any": True},
        {"what": "<parameter=x> </function> \u00e9 </parameter", "any": []},
        {"what": "12", "colour": "a/b (c)", "code": "\U0001f600/\n", "coats": 3, "any": "x"},
        {"what": "x", "notes": ["</parameter>", "\n</parameter>\n</function>"], "any": "</parameter>"},
        {"what": "x", "either": None, "any": 0},
    ],
)
def test_a_call_in_tags_is_let_through_and_read_as_it_was_meant(tokenizer, arguments):
    constraint = call_constraint(ToolUse(tools=PAINT_TOOLS, is_required=True), "xml", added(tokenizer))
    # A value that may be a text or something else is JSON, with quotation marks.
    shown = {
        name: json.dumps(value, ensure_ascii=False) if name in ("any", "either") else value
        for name, value in arguments.items()
    }
    text = tagged("paint", shown)
    assert passes(tokenizer, constraint, text), text
    words, (call,) = read_calls(text, "xml", {"paint": PAINT})
    assert (words, call.name, json.loads(call.arguments)) == ("", "paint", arguments)
    jsonschema.validate(json.loads(call.arguments), PAINT)


def test_calls_in_tags_may_be_several(tokenizer):
    constraint = call_constraint(ToolUse(tools=PAINT_TOOLS, is_required=True), "xml", added(tokenizer))
    alone = call_constraint(ToolUse(tools=PAINT_TOOLS, only="wait"), "xml", added(tokenizer))
    text = tagged("wait", {}) + "\n" + tagged("paint", {"what": "x", "any": 1})
    assert passes(tokenizer, constraint, text)
    assert passes(tokenizer, constraint, text + "\n")
    assert not passes(tokenizer, alone, text)
    assert passes(tokenizer, alone, tagged("wait", {}))


@pytest.mark.parametrize(
    "text",
    [
        "Sure.",
        tagged("paint", {"what": "x"}),
        tagged("paint", {"any": 1, "what": "x"}),
        tagged("paint", {"what": "x", "colour": "blue", "any": 1}),
        tagged("paint", {"what": "x", "code": "four", "any": 1}),
        tagged("paint", {"what": "x", "code": "", "any": 1}),
        tagged("paint", {"what": "x", "coats": 0, "any": 1}),
        tagged("paint", {"what": "x", "notes": [1], "any": 1}),
        tagged("paint", {"what": "x", "never": 1, "any": 1}),
        tagged("paint", {"what": "x", "other": 1, "any": 1}),
        tagged("paint", {"what": "x\n</parameter>\n<parameter=other>\nx", "any": 1}),
        tagged("go", {}),
        tagged("wait", {})[:-1],
    ],
)
def test_what_is_no_valid_call_in_tags_is_not_let_through(tokenizer, text):
    constraint = call_constraint(ToolUse(tools=PAINT_TOOLS, is_required=True), "xml", added(tokenizer))
    assert not passes(tokenizer, constraint, text)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"properties": {"q": {"type": "string", "pattern": "a+"}}}, "pattern of a text"),
        ({"properties": {"q": {"type": "string", "enum": ["</parameter>"]}}}, "a text that may have no value"),
        ({"properties": {"a b": {}}}, "a parameter's name with white space, quotation marks or angle brackets"),
        ({"minProperties": 1}, "the schema's minProperties"),
        ({"properties": {"q": {"$ref": "#/properties/q"}}}, "a \\$ref that points outside of \\$defs"),
    ],
)
def test_parameters_that_tags_cannot_be_held_to_are_named(schema, what):
    tools = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}},)
    with pytest.raises(InvalidRequestError, match=rf"tool_choice: f: {what} cannot be enforced"):
        call_constraint(ToolUse(tools=tools, is_required=True), "xml", {})


def test_a_parameters_name_cannot_be_written_in_escapes(tokenizer):
    """The library would take the name in escapes for another one, to which the schema of ``n`` does not apply."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tools = ({"type": "function", "function": {"name": "wait", "parameters": schema}},)
    constraint = call_constraint(ToolUse(tools=tools, is_required=True), "hermes", added(tokenizer))
    call = '<tool_call>\n{"name": "wait", "arguments": %s}\n</tool_call>'
    assert passes(tokenizer, constraint, call % '{"n": 1}')
    assert passes(tokenizer, constraint, call % '{"m": "a\\nb"}')
    assert not passes(tokenizer, constraint, call % '{"\\u006e": "x"}')
