"""Each form of calls: what a template writes is recognised, read back, and let through where a call is demanded."""

from __future__ import annotations

import functools
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.chat_options import ToolUse
from helix_jobs.engine.text.added_tokens import added_tokens
from helix_jobs.engine.text.call_forms import FORMS, read_calls
from helix_jobs.engine.text.call_grammar import call_constraint
from helix_jobs.engine.text.chat_template import ChatTemplate
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from helix_jobs.errors import InvalidRequestError
from tests.unit.engine.text.call_models import byte_tokenizer
from tests.unit.engine.text.call_templates import CALL_TEMPLATES, MARKS
from tests.unit.engine.text.chat_templates import GEMMA_CALL
from tests.unit.engine.text.grammar_texts import passes

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {**CALL_TEMPLATES, "gemma": GEMMA_CALL}
TOKENS = {**MARKS, "gemma": ("<|tool_call>", "<tool_call|>", '<|"|>')}
PAINT = {
    "type": "object",
    "properties": {
        "coats": {"type": "integer", "minimum": 1, "maximum": 12},
        "colour": {"type": "string", "enum": ["red", "a/b (c)", "it's"]},
        "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}, "maxItems": 2},
        "sizes": {"type": "object", "properties": {"high": {"type": "number"}, "wide": {"type": "number"}},
                  "required": ["high"], "additionalProperties": False},
        "sure": {"type": ["boolean", "null"]},
        "what": {"type": "string", "maxLength": 9},
    },
    "required": ["what"],
    "additionalProperties": False,
    "$defs": {"note": {"type": "string", "minLength": 1}},
}  # fmt: skip
PARAMETERS = {"paint": PAINT, "wait": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = tuple({"type": "function", "function": {"name": n, "parameters": p}} for n, p in PARAMETERS.items())
VALID = (
    {"what": "a door"},
    {"what": ""},
    {"coats": 12, "what": "\u00e9 \U0001f600"},
    {"colour": "it's", "what": "x"},
    {"colour": "a/b (c)", "sizes": {"high": -2.5, "wide": 3}, "what": "{}[]"},
    {"notes": ["a, b", "'\"\\"], "sizes": {"high": 1}, "sure": None, "what": "1"},
    {"coats": 1, "colour": "red", "notes": [], "sizes": {"high": 0.5}, "sure": True, "what": "true"},
)
INVALID = (
    {},
    {"what": "more than nine"},
    {"coats": 0, "what": "x"},
    {"coats": 1.5, "what": "x"},
    {"colour": "blue", "what": "x"},
    {"notes": ["a", "b", "c"], "what": "x"},
    {"notes": [""], "what": "x"},
    {"notes": [1], "what": "x"},
    {"sizes": {"wide": 1}, "what": "x"},
    {"sizes": {"high": "1"}, "what": "x"},
    {"sure": 1, "what": "x"},
    {"other": 1, "what": "x"},
)


@functools.cache
def template(form):
    return ChatTemplate(TEMPLATES[form], SPECIAL)


@functools.cache
def tokenizer(form, *, has_tokens):
    return byte_tokenizer(None, (), TOKENS[form] if has_tokens else ())


@functools.cache
def constraint(form, *, has_tokens, **tools):
    return call_constraint(ToolUse(tools=TOOLS, **tools), form, added_tokens(tokenizer(form, has_tokens=has_tokens)))


def written(form, *calls):
    """What the template writes of calls, alone."""
    listed = [
        {"id": f"call{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(calls)
    ]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": listed}]
    shown = template(form).render(messages, {}).text
    if form == "gemma":
        return shown.partition("<|turn>model\n")[2].partition("<turn|>")[0]
    return shown.partition("<|assistant|>")[2].partition("<|turn_end|>")[0]


@pytest.mark.parametrize("form", TEMPLATES)
def test_a_form_is_recognised_by_what_its_template_writes(form):
    assert template(form).probe.tools.call_form == form
    assert template(form).probe.tools.shows_tools


@pytest.mark.thorough(fast=19)
@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("arguments", VALID)
def test_a_valid_call_is_read_back_and_let_through(form, arguments):
    jsonschema.validate(arguments, PAINT)
    text = written(form, ("paint", arguments))
    words, (call,) = read_calls(text, form, PARAMETERS)
    assert (words, call.name, json.loads(call.arguments)) == ("", "paint", arguments)
    for has_tokens in (True, False):
        one = tokenizer(form, has_tokens=has_tokens)
        assert passes(one, constraint(form, has_tokens=has_tokens, is_required=True), text), text
        assert passes(one, constraint(form, has_tokens=has_tokens, only="paint"), text), text
        assert not passes(one, constraint(form, has_tokens=has_tokens, only="wait"), text), text


@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("arguments", INVALID)
def test_an_invalid_call_is_not_let_through(form, arguments):
    for has_tokens in (True, False):
        one = tokenizer(form, has_tokens=has_tokens)
        assert not passes(
            one, constraint(form, has_tokens=has_tokens, is_required=True), written(form, ("paint", arguments))
        )


@pytest.mark.parametrize("form", TEMPLATES)
def test_what_is_no_call_is_not_let_through(form):
    one, text = tokenizer(form, has_tokens=True), written(form, ("wait", {}))
    wanted = constraint(form, has_tokens=True, is_required=True)
    assert passes(one, wanted, text)
    for other in ("", "Sure.", "Sure. " + text, text + " and", text.replace("wait", "run"), text[:-1], "{}"):
        assert not passes(one, wanted, other), other


@pytest.mark.parametrize("form", TEMPLATES)
def test_several_calls_are_read_and_let_through_where_the_form_has_them(form):
    text = written(form, ("paint", {"what": "x"}), ("wait", {}))
    assert [call.name for call in read_calls(text, form, PARAMETERS)[1]] == ["paint", "wait"]
    one = tokenizer(form, has_tokens=True)
    assert passes(one, constraint(form, has_tokens=True, is_required=True), text) == (FORMS[form].separator is not None)
    assert not passes(one, constraint(form, has_tokens=True, is_required=True, is_parallel=False), text)


@pytest.mark.parametrize("form", TEMPLATES)
def test_words_around_calls_are_kept_and_broken_calls_stay_text(form):
    text = written(form, ("wait", {}))
    assert read_calls(f"Let me see.\n{text}", form, PARAMETERS)[0] == "Let me see."
    for broken in (
        written(form, ("wait", {"a": [1]}))[: text.index("wait") + 6],
        text.replace("wait", "run"),
        text + text[: text.index("wait") + 4],
        "no call at all",
    ):
        assert read_calls(broken, form, PARAMETERS) == (broken, []), broken


names = st.text("abc_", min_size=1, max_size=3)
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9).map(lambda value: round(value, 2))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    plain | texts, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2), max_leaves=4
)


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("form", [name for name in TEMPLATES if FORMS[name].tags is None])
@given(arguments=st.dictionaries(names, values, max_size=3))
def test_any_arguments_are_read_back(form, arguments):
    assert [
        json.loads(call.arguments) for call in read_calls(written(form, ("wait", arguments)), form, PARAMETERS)[1]
    ] == [arguments]


