"""The forms of calls whose arguments stand together, as JSON or in a syntax of the model's own.

Sources: the chat templates of the models named below.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from helix_jobs.engine.text.calls import CallForm
from helix_jobs.engine.text.json_calls import (
    read_channels,
    read_gemma,
    read_hermes,
    read_list,
    read_llama,
    read_mistral,
    read_named,
    read_python,
)
from helix_jobs.engine.text.value_syntax import GEMMA, PYTHON

# DeepSeek's marks have full-width bars, and low blocks for spaces.
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEP = (
    "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"
    for words in ("tool calls begin", "tool calls end", "tool call begin", "tool call end", "tool sep")
)
# Of two forms that a text may be, the first counts.
JSON_FORMS: Final = (
    # Qwen2.5, Qwen3, Hermes, Granite 4 and many others.
    CallForm(
        name="hermes",
        seen=r'<tool_call>\s*\{"name": ?"NAME"',
        read=read_hermes,
        before='<tool_call>\n{"name": "',
        between='", "arguments": ',
        after="}\n</tool_call>",
        separator="\n",
    ),
    # Mistral, up to version 7 of its tokenizer.
    CallForm(
        name="mistral_list",
        seen=r'\[TOOL_CALLS\]\s*\[\s*\{"name": ?"NAME"',
        read=read_mistral,
        before='{"name": "',
        between='", "arguments": ',
        after="}",
        separator=", ",
        opens="[TOOL_CALLS][",
        closes="]",
    ),
    # Mistral, later versions.
    CallForm(
        name="mistral",
        seen=r"\[TOOL_CALLS\]\s*NAME(?:\[CALL_ID\][^\s\[\]]*)?(?:\[ARGS\])?\s*\{",
        read=read_mistral,
        before="[TOOL_CALLS]",
        between="[ARGS]",
        separator="",
    ),
    # gpt-oss (harmony). A call is a message of its own, and ends the turn.
    CallForm(
        name="harmony",
        seen=r"to=functions\.NAME<\|channel\|>commentary",
        read=read_channels,
        before="<|channel|>commentary to=functions.",
        between=" <|constrain|>json<|message|>",
        thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ),
    # Gemma 4.
    CallForm(
        name="gemma",
        seen=r"<\|tool_call>call:NAME\{",
        read=read_gemma,
        before="<|tool_call>call:",
        between="",
        after="<tool_call|>",
        separator="",
        syntax=GEMMA,
    ),
    # LFM2.
    CallForm(
        name="python",
        seen=r"<\|tool_call_start\|>\s*\[\s*NAME\(",
        read=read_python,
        opens="<|tool_call_start|>[",
        before="",
        between="",
        separator=", ",
        closes="]<|tool_call_end|>",
        syntax=PYTHON,
        token="<|tool_call_start|>",  # noqa: S106  (a mark)
    ),
    # Granite 3.
    CallForm(
        name="granite",
        seen=r'<\|tool_call\|>\s*\[\s*\{"name": ?"NAME"',
        read=partial(read_list, opens="<|tool_call|>", closes="<|/tool_call|>"),
        opens="<|tool_call|>[",
        before='{"name": "',
        between='", "arguments": ',
        after="}",
        separator=", ",
        closes="]",
        token="<|tool_call|>",  # noqa: S106  (a mark)
    ),
    # Nemotron Nano v2.
    CallForm(
        name="nemotron",
        seen=r'<TOOLCALL>\s*\[\s*\{"name": ?"NAME"',
        read=partial(read_list, opens="<TOOLCALL>", closes="</TOOLCALL>"),
        opens="<TOOLCALL>[",
        before='{"name": "',
        between='", "arguments": ',
        after="}",
        separator=", ",
        closes="]</TOOLCALL>",
    ),
    # Apriel.
    CallForm(
        name="apriel",
        seen=r'<tool_calls>\s*\[\s*\{"name": ?"NAME"',
        read=partial(read_list, opens="<tool_calls>", closes="</tool_calls>"),
        opens="<tool_calls>[",
        before='{"name": "',
        between='", "arguments": ',
        after="}",
        separator=", ",
        closes="]</tool_calls>",
    ),
    # Apertus.
    CallForm(
        name="apertus",
        seen=r'<\|tools_prefix\|>\s*\[\s*\{"NAME":',
        read=partial(read_list, opens="<|tools_prefix|>", closes="<|tools_suffix|>", name_key=""),
        opens="<|tools_prefix|>[",
        before='{"',
        between='": ',
        after="}",
        separator=", ",
        closes="]<|tools_suffix|>",
    ),
    # Command R7B and A. Each call has a number, which a grammar cannot count up.
    CallForm(
        name="command",
        seen=r'<\|START_ACTION\|>\s*\[\s*\{"tool_call_id": ?"\d+", ?"tool_name": ?"NAME"',
        read=partial(
            read_list,
            opens="<|START_ACTION|>",
            closes="<|END_ACTION|>",
            name_key="tool_name",
            arguments_key="parameters",
        ),
        opens="<|START_ACTION|>[\n    ",
        before='{"tool_call_id": "0", "tool_name": "',
        between='", "parameters": ',
        after="}",
        closes="\n]<|END_ACTION|>",
    ),
    # Kimi K2. Each call has a number, as above.
    CallForm(
        name="kimi",
        seen=r"<\|tool_call_begin\|>functions\.NAME:\d+<\|tool_call_argument_begin\|>",
        read=partial(
            read_named,
            begin="<|tool_call_begin|>",
            name=r"\s*(?:functions\.)?([^\s:<>]+):\d+\s*<\|tool_call_argument_begin\|>",
            end="<|tool_call_end|>",
            around=r"<\|tool_calls_section_(?:begin|end)\|>",
        ),
        opens="<|tool_calls_section_begin|>",
        before="<|tool_call_begin|>functions.",
        between=":0<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        closes="<|tool_calls_section_end|>",
    ),
    # DeepSeek-V3 and R1.
    CallForm(
        name="deepseek",
        seen=f"{_CALL_BEGIN}function{_SEP}NAME\n",
        read=partial(
            read_named,
            begin=_CALL_BEGIN,
            name=rf"function{_SEP}([^\s<>]+)\s*```json\n",
            end=f"```{_CALL_END}",
            around=f"{_CALLS_BEGIN}|{_CALLS_END}",
        ),
        opens=_CALLS_BEGIN,
        before=f"{_CALL_BEGIN}function{_SEP}",
        between="\n```json\n",
        after=f"\n```{_CALL_END}",
        separator="\n",
        closes=_CALLS_END,
    ),
    # DeepSeek-V3.1.
    CallForm(
        name="deepseek_v3_1",
        seen=f"{_CALL_BEGIN}NAME{_SEP}",
        read=partial(
            read_named,
            begin=_CALL_BEGIN,
            name=rf"([^\s<>]+){_SEP}",
            end=_CALL_END,
            around=f"{_CALLS_BEGIN}|{_CALLS_END}",
        ),
        opens=_CALLS_BEGIN,
        before=_CALL_BEGIN,
        between=_SEP,
        after=_CALL_END,
        separator="",
        closes=_CALLS_END,
    ),
    # Functionary 3.1.
    CallForm(
        name="functionary",
        seen=r"<function=NAME>\{",
        read=partial(read_named, begin="<function=", name=r"([^<>\s]+)>", end="</function>"),
        before="<function=",
        between=">",
        after="</function>",
        separator="",
    ),
    # Llama 3.1 and later.
    CallForm(
        name="llama",
        seen=r'\{"name": ?"NAME", ?"parameters": ?\{',
        read=read_llama,
        before='{"name": "',
        between='", "parameters": ',
        after="}",
    ),
)
