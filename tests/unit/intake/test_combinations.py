"""Fields that one line cannot hold together: each pair is refused, and docs/formats.md lists them all."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.intake import combinations
from helix_jobs.intake.chat_fields import CHAT_FIELDS
from helix_jobs.intake.combinations import COMBINATIONS
from helix_jobs.intake.constraint_fields import CONSTRAINT_FIELDS, default_constraint
from helix_jobs.intake.lines import LineReader

FORMATS = Path(__file__).parents[3] / "docs" / "formats.md"
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
OPTIONS = {"choices": ["yes", "no"]}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
SCORED = {"prompt": "p", "echo": True, "logprobs": 1, "max_tokens": 0}
FORMS = {
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a"},
    "guided_json": {"type": "object"},
    "guided_json_object": True,
    "guided_regex": "a",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
    "json_schema": {"type": "object"},
    "regex": "a",
    "grammar": 'start: "a"',
    "ebnf": 'start: "a"',
}
CHATS = {
    "chat_template_kwargs": {"enable_thinking": False},
    **TOOLS,
    "tool_choice": "required",
    "continue_final_message": True,
    "add_generation_prompt": False,
    "reasoning_effort": "low",
    "enable_thinking": True,
    "max_reasoning_tokens": 5,
    "thinking_token_budget": 5,
}
SAMPLING = {
    "max_tokens": 3,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.5,
    "stop": ["x"],
    "stop_token_ids": [1],
    "include_stop_str_in_output": True,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "repetition_penalty": 2,
    "logit_bias": {"1": 1},
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "n": 2,
    "ignore_eos": True,
    "logprobs": 1,
    "prompt_logprobs": 1,
    "echo": True,
}
BODY = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": MESSAGES}
# A combination -> lines that hold it, each with the field that is refused and the other one where it has several names.
EXAMPLES = {
    "MESSAGES_AND_PROMPT": [({"prompt": "p", **MESSAGES}, "messages", None)],
    "CONVERSATIONS_AND_QUESTION": [
        ({"conversations": [{"from": "human", "value": "hi"}], **question}, "conversations", None)
        for question in ({"prompt": "p"}, MESSAGES)
    ],
    "CHAT_AND_PROMPT": [({"prompt": "p", name: value}, name, None) for name, value in CHATS.items()],
    "FIELD_AND_BODY": [({**BODY, "temperature": 1}, "temperature", None), ({**BODY, "prompt": "p"}, "prompt", None)],
    "TWO_TRUNCATIONS": [({"prompt": "p", "truncate_prompt": {}, "truncate_prompt_tokens": 5}, "truncate_prompt", None)],
    "SAMPLING_AND_CHOICES": [
        ({"prompt": "p", **OPTIONS, name: value, **({"temperature": 1} if name == "n" else {})}, name, None)
        for name, value in SAMPLING.items()
    ],
    "ANSWER_AND_CHOICES": [
        ({**MESSAGES, **OPTIONS, name: value}, name, None)
        for name, value in {**FORMS, **TOOLS, "max_reasoning_tokens": 5, "thinking_token_budget": 5}.items()
    ],
    "ACCEPT_AND_CHOICES": [({"prompt": "p", **OPTIONS, "accept": {"not_cut": True}}, "accept", None)],
    "TOKEN_IDS_AND_CHOICES": [({"prompt": [1, 2], **OPTIONS}, "prompt", None)],
    "ACCEPT_AND_SCORED_PROMPT": [({**SCORED, "accept": {"not_cut": True}}, "accept", None)],
    "FORM_AND_SCORED_PROMPT": [({**SCORED, name: value}, name, None) for name, value in FORMS.items()],
    "ECHO_AND_MESSAGES": [({**MESSAGES, "echo": True}, "echo", None)],
    "ECHO_AND_TOKEN_IDS": [({"prompt": [1, 2], "echo": True}, "echo", None)],
    "TWO_FORMS": [
        ({"prompt": "p", "response_format": FORMS["response_format"], name: value}, name, "response_format")
        for name, value in FORMS.items()
        if name not in ("response_format", "structured_outputs")
    ],
    "FORM_AND_TOOLS": [({**MESSAGES, **TOOLS, name: value}, name, None) for name, value in FORMS.items()],
    "TOOLS_AND_DEFAULT_FORM": [({**MESSAGES, **TOOLS}, "tools", None)],
    "ENDLESS_AND_FORM": [
        ({"prompt": "p", "ignore_eos": True, name: value}, "ignore_eos", None) for name, value in FORMS.items()
    ],
}
CASES = [(name, *case) for name, cases in EXAMPLES.items() for case in cases]


@pytest.mark.parametrize(("name", "line", "field", "beside"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_each_combination_is_refused_by_line_field_reason_and_remedy(name, line, field, beside):
    combination = getattr(combinations, name)
    default = default_constraint({"type": "json_object"}) if name == "TOOLS_AND_DEFAULT_FORM" else None
    data = b'{"prompt": "good"}\n' + json.dumps(line).encode()
    _, bad = LineReader(SamplingParams(), constraint=default).read(io.BytesIO(data))
    found = [(fault.field, fault.reason, fault.remedy) for fault in bad.faults]
    wanted = combination.error(field, beside)
    assert bad.line == 2
    assert (wanted.field, wanted.reason, wanted.remedy) in found
    assert {one[1:] for one in found} == {(wanted.reason, wanted.remedy)}, "nothing else is wrong with the line"


def test_every_combination_and_every_field_has_an_example():
    assert [getattr(combinations, name) for name in EXAMPLES] == list(COMBINATIONS)
    assert CHATS.keys() == CHAT_FIELDS.keys()
    assert SAMPLING.keys() == SAMPLING_FIELDS - {"seed"}
    assert FORMS.keys() == CONSTRAINT_FIELDS - {"structural_tag", "guided_whitespace_pattern"}, "refused in any line"


def test_the_documents_list_these_combinations():
    section = FORMATS.read_text(encoding="utf-8").split("## Fields that exclude each other\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!Field |---)(.+?) \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    listed = [tuple(cell.replace("`", "") for cell in row) for row in rows]
    assert listed == [(one.field, one.beside, one.error("").reason, one.remedy) for one in COMBINATIONS]
