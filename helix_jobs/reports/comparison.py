"""Two batches side by side: what became of each pair of jobs, and the sums of both. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.reports.json_diff import NOTHING, FieldChange, json_diff, read_json
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.storage.job_pairs import JobPair, PairedAnswer, PairedJob

_ASKED: Final = ("prompt", "messages", "prompt_token_ids", "score_choices")
_CUT: Final = "length"
# Names of fields that are counted; a model may make up any number.
_MOST_FIELDS: Final = 1000


class Change(StrEnum):
    """What became of a pair of jobs."""

    SAME = "same"
    CHANGED = "changed"
    NEWLY_FAILED = "newly_failed"
    NEWLY_FIXED = "newly_fixed"
    FAILED_TWICE = "failed_twice"
    UNFINISHED = "unfinished"
    ONLY_BEFORE = "only_before"
    ONLY_AFTER = "only_after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What became of a pair, and how its answers differ.

    Attributes:
        change: The kind.
        before: The job of the first batch; None where it has none.
        after: The job of the second batch; None where it has none.
        fields: The fields that differ, where both answers are JSON objects or lists.
        was_asked_otherwise: Whether the prompts differ; None where nobody looked, as the answers are the same.
    """

    change: Change
    before: PairedJob | None
    after: PairedJob | None
    fields: tuple[FieldChange, ...] = ()
    was_asked_otherwise: bool | None = None

    @property
    def name(self) -> str:
        """The pair's ``custom_id``, or its line."""
        job = self.before or self.after
        if job is None:
            return ""
        return job.custom_id if job.custom_id is not None else f"line {job.line}"


@dataclass(slots=True)
class Sums:
    """Sums over the answers of one batch, of pairs in which both jobs succeeded.

    Attributes:
        answers: Number of answers.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        seconds: Time from admission to the end, summed over the answers.
        draft_tokens: Tokens drafted.
        accepted_tokens: The part of them that was accepted.
        cut_off: Answers that a limit cut off.
    """

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    cut_off: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted of drafted tokens; None where nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    @property
    def mean_tokens(self) -> float | None:
        """Tokens of an answer on average."""
        return self.completion_tokens / self.answers if self.answers else None

    @property
    def mean_seconds(self) -> float | None:
        """Seconds of an answer on average."""
        return self.seconds / self.answers if self.answers else None

    def add(self, answers: Sequence[PairedAnswer]) -> None:
        """Count the answers of a job."""
        for answer in answers:
            self.answers += 1
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
            self.seconds += answer.total_seconds
            self.draft_tokens += answer.draft_tokens
            self.accepted_tokens += answer.accepted_tokens
            self.cut_off += answer.finish_reason == _CUT


@dataclass(slots=True)
class Tally:
    """What two batches come to, counted pair by pair.

    Attributes:
        changes: Kind of change -> pairs.
        asked_otherwise: Pairs with different answers whose prompts differ, too.
        fields: Field of JSON answers -> pairs in which it differs.
        before: Sums of the first batch.
        after: Sums of the second batch.
    """

    changes: Counter[Change] = field(default_factory=Counter)
    asked_otherwise: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    before: Sums = field(default_factory=Sums)
    after: Sums = field(default_factory=Sums)

    def add(self, difference: Difference) -> None:
        """Count a pair."""
        self.changes[difference.change] += 1
        self.asked_otherwise += bool(difference.was_asked_otherwise)
        for name in {change.field for change in difference.fields}:
            if name in self.fields or len(self.fields) < _MOST_FIELDS:
                self.fields[name] += 1
        before, after = difference.before, difference.after
        if before is not None and after is not None and before.answers and after.answers:
            self.before.add(before.answers)
            self.after.add(after.answers)


def compare(pair: JobPair) -> Difference:
    """Say what became of a pair.

    Answers are compared by their text and their calls of tools, JSON answers by their values: neither white space nor
    the order of keys makes a difference there. What the model thought before an answer is not compared.
    """
    before, after = pair.before, pair.after
    if after is None:
        return Difference(change=Change.ONLY_BEFORE, before=before, after=None)
    if before is None:
        return Difference(change=Change.ONLY_AFTER, before=None, after=after)
    if JobState.QUEUED in (before.state, after.state) or JobState.RUNNING in (before.state, after.state):
        return Difference(change=Change.UNFINISHED, before=before, after=after)
    asked = None if before.request is None else _asked(before.request) != _asked(after.request or {})
    succeeded = (before.state is JobState.SUCCEEDED, after.state is JobState.SUCCEEDED)
    if succeeded != (True, True):
        change = {
            (True, False): Change.NEWLY_FAILED,
            (False, True): Change.NEWLY_FIXED,
            (False, False): Change.FAILED_TWICE,
        }[succeeded]
        return Difference(change=change, before=before, after=after, was_asked_otherwise=asked)
    is_same, fields = _compare_answers(before.answers, after.answers)
    if is_same:
        return Difference(change=Change.SAME, before=before, after=after)
    return Difference(
        change=Change.CHANGED, before=before, after=after, fields=tuple(fields), was_asked_otherwise=asked
    )


def _compare_answers(before: Sequence[PairedAnswer], after: Sequence[PairedAnswer]) -> tuple[bool, list[FieldChange]]:
    """Whether all choices are the same, and the fields in which JSON answers differ."""
    is_same, fields = len(before) == len(after), []
    for one, other in zip(before, after, strict=False):
        if _calls(one) != _calls(other):
            is_same = False
        if one.output_text == other.output_text:
            continue
        values = read_json(one.output_text), read_json(other.output_text)
        if NOTHING in values:
            is_same = False
            continue
        changes = json_diff(*values)
        is_same = is_same and not changes
        fields += changes
    return is_same, fields


def _calls(answer: PairedAnswer) -> list[Any]:
    """The calls of tools without their ids, which differ with each request."""
    return [call.get("function") for call in answer.tool_calls or ()]


def _asked(request: Mapping[str, Any]) -> list[Any]:
    return [request.get(name) for name in _ASKED]