@pytest.mark.parametrize("form", [name for name in TEMPLATES if FORMS[name].tags is not None])
@given(arguments=st.dictionaries(names, plain | st.lists(plain | texts, max_size=2), max_size=3), text=texts)
def test_any_arguments_in_tags_are_read_back(form, arguments, text):
    arguments = {"what": f"{text}|", **arguments}
    (call,) = read_calls(written(form, ("paint", arguments)), form, PARAMETERS)[1]
    assert json.loads(call.arguments) == arguments


def test_a_value_in_tags_may_be_written_as_python_does_where_its_type_is_known():
    text = (
        "<seed:tool_call>\n<function=paint>\n<parameter=what>None</parameter>\n<parameter=sure>None</parameter>\n"
        "<parameter=notes>['it\\'s', \"b\"]</parameter>\n<parameter=other>['a']</parameter>\n</function>\n"
        "</seed:tool_call>"
    )
    (call,) = read_calls(text, "seed", PARAMETERS)[1]
    assert json.loads(call.arguments) == {"what": "None", "sure": None, "notes": ["it's", "b"], "other": "['a']"}


@pytest.mark.parametrize("form", ["gemma", "python"])
@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"properties": {"q": {"type": "string", "pattern": "a+"}}}, "pattern of a value"),
        ({"properties": {"q": {"type": "object", "minProperties": 1}}}, "minProperties of a value"),
        ({"properties": {"q": {"minimum": 1}}}, "a value without a type"),
        ({"properties": {"a b": {}}}, "a parameter's name with other characters than letters and digits"),
        ({"minProperties": 1}, "parameters that are no plain object"),
        ({"properties": {"q": {"$ref": "#/properties/q"}}}, r"a \$ref that points outside of \$defs"),
        ({"properties": {"q": {"type": "string", "enum": [1]}}}, "a value that nothing fits"),
        ({"properties": {"q": {"enum": [[1]]}}}, "an enum beside other words, or of lists or objects"),
        ({"properties": {"q": False}, "required": ["q"]}, "a parameter that may have no value"),
    ],
)
def test_parameters_that_a_syntax_cannot_be_held_to_are_named(form, schema, what):
    tools = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}},)
    with pytest.raises(InvalidRequestError, match=rf"tool_choice: f: {what} cannot be enforced"):
        call_constraint(ToolUse(tools=tools, is_required=True), form, {})


