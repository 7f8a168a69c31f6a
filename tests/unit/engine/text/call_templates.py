"""Chat templates by the form of their calls, each made in the manner of the models that write so."""

from __future__ import annotations

from typing import Final


def calling(call: str, *, opens: str = "", separator: str = "", closes: str = "") -> str:
    """A template that writes calls. ``call`` is what it writes of ``f``, a call's function."""
    return (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{{ m.content or '' }}{% if m.tool_calls %}" + opens + "{% for c in m.tool_calls %}{% set f = c.function %}"
        "{% if not loop.first %}" + separator + "{% endif %}" + call + "{% endfor %}" + closes + "{% endif %}"
        "{{ '<|turn_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )


def tagged(begin: str, key: str, after_key: str, after_value: str, end: str, **texts: str) -> str:
    """A template whose arguments stand one by one. A text in it is one of jinja2's, marks and line breaks included."""
    arguments = (
        "{% for k, v in f.arguments | items %}" + key + "{{ k }}" + after_key + "{{ v if v is string else v | tojson }}"
    )
    return calling(begin + arguments + after_value + "{% endfor %}" + end, **texts)


NL: Final = "{{ '\n' }}"
OBJECT: Final = "{{ '{\"name\": \"' + f.name + '\", \"arguments\": ' }}{{ f.arguments | tojson }}{{ '}' }}"
DEEP: Final = {word: "<\uff5c" + word.replace(" ", "\u2581") + "\uff5c>" for word in (
    "tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep",
)}  # fmt: skip
DEEP_AROUND: Final = {"opens": DEEP["tool calls begin"], "closes": DEEP["tool calls end"]}

CALL_TEMPLATES: Final = {
    "seed": tagged(
        "<seed:tool_call>" + NL + "<function={{ f.name }}>" + NL, "<parameter=", ">", "</parameter>" + NL,
        "</function>" + NL + "</seed:tool_call>", separator=NL,
    ),
    "glm": tagged(
        "<tool_call>{{ f.name }}" + NL, "<arg_key>", "</arg_key>" + NL + "<arg_value>", "</arg_value>" + NL,
        "</tool_call>", separator=NL,
    ),
    "glm_dense": tagged(
        "<tool_call>{{ f.name }}", "<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</tool_call>"
    ),
    "minimax": tagged(
        '<invoke name="{{ f.name }}">' + NL, '<parameter name="', '">', "</parameter>" + NL, "</invoke>",
        opens="<minimax:tool_call>" + NL, separator=NL, closes=NL + "</minimax:tool_call>",
    ),
    "granite": calling(OBJECT, opens="<|tool_call|>[", separator="{{ ', ' }}", closes="]"),
    "nemotron": calling(OBJECT, opens="<TOOLCALL>[", separator="{{ ', ' }}", closes="]</TOOLCALL>"),
    "apriel": calling(OBJECT, opens="<tool_calls>[", separator="{{ ', ' }}", closes="]</tool_calls>"),
    "apertus": calling(
        "{{ '{\"' + f.name + '\": ' }}{{ f.arguments | tojson }}{{ '}' }}",
        opens="<|tools_prefix|>[", separator="{{ ', ' }}", closes="]<|tools_suffix|>",
    ),
    "command": calling(
        "{{ '{\"tool_call_id\": \"' ~ loop.index0 ~ '\", \"tool_name\": \"' ~ f.name ~ '\", \"parameters\": ' }}"
        "{{ f.arguments | tojson }}{{ '}' }}",
        opens="<|START_ACTION|>[" + NL + "{{ '    ' }}", separator="{{ ',\n    ' }}", closes=NL + "]<|END_ACTION|>",
    ),
    "kimi": calling(
        "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
        "{{ f.arguments | tojson }}<|tool_call_end|>",
        opens="<|tool_calls_section_begin|>", closes="<|tool_calls_section_end|>",
    ),
    "deepseek": calling(
        DEEP["tool call begin"] + "function" + DEEP["tool sep"] + "{{ f.name + '\n```json\n' }}"
        "{{ f.arguments | tojson }}{{ '\n```' }}" + DEEP["tool call end"], separator=NL, **DEEP_AROUND,
    ),
    "deepseek_v3_1": calling(
        DEEP["tool call begin"] + "{{ f.name }}" + DEEP["tool sep"] + "{{ f.arguments | tojson }}"
        + DEEP["tool call end"], **DEEP_AROUND,
    ),
    "functionary": calling("<function={{ f.name }}>{{ f.arguments | tojson }}</function>"),
    "python": calling(
        "{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ ([v] | string)[1:-1] }}"
        "{{ '' if loop.last else ', ' }}{% endfor %})",
        opens="<|tool_call_start|>[", separator="{{ ', ' }}", closes="]<|tool_call_end|>",
    ),
}  # fmt: skip
# The marks that are tokens of their own in the models that write so.
MARKS: Final = {
    "seed": ("<seed:tool_call>", "</seed:tool_call>"),
    "glm": ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "glm_dense": ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "minimax": ("<minimax:tool_call>", "</minimax:tool_call>"),
    "granite": ("<|tool_call|>",),
    "nemotron": ("<TOOLCALL>", "</TOOLCALL>"),
    "apriel": ("<tool_calls>", "</tool_calls>"),
    "apertus": ("<|tools_prefix|>", "<|tools_suffix|>"),
    "command": ("<|START_ACTION|>", "<|END_ACTION|>"),
    "kimi": ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
             "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "deepseek": tuple(DEEP.values()),
    "deepseek_v3_1": tuple(DEEP.values()),
    "functionary": (),
    "python": ("<|tool_call_start|>", "<|tool_call_end|>"),
}  # fmt: skip
