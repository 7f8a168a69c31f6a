"""Chat templates in the manner of public models, and those that take for ever."""

from __future__ import annotations

# In the manner of public models. Each begins and ends a turn in its own way, and does something with the text.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}</s>\n{% endfor %}"
FOLDING = (  # the system message goes into the first of the user's, as with Gemma and Mistral
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "[INST] {{ (system + '\n\n' if loop.first and system else '') + m['content'] }}[/INST]"
    "{% else %} {{ m['content'].strip() }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # earlier thoughts are dropped on purpose, as with Qwen3
    "{%- for m in messages -%}{%- set content = m.content -%}{%- if m.role == 'assistant' and '</think>' in content -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "<|{{ m.role }}|>{{ content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{%- if enable_thinking is defined and enable_thinking is false -%}<think></think>{%- endif -%}{%- endif -%}"
)
ESCAPING = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
COLLAPSING = "{% for m in messages %}{{ m.role }}: {{ m.content.split() | join(' ') }}\n{% endfor %}"
PARTS = (  # as with Llama Guard 3: what is no list of parts is left out
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% endif %}{% endfor %}</s>{% endfor %}"
)
STRICT_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ raise_exception('give parts') }}{% endif %}"
    "{{ m.content | map(attribute='text') | join }};{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% endif %};{% endfor %}"
)
MIXED = (  # the system message as a string, the others as parts
    "{% for m in messages %}{% if m.role == 'system' %}{% if m.content is string %}{{ m.content }};{% endif %}"
    "{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }};{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %};{% if loop.index > 9 %}{% break %}{% endif %}{% endfor %}"
)
OBJECTS = (
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}"
    "{{ ns.count }}{{ dict(role=m.role) | tojson }}{{ m.content }}{% endfor %}"
)

# Each takes hours or more memory than there is, mostly in one call that nothing in Python can interrupt.
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** (messages | length + 8)) % 7 }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "repeating": "{{ ('x' * 10 ** 11) | length }}",
    "padding": "{{ '%99999999999s' % 'x' }}",
    "centering": "{{ 'x'.center(99999999999) | length }}",
    "indenting": "{{ ('x\n' * 999999 * (messages | length)) | indent(99999) | length }}",
    "a list": "{{ [0] * 10 ** 11 }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a long output": "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}",
}
