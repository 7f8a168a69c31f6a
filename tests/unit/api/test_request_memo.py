"""What the memo keeps of requests that came before."""

from __future__ import annotations

import pytest

from helix_jobs.api import request_memo
from helix_jobs.api.figures import Figures
from helix_jobs.api.request_memo import Again, RequestMemo, answer_again


@pytest.fixture
def memo(monkeypatch: pytest.MonkeyPatch) -> RequestMemo:
    """It is full with three."""
    monkeypatch.setattr(request_memo, "MAX_HEADS", 3)
    return RequestMemo(Figures(lambda: 0))


def note(memo: RequestMemo, head: bytes, body: bytes = b"{}") -> None:
    state: dict[str, object] = {}
    answer_again(state, Again("/health", lambda: body))
    memo.note(head, state)


def kept(memo: RequestMemo, *heads: bytes) -> list[bytes]:
    return [head for head in heads if memo.answer(head, []) is not None]


def test_a_full_memo_forgets_the_oldest(memo: RequestMemo) -> None:
    for head in (b"one", b"two", b"three", b"four"):
        note(memo, head)
    assert kept(memo, b"one", b"two", b"three", b"four") == [b"two", b"three", b"four"]


def test_a_head_that_is_noted_again_costs_no_other_its_place(memo: RequestMemo) -> None:
    """It goes the usual way whenever its answer no longer holds, and is noted each time."""
    for head in (b"one", b"two", b"three"):
        note(memo, head)
    note(memo, b"three", b'{"new":1}')
    assert kept(memo, b"one", b"two", b"three") == [b"one", b"two", b"three"]
    answer = memo.answer(b"three", [])
    assert answer is not None
    assert answer.endswith(b'{"new":1}')
