"""JobCondition: a person's condition on jobs and answers, checked before it becomes a part of a statement.

It is SQL's language of conditions and no more: columns, values, comparisons and a few functions. What could do anything
else (a second statement, a subquery, a function of the server's) is no word of it, and the transaction only reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import TextClause, select, text

from helix_jobs.errors import InputError
from helix_jobs.storage.schema import jobs, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Subquery

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<text>'(?:[^']|'')*')
      | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>->>|->|<>|<=|>=|!=|\|\||[-+*/%<>=(),])""",
    re.VERBOSE,
)
_WORDS: Final = frozenset(
    {
        *("and", "or", "not", "in", "is", "null", "like", "between", "escape", "true", "false", "distinct", "from"),
        *("case", "when", "then", "else", "end", "cast", "as"),
    }
)
_TYPES: Final = frozenset({"integer", "bigint", "numeric", "real", "text"})
_FUNCTIONS: Final = frozenset(
    {"length", "lower", "upper", "trim", "ltrim", "rtrim", "abs", "round", "coalesce", "nullif", "substr", "replace"}
)
_MOST_CHARS: Final = 4096
# Of jobs, and of answers what jobs have not as well.
_JOBS: Final = tuple(column for column in jobs.columns if column.name not in ("id", "batch_id", "lease"))
_ANSWERS: Final = tuple(
    column for column in results.columns if column.name not in ("job_id", "worker_id", "logprobs", "prompt_logprobs")
)
COLUMNS: Final = tuple(sorted({"job_id", *(column.name for column in (*_JOBS, *_ANSWERS))}))


@dataclass(frozen=True, slots=True)
class JobCondition:
    """A condition that has been checked: ``clause`` is true of rows of ``rows_of``."""

    clause: TextClause

    @classmethod
    def parse(cls, condition: str) -> JobCondition:
        """Check a condition such as ``error_code = 'deadline' AND attempts > 1``.

        Raises:
            InputError: It holds something that no condition has, or no such column; the message says what.
        """
        if len(condition) > _MOST_CHARS:
            raise InputError(f"the condition has {len(condition):,} characters; give {_MOST_CHARS:,} at most")
        if not condition.strip():
            raise InputError("the condition is empty; give one such as \"error_code = 'deadline'\"")
        _check(list(_tokens(condition)))
        # A colon is only ever inside a text, where SQLAlchemy would see the name of a parameter.
        return cls(text(f"({condition})".replace(":", r"\:")))


def rows_of(*where: Any) -> Subquery:  # noqa: ANN401  (SQLAlchemy's conditions)
    """Jobs with their answers, a row for each answer, under the names of ``COLUMNS``."""
    joined = jobs.outerjoin(results, results.c.job_id == jobs.c.id)
    return select(jobs.c.id.label("job_id"), *_JOBS, *_ANSWERS).select_from(joined).where(*where).subquery("answer")


def _tokens(condition: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each part."""
    place, before = 0, ""
    while place < len(condition):
        match = _TOKEN.match(condition, place)
        if match is None:
            raise InputError(
                f"the condition has {condition[place]!r} at character {place + 1}, which no condition has; texts stand "
                "in single quotes"
            )
        kind = match.lastgroup or ""
        found = match.group()
        if kind == "text" and before == "word":
            raise InputError(f"the condition has letters right before a quote at character {place + 1}; put a blank")
        if found == "-" and condition.startswith("--", place):
            raise InputError("the condition holds a comment; leave it out")
        if found == "/" and condition.startswith("/*", place):
            raise InputError("the condition holds a comment; leave it out")
        if kind != "space":
            yield kind, found
        place, before = match.end(), kind


def _check(tokens: list[tuple[str, str]]) -> None:
    depth = 0
    for place, (kind, found) in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(found, 0)
        if depth < 0:
            raise InputError("the condition closes a parenthesis that it has not opened")
        if kind != "word":
            continue
        word = found.lower()
        is_called = place + 1 < len(tokens) and tokens[place + 1][1] == "("
        if is_called and word not in _FUNCTIONS and word not in _WORDS:
            raise InputError(f"the condition calls {found:.40}; use {', '.join(sorted(_FUNCTIONS - _WORDS))}")
        if word not in _WORDS | _TYPES | _FUNCTIONS and word not in COLUMNS:
            raise InputError(f"the condition has no column {found:.40}; the columns are {', '.join(COLUMNS)}")
    if depth:
        raise InputError("the condition opens a parenthesis that it does not close")
