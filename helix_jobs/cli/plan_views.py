"""Views of a plan: a table for people, JSON with stable keys for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.cli.console import timestamp
from helix_jobs.cli.moments import done_words, forecast_json, probability_by, probability_words
from helix_jobs.cli.views import bad_line_json, facts_view
from helix_jobs.wording import clock_time, counted, duration, percent, rough_size

if TYPE_CHECKING:
    from datetime import datetime

    from rich.table import Table

    from helix_jobs.client.plan import Plan
    from helix_jobs.client.survey import Survey
    from helix_jobs.opening_hours import OpeningHours

_SHOWN_REFUSALS = 3


@dataclass(frozen=True, slots=True)
class Weights:
    """Memory of the models, in bytes.

    Attributes:
        target: Of the target's weights.
        draft: Of the draft's; 0 without one.
    """

    target: int
    draft: int


def plan_view(
    found: Plan, now: datetime, hours: OpeningHours | None, by: datetime | None, weights: Weights | None
) -> Table:
    """All facts of a plan, each in a row."""
    seen, info, ends = found.survey, found.info, found.forecast
    facts = [("Lines", _lines_words(seen))]
    facts += [("Refused", f"line {line:,}: {reason}") for line, reason in seen.refusals[:_SHOWN_REFUSALS]]
    shared = f", of which the prefix cache saves {percent(seen.shared_tokens / max(seen.prompt_tokens, 1))}"
    longest = f"; the longest prompt has {seen.longest:,}"
    facts.append(("Tokens in", f"{seen.prompt_tokens:,}{shared if seen.shared_tokens else ''}{longest}"))
    facts.append(("Tokens out", f"about {ends.tokens:,}; at most {seen.limit_tokens:,}"))
    if not info.is_remote:
        facts.append(("Memory", _memory_words(found, weights)))
    facts.append(("Engine", f"{info.target_model} on {info.device}, {found.slots:,} at once"))
    cut = ", broken off" if found.trial.was_cut else ""
    failed = f"; {counted(found.trial.failed, 'line')} failed" if found.trial.failed else ""
    facts.append(("Trial", f"{counted(found.sampled, 'line')} in {duration(found.trial.seconds)}{cut}{failed}"))
    facts.append(
        ("Time", f"{duration(ends.median)} ({duration(ends.low)} to {duration(ends.high)} in eight of ten cases)")
    )
    facts.append(("Begun now", done_words(ends, now, hours)))
    if by is not None:
        likely = probability_words(probability_by(ends, now, by, hours))
        facts.append((f"By {clock_time(by, now)}", f"{likely} likely"))
    return facts_view(facts)


def plan_json(
    found: Plan, now: datetime, hours: OpeningHours | None, by: datetime | None, weights: Weights | None
) -> dict[str, Any]:
    """One plan for programs. Keys are stable: new ones may come, none is renamed."""
    seen, info = found.survey, found.info
    until = None
    if by is not None:
        until = {"time": timestamp(by), "probability": round(probability_by(found.forecast, now, by, hours), 3)}
    return {
        "lines": seen.lines + seen.spared,
        "from_cache": seen.spared,
        "answers": seen.answers,
        "bad_lines": seen.bad_count,
        "invalid": [bad_line_json(fault) for bad in seen.bad_lines for fault in bad.faults],
        "too_long": seen.too_long,
        "refused": seen.refused,
        "refusals": [{"line": line, "reason": reason} for line, reason in seen.refusals],
        "prompt_tokens": seen.prompt_tokens,
        "shared_prompt_tokens": seen.shared_tokens,
        "longest_prompt": seen.longest,
        "completion_tokens": found.forecast.tokens,
        "max_completion_tokens": seen.limit_tokens,
        "target_model": info.target_model,
        "draft_model": info.draft_model,
        "device": info.device,
        "slots": found.slots,
        "weights_bytes": None if weights is None else weights.target,
        "draft_bytes": None if weights is None else weights.draft,
        "cache_bytes": info.kv_cache_bytes,
        "cache_tokens": info.num_blocks * info.block_size,
        "trial": {
            "lines": found.sampled,
            "seconds": round(found.trial.seconds, 3),
            "was_cut": found.trial.was_cut,
            "failed": found.trial.failed,
        },
        **forecast_json(found.forecast, now, hours),
        "by": until,
    }


def _lines_words(seen: Survey) -> str:
    parts = [counted(seen.lines + seen.spared, "line")]
    if seen.spared:
        parts.append(f"{seen.spared:,} of them with a stored answer or equal to an earlier one")
    if seen.answers != seen.lines:
        parts.append(counted(seen.answers, "answer"))
    if seen.bad_count:
        parts.append(f"{seen.bad_count:,} bad")
    if seen.too_long:
        parts.append(f"{seen.too_long:,} too long for the context")
    if seen.refused:
        parts.append(f"{seen.refused:,} that the model cannot take")
    return ", ".join(parts)


def _memory_words(found: Plan, weights: Weights | None) -> str:
    info = found.info
    tokens = info.num_blocks * info.block_size
    parts = []
    if weights is not None:
        parts.append(f"{rough_size(weights.target)} for the model")
        parts += [f"{rough_size(weights.draft)} for the draft"] if weights.draft else []
    parts.append(f"{rough_size(info.kv_cache_bytes)} for a cache of {tokens:,} tokens")
    return ", ".join(parts)
