"""Render made-up chat templates over made-up messages; arguments: FIRST-SEED COUNT.

Whatever a template does, the prompt comes back, or an error of Helix's own, within its limits. Ends with a traceback at
the first that does neither; the line before it names its seed.
"""

# ruff: noqa: T201  (its lines are read by whoever looks for the seed)
from __future__ import annotations

import random
import sys
import time
from typing import Any

from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.errors import EngineError, InvalidRequestError, ModelError, PromptTooLongError
from tests.unit.engine.text.bounded_prompts import SHORT, with_template
from tests.unit.engine.text.sample_templates import (
    CHATML,
    ENDLESS,
    ESCAPING,
    FOLDING,
    PARTS,
    STRICT_PARTS,
    THINKING,
    TRIMMING,
)
from tests.unit.engine.text.template_grammar import TemplateGrammar

SAMPLES = (CHATML, ESCAPING, FOLDING, PARTS, STRICT_PARTS, THINKING, TRIMMING) * 4 + tuple(ENDLESS.values())
PIECES = (
    *("{% for m in messages %}", "{% endfor %}", "{% if m %}", "{% else %}", "{% endif %}", "{{ m.content }}"),
    *("{{ m }}", "{{ messages }}", "{{ messages[-1]['content'] * 9 }}", "{{ self }}", "{{ loop.index }}", "{#", "#}"),
    *("{% set x = messages %}", "{{ x[0].__class__.__mro__ }}", "{{ raise_exception(messages) }}", "{% break %}"),
    *("{{ namespace.__init__.__globals__ }}", "{{ strftime_now('%' * 99) }}", "{{ m.content.encode() }}", "\ud800"),
    *(
        "{% macro f(a) %}",
        "{% endmacro %}",
        "{{ f(f) }}",
        "{{ 1 / 0 }}",
        "{{ none.x }}",
        "{% include 'x' %}",
        "{{ bos_token }}",
    ),
    *(
        "{{ m | tojson(indent=99) }}",
        "{{ '%c' % 1114112 }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% generation %}",
    ),
)
CONTENTS: tuple[Any, ...] = (
    "hi",
    "",
    " a\n",
    "{{ x }}",
    "é€😀\u2028",
    "x" * 3_000,
    [{"type": "text", "text": "part"}],
    [],
)
SECONDS = 120.0


def make_template(dice: random.Random) -> str:
    """One composed from a grammar, a sample with pieces put in and cut out, or pieces alone."""
    if dice.random() < 0.5:
        return TemplateGrammar(dice, tame=dice.random() < 0.3).template()
    text = dice.choice(SAMPLES) if dice.random() < 0.8 else ""
    for _ in range(dice.choice((0, 0, 0, 1, 1, 2, 8))):
        at = dice.randrange(len(text) + 1)
        if dice.random() < 0.7:
            # Mostly between two tags, where it can be read.
            at = max(at, text.find("}", at) + 1) if dice.random() < 0.8 else at
            at += text[at : at + 1] == "}"
            text = text[:at] + dice.choice(PIECES) + text[at:]
        else:
            text = text[:at] + text[at + dice.randrange(20) :]
    return text


def make_messages(dice: random.Random) -> list[dict[str, Any]]:
    roles = ("system", "user", "user", "user", "assistant", "tool", "")
    return [{"role": dice.choice(roles), "content": dice.choice(CONTENTS)} for _ in range(dice.randrange(1, 5))]


def run(first: int, count: int) -> None:
    rendered = 0
    for number in range(first, first + count):
        dice = random.Random(number)
        template = make_template(dice)
        print(f"seed {number}: {template[:60]!r}", flush=True)
        began = time.monotonic()
        encoder = None
        try:
            encoder = PromptEncoder(with_template(template), SHORT)
            encoder.encode_messages(make_messages(dice), {})
            rendered += 1
        except (EngineError, InvalidRequestError, ModelError, PromptTooLongError) as error:
            print(f"  {type(error).__name__}: {error!s:.200}")
        finally:
            if encoder is not None:
                encoder.close()
        assert time.monotonic() - began < SECONDS, "it took too long"
    print(f"{count} templates: {rendered} rendered, the others refused")


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
