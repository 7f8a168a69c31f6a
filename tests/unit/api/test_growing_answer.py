"""What of a growing answer may be sent: pieces that are lost, late, doubled or computed again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.api.growing_answer import ChangedAnswerError, Delta, GrowingAnswer
from helix_jobs.broker.token_channel import Growth


def piece(place: int, text: str, lease: int = 1, choice: int = 0, *, reasoning: str = "", reasoned: int = 0) -> Growth:
    return Growth(7, lease, choice, reasoned, reasoning, place, text)


def test_pieces_are_sent_as_they_come() -> None:
    answer = GrowingAnswer()
    answer.add(piece(0, "Elbe", reasoning="hm"))
    assert answer.take() == [Delta(0, "hm", "Elbe")]
    assert answer.take() == []
    answer.add(piece(4, " and", reasoned=2))
    answer.add(piece(8, " Oder", reasoned=2))
    assert answer.take() == [Delta(0, "", " and Oder")]
    assert answer.finish(0, "hm", "Elbe and Oder.") == Delta(0, "", ".")


def test_a_piece_behind_a_gap_waits_for_the_end() -> None:
    answer = GrowingAnswer()
    answer.add(piece(4, " and"))
    assert answer.take() == []
    assert answer.finish(0, "", "Elbe and") == Delta(0, "", "Elbe and")


def test_another_worker_begins_anew_and_nothing_is_sent_twice() -> None:
    answer = GrowingAnswer()
    answer.add(piece(0, "Elbe and"))
    answer.take()
    answer.add(piece(0, "Elbe", lease=2))
    assert answer.take() == []
    answer.add(piece(8, " late", lease=1))
    answer.add(piece(4, " and Oder", lease=2))
    assert answer.take() == [Delta(0, "", " Oder")]


@pytest.mark.parametrize("text", ["Rhine", "Elbe or"])
def test_another_answer_than_the_one_sent_ends_the_stream(text: str) -> None:
    answer = GrowingAnswer()
    answer.add(piece(0, "Elbe and"))
    answer.take()
    answer.add(piece(0, text, lease=2))
    with pytest.raises(ChangedAnswerError):
        answer.take()
    with pytest.raises(ChangedAnswerError):
        answer.finish(0, "", text)


def test_choices_grow_apart() -> None:
    answer = GrowingAnswer()
    answer.add(piece(0, "a", choice=1))
    answer.add(piece(0, "b"))
    assert answer.take() == [Delta(0, "", "b"), Delta(1, "", "a")]
    assert answer.finish(2, "x", "c") == Delta(2, "x", "c")


@pytest.mark.thorough
@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12), st.data())
def test_whatever_pieces_come_all_of_the_answer_is_sent_once(text: str, cuts: list[tuple[int, int]], data) -> None:
    answer, sent = GrowingAnswer(), ""
    for begin, end in cuts:
        lease = data.draw(st.integers(1, 3))
        answer.add(piece(begin, text[begin:end], lease=lease))
        sent += "".join(delta.text for delta in answer.take())
        assert text.startswith(sent)
    sent += answer.finish(0, "", text).text
    assert sent == text
