"""plan_input: what an input needs and how long it takes, from a count of its tokens and a trial of a few lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.client.survey import survey
from helix_jobs.errors import InputError
from helix_jobs.forecast.forecast import Forecast, forecast
from helix_jobs.forecast.length_model import LengthModel
from helix_jobs.forecast.prefix_savings import PrefixSavings
from helix_jobs.forecast.rate_model import GUSTS, RateModel
from helix_jobs.forecast.trial import run_trial
from helix_jobs.forecast.work import MOST_JOBS, JobShape, Work
from helix_jobs.intake.constraint_fields import default_constraint
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from helix_jobs.client.inputs import Input
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.client.spared_lines import SparedLines
    from helix_jobs.client.survey import Candidate, Survey
    from helix_jobs.engine.protocol import EngineInfo, EngineProtocol
    from helix_jobs.forecast.trial import Trial
    from helix_jobs.settings import Settings
    from helix_jobs.tables.ask import TableAsk

# Without --sample: this share of the lines, but at least so many, and full batch slots half as often again.
_SHARE: Final = 0.01
_FEWEST: Final = 32
_SLOT_TURNS: Final = 1.5
# Of a small input not more than this part.
_MOST_PART: Final = 3
DEFAULT_TRIAL_SECONDS: Final = 180.0
_SAMPLE: Final = re.compile(r"(\d{1,9}|\d+(?:\.\d+)?%)")
# Where the server of the user's does not say how many blocks its cache has.
_MANY_BLOCKS: Final = 100_000
_BLOCK_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class SampleSize:
    """How many lines to try.

    Attributes:
        lines: So many; None for ``share`` of them.
        share: This share of the lines.
    """

    lines: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> SampleSize:
        """Read ``200`` or ``2%``.

        Raises:
            InputError: It is neither.
        """
        found = _SAMPLE.fullmatch(text.strip())
        size = cls()
        if found:
            size = cls(share=float(text.strip()[:-1]) / 100) if "%" in text else cls(lines=int(text))
        if (size.lines or 0) < 1 and not 0 < (size.share or 0.0) <= 1:
            raise InputError(
                f"--sample {text!r:.40} is no number of lines; give one such as 200, or a share such as 2%"
            )
        return size

    def of(self, lines: int, slots: int) -> int:
        """The number of lines to try, of so many that there are."""
        if self.lines is not None:
            wanted = self.lines
        elif self.share is not None:
            wanted = ceil(self.share * lines)
        else:
            wanted = max(ceil(_SHARE * lines), _FEWEST, ceil(_SLOT_TURNS * slots))
            wanted = min(wanted, max(ceil(lines / _MOST_PART), min(lines, _FEWEST // 4)))
        return min(wanted, lines)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an input needs.

    Attributes:
        survey: What it holds.
        info: The engine that was tried.
        slots: Sequences that will run at once.
        sampled: Lines that were tried.
        trial: What the trial told.
        forecast: How long the input takes once it begins.
    """

    survey: Survey
    info: EngineInfo
    slots: int
    sampled: int
    trial: Trial
    forecast: Forecast


