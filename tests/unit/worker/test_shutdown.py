"""Every state of a worker's end with every event, as a table; and what holds for every sequence of events."""

from __future__ import annotations

from itertools import product

import pytest

from helix_jobs.worker.shutdown import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Action,
    Event,
    Jobs,
    Shutdown,
    Step,
    react,
)

# A row for each state, a column for each event. A state: jobs are taken (t), draining (d), handed back (h) or abandoned
# (a); the worker is interrupted (i); it gave up (!). Behind the stroke: what is to be done, see LETTERS.
TABLE = """
     STOP    INTERRUPT  RECALL   BROKEN   EXHAUSTED  UNSUPPLIED  NO_THREAD  OVERDUE  NO_DATABASE
t    d/Dsc   d/Dsc      h/HDsc   a/Abc    h!/HDsuc   d!/Dsuc     t/         t/       t/
d    d/c     hi/Hic     h/Hc     a/Abc    h!/Huc     d!/uc       h/H        d/of     d!/w
d!   d!/c    hi!/Hic    h!/Hc    a!/Abc   h!/H       d!/         h!/H       d!/of    d!/w
h    h/c     hi/Hic     h/Hc     a/Abc    h!/Huc     h!/uc       h/         h/of     h!/w
h!   h!/c    hi!/Hic    h!/Hc    a!/Abc   h!/H       h!/         h!/        h!/of    h!/w
hi   hi/c    hi/c       hi/Hc    ai/Abc   hi!/Huc    hi!/uc      hi/        hi/of    hi!/w
hi!  hi!/c   hi!/c      hi!/Hc   ai!/Abc  hi!/H      hi!/        hi!/       hi!/of   hi!/w
a    a/c     ai/ic      a/c      a/       a!/uc      a!/uc       a/         a/of     a!/w
a!   a!/c    ai!/ic     a!/c     a!/      a!/        a!/         a!/        a!/of    a!/w
ai   ai/c    ai/c       ai/c     ai/      ai!/uc     ai!/uc      ai/        ai/of    ai!/w
ai!  ai!/c   ai!/c      ai!/c    ai!/     ai!/       ai!/        ai!/       ai!/of   ai!/w
"""
LETTERS = {
    "D": Action.DRAIN,
    "H": Action.HAND_BACK,
    "A": Action.ABANDON,
    "s": Action.SET_DEADLINE,
    "c": Action.STOP_CONSUMING,
    "f": Action.FIND_CAUSE,
    "w": Action.CLOSE_WRITER,
    "i": Action.LIMIT_INTERRUPTED,
    "b": Action.LIMIT_BROKEN,
    "u": Action.LIMIT_UNSUPPLIED,
    "o": Action.LIMIT_OVERDUE,
}
JOBS = {"t": Jobs.TAKEN, "d": Jobs.DRAINING, "h": Jobs.HANDED_BACK, "a": Jobs.ABANDONED}
FAILURES = {Event.BROKEN, Event.EXHAUSTED, Event.UNSUPPLIED, Event.NO_DATABASE}
LIMITS = {action for action in Action if action.name.startswith("LIMIT")}


def state(code: str) -> Shutdown:
    return Shutdown(JOBS[code[0]], is_interrupted="i" in code, gave_up="!" in code)


def cells() -> list[tuple[str, str, str]]:
    """State, name of the event, what follows."""
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    return [(code, event, cell) for code, *row in rows for event, cell in zip(head, row, strict=True)]


@pytest.mark.parametrize(("before", "event", "cell"), cells())
def test_every_state_with_every_event(before: str, event: str, cell: str) -> None:
    after, _, actions = cell.partition("/")
    assert react(state(before), Event[event]) == (state(after), tuple(LETTERS[letter] for letter in actions))


def test_the_table_has_every_event_every_action_and_every_state_that_can_be_reached() -> None:
    assert {event for _, event, _ in cells()} == {event.name for event in Event}
    assert set(LETTERS.values()) == set(Action)
    reached, fresh = set(), {Shutdown()}
    while fresh:
        reached |= fresh
        fresh = {react(one, event)[0] for one in fresh for event in Event} - reached
    assert {state(code) for code, _, _ in cells()} == reached


WALKS = [walk for length in range(1, 5) for walk in product(Event, repeat=length)]


def follow(walk: tuple[Event, ...]) -> list[tuple[Event, Shutdown, Step]]:
    """Each event with the state it meets and what follows."""
    now, steps = Shutdown(), []
    for event in walk:
        steps.append((event, now, react(now, event)))
        now = steps[-1][2][0]
    return steps


def test_exit_codes() -> None:
    """A failure is told to the supervisor whatever else happened; 130 means that somebody would not wait."""
    for walk in WALKS:
        steps = follow(walk)
        failed = any(event in FAILURES for event, *_ in steps if event is not Event.NO_DATABASE)
        failed |= any(event is Event.NO_DATABASE and before.is_stopping for event, before, _ in steps)
        interrupted = any(event is Event.INTERRUPT and before.is_stopping for event, before, _ in steps)
        code = EXIT_FAILED if failed else EXIT_INTERRUPTED if interrupted else EXIT_OK
        assert steps[-1][2][0].exit_code == code, walk


def test_nothing_leads_back() -> None:
    for walk in WALKS:
        for _, before, (after, _) in follow(walk):
            assert after.jobs >= before.jobs, walk
            assert after.gave_up >= before.gave_up, walk
            assert after.is_interrupted >= before.is_interrupted, walk


def test_a_stop_has_an_end_from_its_first_moment() -> None:
    """Every job is told how it ends, the consumer is told to end, and the time is limited."""
    for walk in WALKS:
        for _, before, (after, actions) in follow(walk):
            if after.is_stopping and not before.is_stopping:
                assert {Action.DRAIN, Action.HAND_BACK, Action.ABANDON} & set(actions), walk
                assert Action.STOP_CONSUMING in actions, walk
                assert ({Action.SET_DEADLINE} | LIMITS) & set(actions), walk
            if not after.is_stopping:
                assert actions == (), walk


def test_every_step_down_the_ladder_is_done_as_well() -> None:
    means = {
        Jobs.DRAINING: Action.DRAIN,
        Jobs.HANDED_BACK: Action.HAND_BACK,
        Jobs.ABANDONED: Action.ABANDON,
    }
    for walk in WALKS:
        for _, before, (after, actions) in follow(walk):
            assert after.jobs is before.jobs or means[after.jobs] in actions, walk


def test_an_abandoned_job_is_never_handed_back() -> None:
    """A hand-back does not count the attempt; the job that broke the engine would break worker after worker."""
    for walk in WALKS:
        done: list[Action] = []
        for *_, (_, actions) in follow(walk):
            done.extend(actions)
        if Action.ABANDON in done:
            assert Action.HAND_BACK not in done[done.index(Action.ABANDON) :], walk


def test_the_writer_is_closed_for_a_database_alone_and_never_before_jobs_have_their_end() -> None:
    """What is unwritten then keeps its lease and is not acknowledged: exit code 1, and the next worker takes over."""
    for walk in WALKS:
        for event, before, (after, actions) in follow(walk):
            if Action.CLOSE_WRITER in actions:
                assert event is Event.NO_DATABASE, walk
                assert before.is_stopping, walk
                assert after.exit_code == EXIT_FAILED, walk
