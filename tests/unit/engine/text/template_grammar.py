"""Made-up chat templates that jinja2 compiles: composed from a grammar, so that they run instead of failing to parse.

``tame`` ones end within milliseconds whatever they do, and can be rendered anywhere. The others may ask for any time
and memory, some of it while they are compiled: jinja2 computes constants such as ``'x' * 10**9`` then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

_WORDS: Final = ("'user'", "'system'", "'a b'", "'<|im_start|>'", "''", "'é😀'", "'\\n'", "'%s'", "'{0}'", "'x'")
_TEXT: Final = (
    "<|im_start|>",
    "\n",
    "\n  ",
    "\n\t",
    " \n",
    " ",
    "[INST] ",
    "text",
    "{ }",
    "é😀",
    "\\n",
    "'",
    "# ",
    "<|end|>",
)
_FILTERS: Final = (
    *("trim", "upper", "lower", "title", "capitalize", "e", "string", "length", "first", "last", "list", "join"),
    *("tojson", "tojson(indent=2)", "replace('a', 'b')", "default('d')", "reverse|join", "sort|join", "int", "safe"),
    *("indent(2)", "truncate(9)", "wordcount", "unique|list", "batch(2)|list", "map('upper')|join", "urlencode"),
)
_METHODS: Final = (
    *("strip()", "upper()", "split('a')[0]", "split()|join('-')", "replace('x', '')", "lstrip('\\n')", "title()"),
    *("startswith('x')", "endswith(' ')", "find('b')", "format('y')", "encode()", "rpartition('</think>')[2]"),
    *("keys()", "items()|list", "get('content')", "append(1)", "__class__", "_private", "format_map({})"),
)
_TESTS: Final = (
    *("defined", "none", "string", "mapping", "sequence", "iterable", "number", "true", "undefined", "callable"),
    *("even", "sameas none", "in ['user', '']", "equalto 'user'", "divisibleby 2", "lower"),
)
_BIG: Final = ("10**9", "99999999", "2**31", "10**7", "(messages|string|length) ** 99")
_WILD: Final = (
    *("(range(99999)|list)", "('x' * 10**6)|replace('x', 'yy')", "'%099999999d' % 1", "'{:>99999999}'.format(1)"),
    *(
        "lipsum(9999)",
        "cycler(messages)",
        "joiner(self)",
        "messages|tojson(indent=10**6)",
        "range(10**5)|batch(1)|list",
    ),
    *("'x'.center(10**8)", "('a' * 9999)|wordwrap(1)", "(9**9**6)|string", "messages|pprint"),
)


class TemplateGrammar:
    """Composes one template from the dice.

    Args:
        dice: Where its choices come from.
        tame: Without what may take long or grow.
    """

    def __init__(self, dice: random.Random, *, tame: bool) -> None:
        self._dice = dice
        self._tame = tame
        self._names = ["messages", "bos_token", "eos_token", "add_generation_prompt", "tools", "missing"]
        self._macros: list[str] = []
        self._loops = 0

    def template(self) -> str:
        """Statements around a loop over the messages, as nearly every checkpoint's template has one."""
        before = self._body(depth=2)
        self._names += ["m", "m.role", "m['content']", "m.content", "loop.index0", "loop.first", "loop.last"]
        self._loops += 1
        written = self._dice.choice(("{{ m.content }}", "{{ m['content'] | trim }}", "{{ '\\n' + m.content }}", ""))
        inside = self._body(depth=3) + written + self._body(depth=2)
        self._loops -= 1
        del self._names[6:]
        return f"{before}{{% for m in messages %}}{inside}{{% endfor %}}{self._body(depth=2)}"

    def _body(self, depth: int) -> str:
        known, macros = len(self._names), len(self._macros)
        made = "".join(self._statement(depth) for _ in range(self._dice.randrange(4)))
        del self._names[known:], self._macros[macros:]
        return made

    def _statement(self, depth: int) -> str:
        dice = self._dice
        if depth == 0 or dice.random() < 0.4:
            return dice.choice((dice.choice(_TEXT), f"{{{{{self._dash()} {self._value(2)} {self._dash()}}}}}"))
        kinds = (self._if, self._for, self._set, self._set_block, self._macro, self._call, self._space, self._other)
        return dice.choice(kinds)(depth - 1)

    def _if(self, depth: int) -> str:
        made = self._tag(f"if {self._value(2)}") + self._body(depth)
        for _ in range(self._dice.randrange(2)):
            made += self._tag(f"elif {self._value(2)}") + self._body(depth)
        if self._dice.random() < 0.5:
            made += self._tag("else") + self._body(depth)
        return made + self._tag("endif")

    def _for(self, depth: int) -> str:
        dice = self._dice
        if self._tame and self._loops == 2:
            return self._set(depth)
        name = f"v{len(self._names)}"
        many = "range(99999)" if not self._tame and dice.random() < 0.3 else "range(3)"
        over = dice.choice(("messages", "messages[1:]", many, "['a', 1, none]", "'ab'", "messages|reverse"))
        only = f" if {self._value(1)}" if dice.random() < 0.2 else ""
        self._loops += 1
        self._names.append(name)
        inside = self._body(depth)
        if dice.random() < 0.3:
            inside += self._tag(f"if {self._value(1)}") + self._tag(dice.choice(("break", "continue"))) + "{% endif %}"
        self._names.pop()
        self._loops -= 1
        other = self._tag("else") + self._body(depth) if dice.random() < 0.2 else ""
        return self._tag(f"for {name} in {over}{only}") + inside + other + self._tag("endfor")

    def _set(self, _depth: int) -> str:
        name = f"v{len(self._names)}"
        made = self._tag(f"set {name} = {self._value(3)}")
        if not self._tame and self._dice.random() < 0.2:
            made += f"{{% for _ in range(99) %}}{{% set {name} = {name} ~ {name} %}}{{% endfor %}}"
        self._names.append(name)
        return made

    def _set_block(self, depth: int) -> str:
        name = f"v{len(self._names)}"
        made = self._tag(f"set {name}") + self._body(depth) + self._tag("endset")
        self._names.append(name)
        return made

    def _macro(self, depth: int) -> str:
        name = f"f{len(self._macros)}"
        self._names.append("a")
        inside = self._body(depth)
        if not self._tame and self._dice.random() < 0.3:
            inside += f"{{{{ {name}(a) }}}}{{{{ {name}(a) }}}}"
        self._names.pop()
        self._macros.append(name)
        return self._tag(f"macro {name}(a, b='x')") + inside + self._tag("endmacro")

    def _call(self, depth: int) -> str:
        if not self._macros:
            return self._macro(depth)
        return f"{{{{ {self._dice.choice(self._macros)}({self._value(1)}) }}}}"

    def _space(self, _depth: int) -> str:
        """A namespace, which alone carries a value out of a loop."""
        name = f"ns{len(self._names)}"
        made = self._tag(f"set {name} = namespace(x={self._value(2)})") + self._tag(f"set {name}.x = {self._value(2)}")
        self._names.append(f"{name}.x")
        return made

    def _other(self, depth: int) -> str:
        inside = self._body(depth)
        return self._dice.choice(
            (
                f"{{% filter {self._dice.choice(('trim', 'upper', 'e', 'replace(1, 2)'))} %}}{inside}{{% endfilter %}}",
                f"{{% generation %}}{inside}{{% endgeneration %}}",
                f"{{% with w = {self._value(2)} %}}{inside}{{% endwith %}}",
                f"{{% if {self._value(2)} %}}{{{{ raise_exception({self._value(1)}) }}}}{{% endif %}}",
                f"{{# {inside.replace('#}', '')} #}}",
            )
        )

    def _value(self, depth: int) -> str:
        dice = self._dice
        if depth == 0 or dice.random() < 0.3:
            return dice.choice((dice.choice(self._names), dice.choice(_WORDS), dice.choice(("0", "1", "-1", "true"))))
        if not self._tame and dice.random() < 0.1:
            return dice.choice((dice.choice(_WILD), f"({self._value(depth - 1)} * {dice.choice(_BIG)})"))
        left, right = self._value(depth - 1), self._value(depth - 1)
        # Mostly what any two values take; an error ends the rendering, and with it what could be found.
        operators = (
            ("~", "==", "!=", "and", "or") if dice.random() < 0.9 else ("+", "-", "<", "in", "not in", "%", "//")
        )
        operator = dice.choice(operators)
        return dice.choice(
            (
                f"({left} {operator} {right})",
                f"({left} ~ '')|{dice.choice(_FILTERS)}",
                f"({left} ~ '').{dice.choice(_METHODS)}",
                f"({left} is {dice.choice(('', 'not '))}{dice.choice(_TESTS)})",
                f"({left} if {right} else {dice.choice(_WORDS)})",
                f"({left} ~ 'x')[{dice.choice(('0', '-1', '1:', '::-1', ':2'))}]",
                f"messages[{dice.choice(('0', '-1', '1:', '::-1'))}]",
                f"({dice.choice(self._names)}).{dice.choice(_METHODS)}",
                f"({dice.choice(self._names)})|{dice.choice(_FILTERS)}",
                f"({dice.choice(self._names)} or {{'k': '<é>', 'a': {left}}})|tojson{dice.choice(('', '(indent=1)'))}",
                f"({dice.choice(self._names)})[{right}]",
                f"[{left}, {right}]",
                f"{{'role': {left}, 'k': {right}}}",
                f"(not {left})",
            )
        )

    def _tag(self, inside: str) -> str:
        return f"{{%{self._dash()} {inside} {self._dash()}%}}"

    def _dash(self) -> str:
        return "-" if self._dice.random() < 0.2 else ""