@pytest.mark.parametrize("form", ["gemma", "python"])
def test_a_schema_may_hold_itself_and_values_of_any_form(form):
    schema = {
        "type": "object",
        "properties": {
            "any": {},
            "tree": {"$ref": "#/$defs/tree"},
            "either": {"anyOf": [{"type": "string"}, {"const": 5}]},
        },
        "$defs": {
            "tree": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
        },
    }
    tools = ({"type": "function", "function": {"name": "wait", "parameters": schema}},)
    one = tokenizer(form, has_tokens=True)
    wanted = call_constraint(ToolUse(tools=tools, is_required=True), form, added_tokens(one))
    for arguments in (
        {}, {"any": {"a": [1, "x", None, {}]}}, {"tree": {"kids": [{}, {"kids": []}]}}, {"either": 5}, {"either": "5"},
        {"any": [], "either": "a", "tree": {}},
    ):  # fmt: skip
        ordered = (
            dict(sorted(arguments.items()))
            if form == "gemma"
            else {n: arguments[n] for n in schema["properties"] if n in arguments}
        )
        assert passes(one, wanted, written(form, ("wait", ordered))), arguments
    for arguments in ({"tree": {"kids": [1]}}, {"either": 6}, {"other": 1}):
        assert not passes(one, wanted, written(form, ("wait", arguments))), arguments
    free = ({"type": "function", "function": {"name": "wait"}},)
    wanted = call_constraint(ToolUse(tools=free, is_required=True), form, added_tokens(one))
    assert passes(one, wanted, written(form, ("wait", {"a": 1, "b": "x"})))


@pytest.mark.parametrize(("token", "form"), [("<|tool_call_start|>", "python"), ("<|tool_call|>", "granite")])
def test_a_template_that_leaves_calls_out_has_the_form_that_the_model_has_a_token_for(token, form):
    source = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    made = ChatTemplate(source, SPECIAL, [token, "<x>"])
    assert made.probe.tools.call_form == form
    assert ChatTemplate(source, SPECIAL, ["<x>"]).probe.tools.call_form is None
    hidden = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(hidden, SPECIAL, [token]).probe.tools.call_form is None
    call = {"id": "a", "type": "function", "function": {"name": "wait", "arguments": "{}"}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(RefusedMessagesError, match="leaves its tool_calls out"):
        made.render(messages, {})
