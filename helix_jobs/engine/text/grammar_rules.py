"""What the grammars of calls have in common: texts as the grammar library spells them, and the error of a schema."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.grammar_text import json_options
from helix_jobs.engine.text.added_tokens import split_at_tokens
from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

# JSON as Python and jinja2's tojson write it: calls in prompts look so, and models learn from them.
JSON_OPTIONS: Final = {**json_options(), "item_separator": ", ", "key_separator": ": "}
# Words of a schema that ask for nothing.
ANNOTATIONS: Final = frozenset({"title", "description", "default", "examples", "$comment", "deprecated"})


def spelt(text: str, added_tokens: Mapping[str, int]) -> str:
    """A text in the grammar: literals, and the ids of the added tokens in it, which the library never spells."""
    parts = split_at_tokens(text, added_tokens)
    return " ".join(
        f"<[{added_tokens[part]}]>" if part in added_tokens else json.dumps(part, ensure_ascii=False) for part in parts
    )


def literal(text: str) -> str:
    """A regular expression of this text, for use between slashes."""
    escaped = re.sub(r"[\\.+*?()|\[\]{}^$/#&~-]", lambda found: f"\\{found[0]}", text)
    return escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def not_enforced(function: str, what: str) -> InvalidRequestError:
    """The error of parameters that a form cannot be held to."""
    return InvalidRequestError(
        f"tool_choice: {function}: {what} cannot be enforced in the form in which this model writes calls; "
        "simplify the parameters, or give auto or none"
    )
