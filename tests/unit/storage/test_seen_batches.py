"""Which batches somebody sees on the page, and the sample of answers that its plots are drawn by."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import NotFoundError
from helix_jobs.storage import api_batches
from helix_jobs.storage.answer_sample import answer_sample
from helix_jobs.storage.api_records import NewApiBatch
from helix_jobs.storage.seen_batches import (
    Label,
    batch_settings,
    current_ids,
    labels,
    queue_totals,
    require_seen,
    seen_ids,
)
from tests.store_helpers import must_take, now, register, stored_batch, succeed

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database


def own(database: Database, batch_id: str, owner: str) -> str:
    """Make it a batch over HTTP; returns its id there."""
    new = NewApiBatch(
        id=f"batch_{batch_id[2:]}",
        owner=owner,
        input_file_id="file-gone",
        endpoint="any",
        completion_window="none",
        metadata={},
        created_at=now(),
        expires_at=now() + timedelta(days=1),
    )
    with database.write() as c:
        api_batches.create_api_batch(c, new)
        api_batches.accept(c, new.id, batch_id, now())
    return new.id


def test_everybody_sees_their_own_and_whoever_is_alone_the_command_lines(database: Database) -> None:
    ids = [stored_batch(database, 1)[0] for _ in range(5)]
    own(database, ids[0], "me")
    own(database, ids[1], "you")

    def seen(owner: str, *, alone: bool) -> set[str]:
        with database.read() as c:
            return {place.batch_id for place in seen_ids(c, owner, sees_unowned=alone, limit=50)}

    assert seen("me", alone=False) == {ids[0]}
    assert seen("me", alone=True) == {ids[0], *ids[2:]}
    assert seen("nobody", alone=False) == set()
    with database.read() as c:
        assert require_seen(c, ids[0], "me", sees_unowned=False) == Label("me", f"batch_{ids[0][2:]}", None)
        assert require_seen(c, ids[2], "me", sees_unowned=True) == Label()
        for batch_id, alone in ((ids[1], True), (ids[2], False), ("b-none", True)):
            with pytest.raises(NotFoundError):
                require_seen(c, batch_id, "me", sees_unowned=alone)
        assert set(labels(c, ids)) == set(ids)
        assert batch_settings(c, ids[0]).metadata == {}
        with pytest.raises(NotFoundError):
            batch_settings(c, "b-none")


def test_the_list_is_read_page_by_page_newest_first(database: Database) -> None:
    ids = [stored_batch(database, 1)[0] for _ in range(7)]
    found: list[str] = []
    place = None
    with database.read() as c:
        while True:
            page = seen_ids(c, "me", sees_unowned=True, before=place, limit=3)
            found += [one.batch_id for one in page[:3]]
            if len(page) <= 3:
                break
            place = page[2]
        assert sorted(found) == sorted(ids)
        assert found == [one.batch_id for one in seen_ids(c, "me", sees_unowned=True, limit=50)]
        assert list(current_ids(c, 3)) == found[:3]


def test_what_runs_is_current_however_old(database: Database) -> None:
    register(database, "w1")
    old, (job,) = stored_batch(database, 1)
    newer = [stored_batch(database, 1)[0] for _ in range(3)]
    must_take(database, job)
    with database.read() as c:
        assert set(current_ids(c, 2)) >= {old}
        assert len(current_ids(c, 2)) == 3
        assert set(current_ids(c, 2)) <= {old, *newer}


def test_totals_are_those_of_all_batches(database: Database) -> None:
    register(database, "w1")
    _, ids = stored_batch(database, 3)
    stored_batch(database, 2)
    assert succeed(database, must_take(database, ids[0]), completion_tokens=7)
    with database.read() as c:
        totals = queue_totals(c)
    assert (totals.total, totals.finished, totals.completion_tokens) == (5, 1, 7)


def test_a_sample_is_of_the_whole_file(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 20)
    for place, job_id in enumerate(ids):
        assert succeed(database, must_take(database, job_id), completion_tokens=place + 1)
    with database.read() as c:
        every = answer_sample(c, batch_id, 20)
        some = answer_sample(c, batch_id, 20, most=5)
        none = answer_sample(c, "b-none", 20)
    assert sorted(answer.tokens for answer in every.answers) == list(range(1, 21))
    assert every.step == 1
    assert some.step == 4
    assert sorted(answer.tokens for answer in some.answers) == [2, 6, 10, 14, 18]
    assert not none.answers


def test_batches_without_jobs_are_listed_until_they_have_some(database: Database) -> None:
    batch_id, _ = stored_batch(database, 1)
    api_id = own(database, batch_id, "me")
    with database.write() as c:
        asked = replace(_asked(), id="batch_waits")
        api_batches.create_api_batch(c, asked)
    with database.read() as c:
        assert [(batch.id, name) for batch, name in api_batches.unaccepted(c, 10)] == [("batch_waits", None)]
    assert api_id != asked.id


def test_batches_of_one_owner_without_jobs_push_none_of_another_out_of_the_list(database: Database) -> None:
    with database.write() as c:
        api_batches.create_api_batch(c, replace(_asked(), id="batch_mine"))
        for number in range(3):
            new = replace(_asked(), id=f"batch_{number}", owner="you", created_at=now() + timedelta(minutes=number))
            api_batches.create_api_batch(c, new)
    with database.read() as c:
        found = [batch.id for batch, _ in api_batches.unaccepted(c, 2)]
    assert found == ["batch_2", "batch_1", "batch_mine"]


def _asked() -> NewApiBatch:
    return NewApiBatch(
        id="batch_x",
        owner="me",
        input_file_id="file-gone",
        endpoint="any",
        completion_window="none",
        metadata={},
        created_at=now(),
        expires_at=now() + timedelta(days=1),
    )
