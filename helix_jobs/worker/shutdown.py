"""Shutdown: the state machine of a worker's end. Pure: ``WorkerEnding`` carries out its actions.

The fate of the jobs in hand is one step of a ladder, and no event leads back:

| Jobs | What is done with them |
|---|---|
| TAKEN | the worker does not stop: it takes jobs and finishes them |
| DRAINING | no job is taken; those that run have the grace time, then they are handed back |
| HANDED_BACK | each returns to the queue now, its attempt is not counted |
| ABANDONED | nothing is written for any of them: they may be what broke the engine, so their attempts count |

No event acknowledges a message. Only the committed end or hand-back of its job does (``WorkerService``). So whatever is
decided here, a job keeps its message or has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


class Event(Enum):
    """An event that concerns a worker's end."""

    STOP = "a stop is asked for"
    INTERRUPT = "Ctrl-C"
    RECALL = "somebody else needs the device now"
    BROKEN = "the engine cannot go on, and what it computed may be why"
    EXHAUSTED = "the machine lacks something that every job needs"
    UNSUPPLIED = "no job comes, or none can be claimed or written down"
    NO_THREAD = "no thread is left for a time limit of the stop"
    OVERDUE = "the jobs have not ended in their grace time"
    NO_DATABASE = "they have not, as the database takes no writes"


class Action(Enum):
    """An action for ``WorkerEnding``."""

    DRAIN = "take no more jobs, and hand back after the grace time what is unfinished"
    HAND_BACK = "return every unfinished job to the queue now"
    ABANDON = "give every job up and write nothing"
    SET_DEADLINE = "have OVERDUE come if the stop lasts longer than grace time and hand-back"
    STOP_CONSUMING = "have Celery's consumer end"
    FIND_CAUSE = "say what an overdue stop waits for; the database may be to blame (NO_DATABASE)"
    CLOSE_WRITER = "wait no longer for writes"
    # The process ends after this time, whatever hangs in the orderly shutdown.
    LIMIT_INTERRUPTED = "a few seconds, exit code 130"
    LIMIT_BROKEN = "half a minute, exit code 1"
    LIMIT_UNSUPPLIED = "the grace time and half a minute, exit code 1"
    LIMIT_OVERDUE = "a minute, exit code 1"


class Jobs(IntEnum):
    """The fate of the jobs in hand, see the module's table."""

    TAKEN = auto()
    DRAINING = auto()
    HANDED_BACK = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The state of a worker's end.

    Attributes:
        jobs: The fate of the jobs in hand.
        is_interrupted: Ctrl-C came while the worker was already stopping.
        gave_up: The worker can do no more work, for a reason other than its jobs.
    """

    jobs: Jobs = Jobs.TAKEN
    is_interrupted: bool = False
    gave_up: bool = False

    @property
    def is_stopping(self) -> bool:
        """Whether the worker is stopping, for any reason."""
        return self.jobs is not Jobs.TAKEN

    @property
    def is_broken(self) -> bool:
        """Whether the engine cannot go on."""
        return self.jobs is Jobs.ABANDONED

    @property
    def exit_code(self) -> int:
        """The exit code if the consumer ends now. After a failure a supervisor starts a new process."""
        if self.is_broken or self.gave_up:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self.is_interrupted else EXIT_OK


Step = tuple[Shutdown, tuple[Action, ...]]


def react(state: Shutdown, event: Event) -> Step:
    """Return the state after an event, and the actions to carry out, in order."""
    match event:
        case Event.INTERRUPT if state.is_stopping and not state.is_interrupted:
            interrupted = replace(state, is_interrupted=True)
            step = _hand_back(interrupted, Action.LIMIT_INTERRUPTED, Action.STOP_CONSUMING)
        case Event.STOP | Event.INTERRUPT:
            step = _drain(state)
        case Event.RECALL:
            draining, actions = _drain(state)
            step = _hand_back(draining, *actions)
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
    """Begin to stop, once; stop the consumer in any case, as a new one does not know of the earlier stop."""
    if state.is_stopping:
        return state, (*more, Action.STOP_CONSUMING)
    draining = replace(state, jobs=Jobs.DRAINING)
    return draining, (Action.DRAIN, Action.SET_DEADLINE, *more, Action.STOP_CONSUMING)


def _hand_back(state: Shutdown, *more: Action) -> Step:
    """Hand back the jobs unless they are abandoned: an abandoned job's attempt counts, whatever else happens."""
    if state.is_broken:
        return state, more
    return replace(state, jobs=Jobs.HANDED_BACK), (Action.HAND_BACK, *more)