def plan_input(
    settings: Settings,
    engine: EngineProtocol,
    source: Input,
    defaults: LineDefaults,
    *,
    response_format: Mapping[str, Any] | None = None,
    table: TableAsk | None = None,
    spared: SparedLines | None = None,
    sample: SampleSize | None = None,
    trial_seconds: float = DEFAULT_TRIAL_SECONDS,
    on_reading: Callable[[str], None] | None = None,
    on_progress: Callable[[str], None] = lambda _line: None,
) -> Plan:
    """Count an input's tokens, try some of its lines, and forecast. Stores nothing.

    Args:
        settings: The limits of lines.
        engine: As a worker would build it, with nothing to do.
        source: As for ``HelixClient.submit``.
        defaults: For lines that do not say otherwise.
        response_format: The form of the answers, as for ``HelixClient.submit``.
        table: What is asked of the source as a table; None for lines.
        spared: Says which lines nobody computes; None where all are.
        sample: How many lines to try; None for the common number.
        trial_seconds: How long the trial may take.
        on_reading: Called with how a table is read.
        on_progress: Receives what goes on.

    Raises:
        InputError: The input cannot be read, or no line of it can be answered.
        EngineError: Not one line of the trial could be answered.
    """
    if response_format is not None:
        defaults = replace(defaults, constraint=default_constraint(response_format))
    info = engine.info
    found = survey(
        settings,
        source,
        defaults,
        engine,
        savings=PrefixSavings(info.block_size or _BLOCK_SIZE, info.num_blocks or _MANY_BLOCKS),
        context=info.max_model_len,
        table=table,
        spared=spared,
        on_reading=on_reading,
        on_progress=lambda lines: on_progress(f"{counted(lines, 'line')} read"),
    )
    if not found.lines and not found.spared:
        raise InputError(f"no line of the input can be answered, so there is nothing to plan{_first_reason(found)}")
    size = (sample or SampleSize()).of(found.lines, info.max_batch_size)
    chosen = stratified(found.candidates.items, size)
    trial = run_trial(
        engine,
        [one.request for one in chosen],
        {one.request.request_id: one.shape.limit for one in chosen},
        most_seconds=trial_seconds,
        on_ended=lambda count: on_progress(f"{count:,} of {counted(len(chosen), 'line')} tried"),
    )
    if not found.lines:
        return Plan(found, info, info.max_batch_size, 0, trial, Forecast((0.0,)))
    rate = RateModel.of(trial.stretches)
    if rate is None:
        raise InputError("the trial ended before its first step; allow it more time with --trial-minutes")
    known = {one.place: trial.ended[one.request.request_id] for one in chosen if one.request.request_id in trial.ended}
    slots = _slots(info, found, trial)
    work = Work((), tuple(_shapes(found, known)), found.answers, slots)
    ends = forecast(work, LengthModel(trial.answers), rate, gusts=GUSTS)
    return Plan(found, info, slots, len(chosen), trial, ends)


def _first_reason(found: Survey) -> str:
    """Why the first line cannot be answered; empty where there is no line."""
    if found.bad_lines:
        bad = found.bad_lines[0]
        return f"; line {bad.line} is the first: {bad.field or 'it'} {bad.reason}; {bad.remedy}"
    return f"; line {found.refusals[0][0]} is the first: {found.refusals[0][1]}" if found.refusals else ""


def stratified(candidates: Sequence[Candidate], size: int) -> list[Candidate]:
    """So many lines, evenly spread over limits and lengths of prompts, in the order of the input."""
    ordered = sorted(candidates, key=lambda one: (one.shape.limit, one.shape.prompt_tokens))
    size = min(size, len(ordered))
    picked = [ordered[(2 * turn + 1) * len(ordered) // (2 * size)] for turn in range(size)]
    return sorted(picked, key=lambda one: one.place)


def _shapes(found: Survey, known: Mapping[int, tuple[int, ...]]) -> list[JobShape]:
    """The shapes to simulate; those that were tried have their answers' lengths, where each stands for itself."""
    shapes: list[JobShape] = []
    if found.answers > MOST_JOBS or len(found.shapes.items) < found.answers:
        return [shape for _, shape in found.shapes.items]
    turn = 0
    before = -1
    for place, shape in found.shapes.items:
        turn = turn + 1 if place == before else 0
        before = place
        tokens = known.get(place)
        length = tokens[turn] if tokens is not None and turn < len(tokens) else None
        shapes.append(JobShape(shape.prompt_tokens, shape.computed_tokens, shape.limit, known=length))
    return shapes


def _slots(info: EngineInfo, found: Survey, trial: Trial) -> int:
    """Sequences at once: the batch slots, or fewer where the cache does not hold so many."""
    tokens = sum(one.tokens for one in trial.answers) / max(len(trial.answers), 1)
    each = found.prompt_tokens / found.lines + tokens
    room = info.num_blocks * info.block_size
    if info.is_remote or not room:
        return info.max_batch_size
    return max(1, min(info.max_batch_size, int(room / max(each, 1.0))))
