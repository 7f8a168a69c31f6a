"""ForecastShape: batches that differ in everything that a forecast has to know, as data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bench.extraction import RECORD, extraction_messages
from helix_jobs.bench.prompts import task, text

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """How the worker is started.

    Attributes:
        slots: Sequences at once.
        draft: What drafts, as HELIX_DRAFT_MODEL.
    """

    slots: int
    draft: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastShape:
    """One batch.

    Attributes:
        name: What it is called.
        engine: Whom it is run by.
        share: Its rows, as a share of those that the bench is asked for: longer rows are fewer.
        words: Fewest and most words of text in a prompt; None takes the built-in tasks.
        limits: Limits of tokens, in turn.
        has_schema: The rows are reports that are turned into records.
        shared_words: Words that every prompt begins with.
        temperature: How its answers are sampled.
        ascending: The longest texts come last, as in a file that is sorted.
    """

    name: str
    engine: EngineShape
    share: float = 1.0
    words: tuple[int, int] | None = None
    limits: tuple[int, ...] = (64,)
    has_schema: bool = False
    shared_words: int = 0
    temperature: float = 0.0
    ascending: bool = False

    def rows(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Its rows: the same for the same seed, and no prompt twice for different seeds."""
        rng = random.Random(seed)  # noqa: S311  (a workload, not a secret)
        begin = text(seed, self.shared_words) + " " if self.shared_words else ""
        numbers = range(max(8, round(count * self.share)))
        found = [self._row(rng, begin, seed * 100_000 + number) for number in numbers]
        return sorted(found, key=lambda row: len(row["messages"][-1]["content"])) if self.ascending else found

    def _row(self, rng: random.Random, begin: str, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {"max_tokens": self.limits[number % len(self.limits)], "temperature": self.temperature}
        if self.has_schema:
            form = {"type": "json_schema", "json_schema": {"name": "record", "schema": RECORD}}
            return {**row, "messages": list(extraction_messages(number)), "response_format": form}
        if self.words is None:
            return {**row, "messages": [{"role": "user", "content": f"{begin}{task(number)} ({number})"}]}
        body = text(number, rng.randint(*self.words))
        return {**row, "messages": [{"role": "user", "content": f"{begin}Say in short what this says: {body}"}]}


_PLAIN: Final = EngineShape(slots=16, draft="none")
_COPY: Final = EngineShape(slots=8, draft="int8")
_LOOKUP: Final = EngineShape(slots=32, draft="lookup")

# In turn over the engines, so that the first few are of all kinds.
SHAPES: Final[Sequence[ForecastShape]] = (
    ForecastShape(name="tasks", engine=_PLAIN),
    ForecastShape(name="tasks, int8 draft", engine=_COPY, share=0.6),
    ForecastShape(name="extraction, lookup", engine=_LOOKUP, has_schema=True, limits=(160,), share=0.6),
    ForecastShape(name="long limits", engine=_PLAIN, limits=(256,), share=0.4),
    ForecastShape(name="short answers, int8 draft", engine=_COPY, limits=(8,)),
    ForecastShape(name="tasks, lookup", engine=_LOOKUP, limits=(96,)),
    ForecastShape(name="long prompts", engine=_PLAIN, words=(150, 500), limits=(32,), share=0.5),
    ForecastShape(name="extraction, int8 draft", engine=_COPY, has_schema=True, limits=(160,), share=0.4),
    ForecastShape(name="limits of all sizes, lookup", engine=_LOOKUP, limits=(16, 64, 192), share=0.7),
    ForecastShape(name="prompts of all lengths", engine=_PLAIN, words=(5, 400), limits=(64,), share=0.6),
    ForecastShape(name="limits of all sizes, int8 draft", engine=_COPY, limits=(16, 64, 192), share=0.5),
    ForecastShape(name="one beginning for all, lookup", engine=_LOOKUP, shared_words=200, limits=(48,)),
    ForecastShape(name="limits of all sizes", engine=_PLAIN, limits=(8, 32, 256), share=0.6),
    ForecastShape(name="long prompts, int8 draft", engine=_COPY, words=(100, 400), limits=(48,), share=0.4),
    ForecastShape(name="sampled, lookup", engine=_LOOKUP, temperature=0.8, limits=(128,), share=0.8),
    ForecastShape(name="sampled", engine=_PLAIN, temperature=1.0, limits=(128,), share=0.6),
    ForecastShape(name="sampled, int8 draft", engine=_COPY, temperature=0.7, limits=(96,), share=0.5),
    ForecastShape(name="one token each, lookup", engine=_LOOKUP, limits=(1,), words=(20, 120)),
    ForecastShape(name="extraction", engine=_PLAIN, has_schema=True, limits=(160,), share=0.5),
    ForecastShape(name="one beginning for all, int8 draft", engine=_COPY, shared_words=300, limits=(64,), share=0.5),
    ForecastShape(name="prompts of all lengths, lookup", engine=_LOOKUP, words=(5, 300), limits=(24, 96)),
    ForecastShape(name="short texts first", engine=_PLAIN, words=(5, 400), limits=(32,), share=0.6, ascending=True),
    ForecastShape(name="short texts first, lookup", engine=_LOOKUP, words=(5, 400), limits=(32,), ascending=True),
)
