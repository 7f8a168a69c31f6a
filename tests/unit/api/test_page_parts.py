"""The pure parts of the page: its paths, sessions, rows, charts, and which faults are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.api.page.batch_list import read_place, write_place
from helix_jobs.api.page.charts import charts_of_sample
from helix_jobs.api.page.downloads import pieces_of
from helix_jobs.api.page.paths import is_page, local_target, needs_session, sign_in_for
from helix_jobs.api.page.rows import progress_parts, seconds_left, title_of
from helix_jobs.api.page.sessions import COOKIE, LIFETIME_SECONDS, Sessions
from helix_jobs.api.page.templates import ENVIRONMENT
from helix_jobs.api.page.unaccepted import faults_of
from helix_jobs.client.pace import Pace
from helix_jobs.errors import InputError
from helix_jobs.reports.charts import HEIGHT, WIDTH, nice_step
from helix_jobs.storage.answer_sample import AnswerSample, SampledAnswer
from helix_jobs.storage.api_records import ApiBatch
from helix_jobs.storage.records import BatchStatus
from helix_jobs.storage.seen_batches import Label, Place
from helix_jobs.storage.states import BatchState, JobState

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def status(state: BatchState = BatchState.RUNNING, *, total: int | None = 100, name: str | None = None, **counts: int):
    return BatchStatus(
        id="b-1",
        name=name,
        source="prompts.jsonl",
        created_at=NOW,
        cancelled_at=None,
        total=total,
        state=state,
        counts={one: counts.get(str(one), 0) for one in JobState},
        error_counts={},
        started_at=NOW,
        finished_at=None,
        read_at=NOW + timedelta(seconds=10),
    )


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/batches", "/openapi.json", "/docsx", "/health", "/batchesx", "", "//batches"]
)
def test_the_api_keeps_its_paths(path: str) -> None:
    assert not is_page(path)


def test_a_page_leads_back_to_where_somebody_wanted_to_go() -> None:
    assert sign_in_for("/") == "/sign-in"
    assert sign_in_for("/batches?before=a b") == "/sign-in?next=%2Fbatches%3Fbefore%3Da%20b"
    assert local_target("/batches?before=x") == "/batches?before=x"
    assert not needs_session("/sign-in")
    assert not needs_session("/static/page.css")
    assert needs_session("/")


@pytest.mark.parametrize(
    "target",
    [
        *("//evil.example", "/\\evil.example", "https://evil.example/batches", "javascript:alert(1)", "evil", "", None),
        *("/v1/models", "/sign-out", "/batches\nSet-Cookie: x", "http:/batches", "///evil.example", "/" + "x" * 3000),
    ],
)
def test_nobody_is_led_elsewhere(target: str | None) -> None:
    assert local_target(target) == "/"


def test_a_session_ends_by_itself_and_when_somebody_signs_out() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first, second = sessions.begin("one"), sessions.begin("two")
    assert first != second
    assert sessions.owner(f"other=1; {COOKIE}={first}") == "one"
    assert sessions.owner(f"{COOKIE}={second}") == "two"
    sessions.end(f"{COOKIE}={second}")
    for gone in (f"{COOKIE}={second}", f"{COOKIE}=", f"{COOKIE}={first}x", "", None, "\x00=;;="):
        assert sessions.owner(gone) is None
    now[0] = LIFETIME_SECONDS + 1
    assert sessions.owner(f"{COOKIE}={first}") is None


def test_the_oldest_of_too_many_sessions_ends() -> None:
    sessions = Sessions()
    tokens = [sessions.begin("one") for _ in range(1001)]
    assert sessions.owner(f"{COOKIE}={tokens[0]}") is None
    assert sessions.owner(f"{COOKIE}={tokens[1]}") == "one"


def test_a_link_carries_a_place_of_the_list() -> None:
    place = Place(NOW + timedelta(microseconds=7), "b-20261130-abcdef")
    assert read_place(write_place(place)) == place
    for text in ("", "x", "2026-11-30T12:00:00~b-1", "2026-11-30T12:00:00+00:00~\x00", "~b-1"):
        with pytest.raises(InputError, match="before"):
            read_place(text)


@given(st.lists(st.integers(0, 10**6), min_size=5, max_size=5))
def test_the_parts_of_a_bar_fill_it_and_no_more(numbers: list[int]) -> None:
    counts = dict(zip(map(str, JobState), numbers, strict=True))
    parts = progress_parts(status(total=sum(numbers), **counts))
    assert all(part.width > 0 for part in parts)
    assert all(left.start + left.width == right.start for left, right in pairwise(parts))
    assert not parts or parts[-1].start + parts[-1].width <= 1000
    if sum(numbers) and not counts["queued"]:
        assert parts[-1].start + parts[-1].width == 1000


def test_the_time_left_is_known_from_the_first_look_on() -> None:
    halfway = status(succeeded=50, queued=50)
    assert seconds_left(halfway, Pace()) == 10
    assert seconds_left(halfway, Pace(eta_seconds=3)) == 3
    assert seconds_left(status(queued=100, state=BatchState.QUEUED), Pace()) is None
    assert seconds_left(status(succeeded=50, queued=50, state=BatchState.PAUSED), Pace(eta_seconds=3)) is None
    assert seconds_left(status(succeeded=100, state=BatchState.DONE), Pace()) is None


def test_a_batch_is_called_what_a_person_called_it() -> None:
    assert title_of(status(name="Mine"), Label()) == "Mine"
    assert title_of(status(), Label()) == "prompts.jsonl"
    assert title_of(status(name="batch_1"), Label("me", "batch_1", "upload.jsonl")) == "upload.jsonl"


@pytest.mark.parametrize(
    ("least", "step"), [(0.2, 1), (1, 1), (1.1, 2), (3, 5), (6, 10), (10, 10), (11, 20), (750, 1000)]
)
def test_steps_are_round(least: float, step: int) -> None:
    assert nice_step(least) == step


answers = st.builds(
    SampledAnswer,
    st.timedeltas(timedelta(0), timedelta(days=30)).map(lambda later: NOW + later),
    st.integers(0, 200_000),
)


@given(st.lists(answers, max_size=60), st.integers(1, 1000))
def test_charts_stay_in_their_box(found: list[SampledAnswer], step: int) -> None:
    sample = AnswerSample(sorted(found, key=lambda answer: answer.created_at), step)
    charts = charts_of_sample(sample)
    for chart in charts:
        for column in chart.bars:
            assert column.x >= 0
            assert column.x + column.width <= WIDTH + 0.1
            assert 0 <= column.height <= HEIGHT
            assert column.y + column.height == pytest.approx(HEIGHT)
        assert len(chart.bars) <= 41
    for chart in charts:
        if not chart.title.startswith("Tokens per second"):
            continue
        spent = (sample.answers[-1].created_at - sample.answers[0].created_at).total_seconds()
        assert chart.words.startswith(f"{_rate(sum(a.tokens for a in found) * step / spent)} tokens/s on average")


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def test_charts_say_in_words_what_they_show() -> None:
    sample = AnswerSample([SampledAnswer(NOW + timedelta(seconds=n), n) for n in range(101)], step=10)
    speed, lengths = charts_of_sample(sample)
    assert speed.words == "505 tokens/s on average over 1 min 40 s, at most 1,225. An answer counts when it ends."
    assert lengths.bars[0].words == "50 answers (5.0 %) of 0 to 4 tokens"
    assert "Half of the answers have at most 50 tokens" in lengths.words
    assert charts_of_sample(AnswerSample([], 1)) == []
    (lengths,) = charts_of_sample(AnswerSample([SampledAnswer(NOW, 1)] * 3, 1))
    assert lengths.title.startswith("Length of answers")


def test_faults_are_gathered_as_the_command_gathers_them() -> None:
    def refused(errors: list[dict[str, object]] | None) -> ApiBatch:
        return ApiBatch(
            id="batch_1",
            owner="me",
            input_file_id="file-1",
            endpoint="any",
            completion_window="none",
            metadata={},
            created_at=NOW,
            expires_at=NOW,
            errors=errors,
        )

    errors = [{"line": n, "param": f"field{n}", "reason": f"is {n}", "remedy": "mend it"} for n in range(1, 51)]
    (fault,) = faults_of(refused(errors))
    assert (fault.line, fault.field, fault.more) == (1, "field1", 49)
    older = [{"line": 3, "param": "prompt", "message": "is empty; give a text"}]
    assert [(f.line, f.reason) for f in faults_of(refused(older))] == [(3, "is empty; give a text")]
    whole = [{"line": None, "param": None, "message": "the file is empty"}]
    assert [(f.line, f.reason) for f in faults_of(refused(whole))] == [(None, "the file is empty")]
    assert faults_of(refused(None)) == ()


def test_templates_escape_whatever_they_show() -> None:
    assert ENVIRONMENT.autoescape is True
    shown = ENVIRONMENT.from_string("{{ value|name }}").render(value='<b>"\u202e\x1b[31m\n' + "a" * 10_000)
    assert shown.startswith("&lt;b&gt;&#34;\ufffd\ufffd[31m")
    assert len(shown) < 200
    assert "|safe" not in "".join(
        ENVIRONMENT.loader.get_source(ENVIRONMENT, n)[0] for n in ENVIRONMENT.list_templates()
    )


def test_a_download_comes_in_pieces_and_ends_with_the_error_of_its_writer() -> None:
    assert b"".join(pieces_of(lambda stream: stream.write(b"x" * 200_000))) == b"x" * 200_000

    def fails(stream) -> None:
        stream.write(b"begun")
        raise InputError("the disk is full")

    pieces = pieces_of(fails)
    assert next(pieces) == b"begun"
    with pytest.raises(InputError, match="disk"):
        next(pieces)


def test_a_reader_that_goes_away_ends_the_writing() -> None:
    ended: list[str] = []

    def writes(stream) -> None:
        try:
            while True:
                stream.write(b"x" * 100_000)
        finally:
            ended.append("yes")

    pieces = pieces_of(writes)
    next(pieces)
    pieces.close()
    assert ended == ["yes"]
