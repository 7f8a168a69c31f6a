"""Chat templates of today's models: some are the models' own (see tests/data), others are made in their manner."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parents[3] / "data" / "chat_templates"


def _own(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


QWEN3, QWEN2_5, MISTRAL_NEMO = _own("qwen3"), _own("qwen2_5"), _own("mistral_nemo")

# As with DeepSeek-R1's distillates: the prompt opens the thinking.
OPENED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|A|>' + m.content.split('</think>')[-1] + eos_token }}{% else %}{{ '<|U|>' + m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|A|><think>\n' }}{% endif %}"
)
# As with DeepSeek-V3.1 and Granite: a switch of another name, off by default.
SWITCHED = (
    "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
# As with Magistral: the model opens its thinking in special tokens.
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + "
    "'[THINK]draft[/THINK][/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# As with gpt-oss: channels, and an effort.
CHANNELS = (
    "{% macro head() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ 'Reasoning: ' + reasoning_effort }}{% endmacro %}{{ '<|start|>system<|message|>' + head() + '<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# As with gpt-oss: functions in a message of the developer, and one call in a message of its own.
CHANNEL_CALLS = (
    "{{ '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{% if tools %}{{ '<|start|>developer<|message|># Tools\n\nnamespace functions {\n\n' }}{% for t in tools %}"
    "{{ '// ' + (t.function.description or '') + '\ntype ' + t.function.name + ' = () => any;\n\n' }}{% endfor %}"
    "{{ '}<|end|>' }}{% endif %}{% set seen = namespace(name='') %}{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}{% set seen.name = f.name %}"
    "{{ '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' }}"
    "{{ f.arguments | tojson + '<|call|>' }}{% elif m.role == 'tool' %}{{ '<|start|>functions.' + seen.name }}"
    "{{ ' to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# As with Gemma 4: closed in the prompt unless asked for.
THOUGHT_CHANNEL = (
    "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}{{ '<|turn>system\n<|think|>\n<turn|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim }}{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
# As with Llama 3.1: bare JSON, one call at a time, tools in the first message of the user.
BARE_JSON = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only single tool-calls at once') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    '{{ \'<|h|>assistant<|/h|>\n\n{"name": "\' + f.name + \'", "parameters": \' }}'
    "{{ f.arguments | tojson + '}<|eot|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|h|>ipython<|/h|>\n\n' + m.content | tojson + '<|eot|>' }}"
    "{% else %}{{ '<|h|>' + m.role + '<|/h|>\n\n' }}{% if loop.first and tools %}{% for t in tools %}"
    "{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}{% endif %}{{ m.content | trim + '<|eot|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
# As with Qwen3-Coder.
XML = (
    "{% if tools %}{{ '<tools>' }}{% for t in tools %}{{ t.function.name }}{% endfor %}{{ '</tools>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for k, v in c.function.arguments | items %}{{ '<parameter=' + k + '>\n' }}"
    "{{ v if v is string else v | tojson }}{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As with Gemma 4: calls with bare names, and texts between marks.
GEMMA_CALL = (
    "{% macro value(v) %}{% if v is string %}{{ '<|\"|>' + v + '<|\"|>' }}{% elif v is boolean %}"
    "{{ 'true' if v else 'false' }}{% elif v is mapping %}{{ '{' }}{% for k, i in v | dictsort %}"
    "{{ k + ':' + value(i) + (',' if not loop.last else '') }}{% endfor %}{{ '}' }}{% elif v is iterable %}{{ '[' }}"
    "{% for i in v %}{{ value(i) + (',' if not loop.last else '') }}{% endfor %}{{ ']' }}{% else %}{{ v }}{% endif %}"
    "{% endmacro %}{{ bos_token }}{% for t in tools or [] %}{{ '<|tool>declaration:' + t.function.name + '<tool|>' }}"
    "{% endfor %}{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% for c in m.tool_calls or [] %}{{ '<|tool_call>call:' + c.function.name + value(c.function.arguments) }}"
    "{{ '<tool_call|>' }}{% endfor %}{{ (m.content or '') | trim + '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
# As with Mistral's later tokenizers.
NAMED_ARGUMENTS = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' }}"
    "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
# As with DeepSeek-V3: calls only beside a content of none, with arguments as text, in a form of its own.
NULL_CONTENT = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<|call|>' + c.function.name + '\n' + c.function.arguments }}{% endfor %}"
    "{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
)
