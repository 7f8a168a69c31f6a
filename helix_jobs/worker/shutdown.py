"""Shutdown: how a worker's end goes on from each state by each event. Pure: ``WorkerEnding`` does what is said here.

What becomes of the jobs in hand is one step of a ladder, and no event leads down it:

| Jobs | What is done with them |
|---|---|
| TAKEN | the worker does not stop: it takes jobs and finishes them |
| DRAINING | no job is taken; those that run have the grace time, then they are handed back |
| HANDED_BACK | each returns to the queue now, its attempt is not counted |
| ABANDONED | nothing is written for any of them: they may be what broke the engine, so their attempts count |

No event acknowledges a message. A message is acknowledged with the end or the hand-back of its job alone, when that
is committed (``WorkerService``), so whatever is decided here, a job keeps its message or has its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


class Event(Enum):
    """What happens to a worker that is to end."""

    STOP = "a stop is asked for"
    INTERRUPT = "Ctrl-C"
    BROKEN = "the engine cannot go on, and what it computed may be why"
    EXHAUSTED = "the machine lacks something that every job needs"
    UNSUPPLIED = "no job comes, or none can be claimed or written down"
    NO_THREAD = "no thread is left for a time limit of the stop"
    OVERDUE = "the jobs have not ended in their grace time"
    NO_DATABASE = "they have not, as the database takes no writes"


class Action(Enum):
    """What is to be done."""

    DRAIN = "take no more jobs, and hand back after the grace time what is unfinished"
    HAND_BACK = "return every unfinished job to the queue now"
    ABANDON = "give every job up and write nothing"
    SET_DEADLINE = "have OVERDUE come if the stop lasts longer than grace time and hand-back"
    STOP_CONSUMING = "have Celery's consumer end"
    FIND_CAUSE = "say what an overdue stop waits for; the database may be to blame (NO_DATABASE)"
    CLOSE_WRITER = "wait no longer for writes"
    # The process ends after so long, whatever hangs in its orderly way out.
    LIMIT_INTERRUPTED = "a few seconds, exit code 130"
    LIMIT_BROKEN = "half a minute, exit code 1"
    LIMIT_UNSUPPLIED = "the grace time and half a minute, exit code 1"
    LIMIT_OVERDUE = "a minute, exit code 1"


class Jobs(IntEnum):
    """What becomes of the jobs in hand, see the module's table."""

    TAKEN = auto()
    DRAINING = auto()
    HANDED_BACK = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class Shutdown:
    """How far a worker's end has come.

    Attributes:
        jobs: What becomes of the jobs in hand.
        is_interrupted: Ctrl-C came while the worker stopped already.
        gave_up: The worker is of no use any more, for a reason that lies outside its jobs.
    """

    jobs: Jobs = Jobs.TAKEN
    is_interrupted: bool = False
    gave_up: bool = False

    @property
    def is_stopping(self) -> bool:
        """Whether the worker is to end, for whatever reason."""
        return self.jobs is not Jobs.TAKEN

    @property
    def is_broken(self) -> bool:
        """Whether the engine cannot go on."""
        return self.jobs is Jobs.ABANDONED

    @property
    def exit_code(self) -> int:
        """What the process ends with if its consumer ends now. After a failure a supervisor starts a new process."""
        if self.is_broken or self.gave_up:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self.is_interrupted else EXIT_OK


Step = tuple[Shutdown, tuple[Action, ...]]


def react(state: Shutdown, event: Event) -> Step:
    """Say where an event leads and what is to be done, in this order."""
    match event:
        case Event.INTERRUPT if state.is_stopping and not state.is_interrupted:
            interrupted = replace(state, is_interrupted=True)
            step = _hand_back(interrupted, Action.LIMIT_INTERRUPTED, Action.STOP_CONSUMING)
        case Event.STOP | Event.INTERRUPT:
            step = _drain(state)
        case Event.BROKEN if not state.is_broken:
            broken = replace(state, jobs=Jobs.ABANDONED)
            step = broken, (Action.ABANDON, Action.LIMIT_BROKEN, Action.STOP_CONSUMING)
        case Event.UNSUPPLIED if not state.gave_up:
            step = _drain(replace(state, gave_up=True), Action.LIMIT_UNSUPPLIED)
        case Event.EXHAUSTED:
            unsupplied, actions = react(state, Event.UNSUPPLIED)
            step = _hand_back(unsupplied, *actions)
        case Event.NO_THREAD if state.jobs is Jobs.DRAINING:
            step = _hand_back(state)
        case Event.OVERDUE if state.is_stopping:
            step = state, (Action.LIMIT_OVERDUE, Action.FIND_CAUSE)
        case Event.NO_DATABASE if state.is_stopping:
            step = replace(state, gave_up=True), (Action.CLOSE_WRITER,)
        case _:
            step = state, ()
    return step


def _drain(state: Shutdown, *more: Action) -> Step:
    """Begin to stop, once; have the consumer end in any case, as one that was made meanwhile has not heard of it."""
    if state.is_stopping:
        return state, (*more, Action.STOP_CONSUMING)
    draining = replace(state, jobs=Jobs.DRAINING)
    return draining, (Action.DRAIN, Action.SET_DEADLINE, *more, Action.STOP_CONSUMING)


def _hand_back(state: Shutdown, *more: Action) -> Step:
    """Hand back what is not abandoned: of an abandoned job the attempt counts, whatever else happens."""
    if state.is_broken:
        return state, more
    return replace(state, jobs=Jobs.HANDED_BACK), (Action.HAND_BACK, *more)
