"""What is shown of a comparison: for a person in words and pieces of text, for a program as JSON. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.reports.comparison import Change
from helix_jobs.reports.json_diff import NOTHING, read_json
from helix_jobs.reports.prompts import prompt_of
from helix_jobs.reports.text_diff import Piece, around_changes, text_diff
from helix_jobs.wording import counted, duration, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from helix_jobs.reports.comparison import Difference, Sums, Tally
    from helix_jobs.storage.job_pairs import PairedAnswer, PairedJob

WORDS: Final[Mapping[Change, str]] = {
    Change.SAME: "same",
    Change.CHANGED: "changed",
    Change.NEWLY_FAILED: "newly failed",
    Change.NEWLY_FIXED: "newly fixed",
    Change.FAILED_TWICE: "failed in both",
    Change.UNFINISHED: "not finished",
    Change.ONLY_BEFORE: "only in the first",
    Change.ONLY_AFTER: "only in the second",
}
_MOST_CHARS: Final = 20_000
# A label -> what is said of a sum.
_SUMS: Final[Mapping[str, Callable[[Sums], str]]] = {
    "Answers": lambda sums: f"{sums.answers:,}",
    "Tokens read": lambda sums: f"{sums.prompt_tokens:,}",
    "Tokens written": lambda sums: f"{sums.completion_tokens:,}",
    "Tokens of an answer": lambda sums: "" if sums.mean_tokens is None else f"{sums.mean_tokens:,.1f}",
    "Cut off": lambda sums: f"{sums.cut_off:,}",
    "Time of an answer": lambda sums: "" if sums.mean_seconds is None else duration(sums.mean_seconds),
    "Drafts accepted": lambda sums: "" if sums.acceptance_rate is None else percent(sums.acceptance_rate),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A row that differs, for a person.

    Attributes:
        name: Its ``custom_id`` or line.
        kind: The kind of change.
        words: The same in words.
        was_asked_otherwise: Whether the prompts differ.
        asked: Its prompt; None where both answers are the same or one job is missing.
        notes: What failed, and why; calls of tools that differ; that an answer is too long to be compared whole.
        fields: Field, value before and value after, of JSON answers.
        texts: For each answer that is no JSON, its pieces.
    """

    name: str
    kind: Change
    words: str
    was_asked_otherwise: bool
    asked: str | None
    notes: tuple[str, ...]
    fields: tuple[tuple[str, str, str], ...]
    texts: tuple[tuple[Piece, ...], ...]


def shown_row(difference: Difference) -> ShownRow:
    """A pair for a person."""
    before, after = difference.before, difference.after
    texts = _differing_texts(before, after)
    return ShownRow(
        name=difference.name,
        kind=difference.change,
        words=WORDS[difference.change],
        was_asked_otherwise=bool(difference.was_asked_otherwise),
        asked=_prompt(after or before),
        notes=(*_notes(before, after), *_cut_off(texts)),
        fields=tuple((change.path, _value(change.before), _value(change.after)) for change in difference.fields),
        texts=tuple(_texts(texts)),
    )


def row_json(difference: Difference) -> dict[str, Any]:
    """A pair for programs. Keys are stable: new ones may come, none is renamed."""
    named = difference.before or difference.after
    return {
        "change": str(difference.change),
        "custom_id": None if named is None else named.custom_id,
        "was_asked_otherwise": difference.was_asked_otherwise,
        "before": _job_json(difference.before),
        "after": _job_json(difference.after),
        "fields": [
            {
                "path": change.path,
                **({} if change.before is NOTHING else {"before": change.before}),
                **({} if change.after is NOTHING else {"after": change.after}),
            }
            for change in difference.fields
        ],
    }


def tally_json(tally: Tally) -> dict[str, Any]:
    """The sums for programs."""
    return {
        "changes": {str(change): tally.changes[change] for change in Change},
        "asked_otherwise": tally.asked_otherwise,
        "fields": dict(tally.fields.most_common()),
        "before": _sums_json(tally.before),
        "after": _sums_json(tally.after),
    }


def sums_in_words(before: Sums, after: Sums) -> list[tuple[str, str, str]]:
    """Label and both values of each sum."""
    return [(label, words(before), words(after)) for label, words in _SUMS.items()]


def asked_otherwise(tally: Tally) -> str | None:
    """That prompts differ, too; None where none does."""
    if not tally.asked_otherwise:
        return None
    return f"{counted(tally.asked_otherwise, 'row')} with another outcome had another prompt"


def _job_json(job: PairedJob | None) -> dict[str, Any] | None:
    if job is None:
        return None
    return {
        "job_id": job.job_id,
        "line": job.line,
        "state": str(job.state),
        "error_code": job.error_code,
        "error_message": job.error_message,
        "answers": [
            {
                "choice": answer.choice,
                "output_text": answer.output_text,
                "tool_calls": answer.tool_calls,
                "finish_reason": answer.finish_reason,
                "completion_tokens": answer.completion_tokens,
                "total_seconds": answer.total_seconds,
            }
            for answer in job.answers
        ],
    }


def _sums_json(sums: Sums) -> dict[str, Any]:
    return {
        "answers": sums.answers,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "total_seconds": sums.seconds,
        "draft_tokens": sums.draft_tokens,
        "accepted_tokens": sums.accepted_tokens,
        "acceptance_rate": sums.acceptance_rate,
        "cut_off": sums.cut_off,
    }


def _prompt(job: PairedJob | None) -> str | None:
    return None if job is None or job.request is None else prompt_of(job.request)


def _notes(before: PairedJob | None, after: PairedJob | None) -> list[str]:
    notes = []
    for which, job in (("first", before), ("second", after)):
        if job is not None and not job.answers:
            reason = f": {job.error_code}, {job.error_message}" if job.error_code else ""
            notes.append(f"{job.state} in the {which}{reason}")
    if before is not None and after is not None:
        for one, other in zip(before.answers, after.answers, strict=False):
            if one.tool_calls != other.tool_calls and _calls(one) != _calls(other):
                notes.append(f"calls of tools: {_calls(one)} in the first, {_calls(other)} in the second")
    return notes


def _calls(answer: PairedAnswer) -> str:
    return ", ".join(
        f"{call.get('function', {}).get('name')}({call.get('function', {}).get('arguments')})"
        for call in answer.tool_calls or ()
    ) or "none"  # fmt: skip


def _texts(texts: Sequence[tuple[str, str]]) -> Iterator[tuple[Piece, ...]]:
    """The pieces of each pair of texts, as far as they are compared."""
    for old, new in texts:
        if old[:_MOST_CHARS] != new[:_MOST_CHARS]:
            yield tuple(around_changes(text_diff(old[:_MOST_CHARS], new[:_MOST_CHARS])))


def _cut_off(texts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """That texts are compared in part, for each pair of which this is so."""
    for old, new in texts:
        if (longest := max(len(old), len(new))) > _MOST_CHARS:
            yield f"of {longest:,} characters the first {_MOST_CHARS:,} are compared here"


def _differing_texts(before: PairedJob | None, after: PairedJob | None) -> list[tuple[str, str]]:
    """Both texts of each choice that differs and that is not told field by field."""
    pairs = zip_longest(_outputs(before), _outputs(after), fillvalue="")
    return [(old, new) for old, new in pairs if old != new and NOTHING in (read_json(old), read_json(new))]


def _outputs(job: PairedJob | None) -> Sequence[str]:
    return [] if job is None else [answer.output_text for answer in job.answers]


def _value(value: Any) -> str:  # noqa: ANN401  (JSON)
    return "nothing" if value is NOTHING else json.dumps(value, ensure_ascii=False)
