from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from helix_jobs.cli.progress import all_succeeded, progress_line, progress_view, summary_lines
from helix_jobs.cli.views import batches_view
from helix_jobs.client.pace import Pace, PaceMeter
from helix_jobs.plain_text import printable, shorten
from helix_jobs.storage.records import BatchStatus
from helix_jobs.storage.states import BatchState, JobState

START = datetime(2026, 1, 1, tzinfo=UTC)


def status(total=100, tokens=0, **counts):
    by_state = {state: counts.get(state.value, 0) for state in JobState}
    by_state[JobState.QUEUED] = (total or 0) - sum(by_state.values())
    done = total is not None and by_state[JobState.QUEUED] == by_state[JobState.RUNNING] == 0
    return BatchStatus(
        id="b-20260101-abcdef",
        name=None,
        source="prompts.jsonl",
        created_at=START,
        cancelled_at=None,
        total=total,
        state=BatchState.DONE if done else BatchState.RUNNING,
        counts=by_state,
        error_counts={"prompt_too_long": counts["failed"]} if counts.get("failed") else {},
        prompt_tokens=tokens,
        cached_prompt_tokens=0,
        completion_tokens=tokens,
        draft_tokens=tokens * 4,
        accepted_tokens=tokens * 3,
        started_at=START if tokens else None,
        finished_at=START + timedelta(seconds=50) if done else None,
        read_at=START + timedelta(seconds=100),
    )


def test_pace_is_unknown_until_something_ended():
    meter = PaceMeter()
    assert meter.update(0.0, status()) == Pace()
    assert meter.update(1.0, status(running=3)) == Pace()


def test_pace_is_measured_from_the_first_look_not_from_the_batchs_start():
    meter = PaceMeter()
    meter.update(0.0, status(succeeded=50, tokens=5000))
    pace = meter.update(10.0, status(succeeded=70, tokens=7000))
    assert pace == Pace(tokens_per_second=200.0, eta_seconds=15.0)


def test_pace_forgets_what_is_older_than_the_window():
    meter = PaceMeter(window=60.0)
    for second in range(0, 301, 10):  # one job in ten seconds
        slow = meter.update(second, status(total=1000, succeeded=second // 10))
    for second in range(310, 381, 10):  # then one a second
        fast = meter.update(second, status(total=1000, succeeded=30 + second - 300))
    assert slow.eta_seconds == pytest.approx(970 * 10)
    assert fast.eta_seconds == pytest.approx(1000 - 110)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 100)), max_size=50))
def test_pace_survives_clocks_that_stand_still_and_counts_that_fall(samples):
    """A retry takes jobs back out of the final states."""
    meter = PaceMeter()
    now = 0.0
    for step, finished in samples:
        now += step
        pace = meter.update(now, status(succeeded=finished, tokens=finished))
        assert pace.eta_seconds is None or pace.eta_seconds >= 0


def test_progress_line():
    found = progress_line(status(succeeded=44, failed=1, tokens=900), Pace(tokens_per_second=102.4, eta_seconds=62))
    assert found == "45 of 100 done, 0 running, 1 failed, 102 tokens/s, acceptance 75 %, about 1 min 02 s left"
    assert progress_line(status(running=3), Pace()) == "0 of 100 done, 3 running"
    assert progress_line(status(total=None), Pace()) == "0 lines stored, still being submitted"
    ended = progress_line(status(total=12, succeeded=2, cancelled=10), Pace())
    assert ended == "2 of 12 done, 0 running, 10 cancelled", "what was cancelled is not done"


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_the_bar_fits_any_terminal(width, encoding):
    from io import BytesIO, TextIOWrapper

    raw = BytesIO()
    file = TextIOWrapper(raw, encoding=encoding)  # raises on what the encoding lacks
    console = Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    view = progress_view(status(succeeded=44, failed=1, running=8, tokens=900), Pace(eta_seconds=62), "No worker.")
    console.print(view)
    file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 3
    assert "45/100" in lines[0]
    assert "ETA 1 min 02 s" in lines[0]


def test_an_unsealed_batch_has_a_view():
    console = Console(file=StringIO(), width=80, force_terminal=True)
    console.print(progress_view(status(total=None), Pace()))
    assert "0/?" in console.file.getvalue()


def test_summary():
    lines = summary_lines(status(succeeded=99, failed=1, tokens=5000))
    assert lines == [
        "100 jobs: 99 succeeded, 1 failed in 50 s",
        "5,000 tokens, 100 tokens/s, 75 % of drafted tokens accepted",
        "errors: prompt_too_long 1",
    ]
    assert not all_succeeded(status(succeeded=99, failed=1))
    assert all_succeeded(status(succeeded=100))


@pytest.mark.parametrize("width", [56, 80, 200])
def test_batch_ids_and_counts_are_never_cut(width):
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    named = replace(status(total=1_000_000, succeeded=999_999), name="a name that is much too long " * 5)
    console.print(batches_view([named], width))
    header, row = console.file.getvalue().splitlines()
    assert "b-20260101-abcdef" in row
    assert "999,999/1,000,000" in row
    assert ("CREATED" in header) == (width >= 76)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (shorten("a\n b\tc", 10), "a b c"),
        (shorten("abcdefghij", 5), "abcd…"),
        (shorten("x" * 1000, 5), "xxxx…"),
    ],
)
def test_words(found, expected):
    assert found == expected


@given(st.text())
def test_printable_leaves_no_control_character(text):
    found = printable(text)
    assert len(found) == len(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in found)
    assert printable(found) == found
