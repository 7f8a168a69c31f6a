"""Brakes: when a batch is to pause by itself instead of burning the night.

A brake counts what its batch has spent since the batch was submitted, or since somebody let it go on after a brake had
stopped it: then it may spend the same again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InputError
from helix_jobs.wording import counted, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fewer ended jobs say nothing about a share.
LEAST_ENDED: Final = 20
_HOUR: Final = 3600
_MOST_TOKENS: Final = 10**15
_MOST_HOURS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Spent:
    """What a batch has spent.

    Attributes:
        tokens: Tokens computed for answers that count: of prompts, without those that the prefix cache had, and of
            answers.
        ended: Jobs that ended with an answer or an error.
        failed: Jobs among them that ended with an error.
        seconds: How long jobs of it have run.
    """

    tokens: int = 0
    ended: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stop:
    """A brake that stops its batch.

    Attributes:
        brake: Its name among the fields of ``Brakes``.
        why: A sentence without its full stop.
    """

    brake: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Brakes:
    """What stops a batch; None does not.

    Attributes:
        max_tokens_total: So many tokens were computed.
        max_hours: It has run for so long.
        stop_if_failing: This share of its ended jobs failed, such as 0.05; at least 20 have to have ended.
    """

    max_tokens_total: int | None = None
    max_hours: float | None = None
    stop_if_failing: float | None = None

    def __post_init__(self) -> None:
        """Refuse a brake that could never stop anything, or stops at once.

        Raises:
            InputError: It names the brake and what it takes.
        """
        tokens, hours, share = self.max_tokens_total, self.max_hours, self.stop_if_failing
        if tokens is not None and not (_is_number(tokens, int) and 1 <= tokens <= _MOST_TOKENS):
            raise InputError(f"max_tokens_total is {tokens!r}; give a whole number of tokens from 1 on")
        if hours is not None and not (_is_number(hours, int, float) and 0 < hours <= _MOST_HOURS):
            raise InputError(f"max_hours is {hours!r}; give hours above 0, up to {_MOST_HOURS:,}")
        if share is not None and not (_is_number(share, int, float) and 0 < share <= 1):
            raise InputError(f"stop_if_failing is {share!r}; give a share above 0, up to 1: 0.05 is 5 %")

    def to_dict(self) -> dict[str, Any]:
        """The brakes that are set, as they are stored and printed."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_mapping(cls, stored: Mapping[str, Any]) -> Brakes:
        """The brakes of a stored batch. What this version does not know is left out.

        Raises:
            InputError: A value is none that a brake can have; somebody changed it by hand.
        """
        return cls(**{name: stored[name] for name in cls.__slots__ if name in stored})

    def stop(self, spent: Spent) -> Stop | None:
        """The first brake that says stop; None while the batch may go on."""
        tokens, hours, share = self.max_tokens_total, self.max_hours, self.stop_if_failing
        if tokens is not None and spent.tokens >= tokens:
            why = f"{counted(spent.tokens, 'token')} computed; the limit is {tokens:,} (--max-tokens-total)"
            return Stop("max_tokens_total", why)
        if hours is not None and spent.seconds >= hours * _HOUR:
            why = f"it has run for {duration(spent.seconds)}; the limit is {duration(hours * _HOUR)} (--max-hours)"
            return Stop("max_hours", why)
        if share is not None and spent.ended >= LEAST_ENDED and spent.failed >= share * spent.ended:
            failed = (
                f"{spent.failed:,} of {counted(spent.ended, 'job')} failed, {100 * spent.failed / spent.ended:.3g} %"
            )
            return Stop("stop_if_failing", f"{failed}; the limit is {100 * share:.3g} % (--stop-if-failing)")
        return None


def parse_share(text: str) -> float:
    """The share that a percentage such as ``5%`` or ``0.5 %`` stands for.

    Raises:
        InputError: It is no percentage above 0, up to 100.
    """
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / 100 if number.endswith("%") else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"{text!r} is no percentage above 0, up to 100; write it as in 5%")
    return share


def in_words(stored: Mapping[str, Any]) -> str:
    """A batch's stored brakes on one line: ``1,000,000 tokens, 8 h 00 min, 5 % failing``."""
    try:
        brakes = Brakes.from_mapping(stored)
    except InputError:
        return "cannot be read"
    parts = [] if brakes.max_tokens_total is None else [counted(brakes.max_tokens_total, "token")]
    parts += [] if brakes.max_hours is None else [duration(brakes.max_hours * _HOUR)]
    parts += [] if brakes.stop_if_failing is None else [f"{100 * brakes.stop_if_failing:.3g} % failing"]
    return ", ".join(parts)


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
