"""Which jobs are worked on, which are not taken, and how all of them end at once."""

from __future__ import annotations

from typing import Any

from helix_jobs.worker.active_jobs import ActiveJob, ActiveJobs, NotTaken
from helix_jobs.worker.job_endings import Withdrawn


class Claim:
    """A claim, as far as it is looked at here."""

    lease = 7


CLAIM: Any = Claim()


def take(jobs: ActiveJobs, job_id: int) -> ActiveJob:
    job = jobs.take(job_id)
    assert isinstance(job, ActiveJob)
    return job


def test_a_job_is_taken_once_and_remembers_that_it_was_called_again() -> None:
    jobs = ActiveJobs()
    first, second = take(jobs, 1), take(jobs, 2)
    assert jobs.take(1) is NotTaken.ACTIVE
    assert len(jobs) == 2
    assert (jobs.drop(first), jobs.drop(second)) == (True, False)
    assert len(jobs) == 0
    assert not take(jobs, 1).called_again


def test_no_job_is_taken_after_the_close_and_those_in_hand_go_on() -> None:
    jobs = ActiveJobs()
    job = take(jobs, 1)
    assert (jobs.close(), jobs.close()) == (True, False)
    assert jobs.take(1) is jobs.take(2) is NotTaken.CLOSED
    assert jobs.note_claim(job, CLAIM) is None
    assert jobs.drop(job) is False, "a message that is not taken does not call the job again"
    jobs.reopen()
    assert not jobs.is_closed
    take(jobs, 2)


def test_what_is_given_up_ends_alike_also_where_a_claim_is_under_way() -> None:
    jobs = ActiveJobs()
    claimed, claiming = take(jobs, 1), take(jobs, 2)
    assert jobs.note_claim(claimed, CLAIM) is None
    assert jobs.leases() == {1: 7, 2: None}
    assert list(jobs.give_up(Withdrawn.HANDED_BACK)) == [claimed]
    assert jobs.note_claim(claiming, CLAIM) is Withdrawn.HANDED_BACK
    assert jobs.take(3) is NotTaken.CLOSED
    jobs.reopen()
    assert jobs.given_up is None


def test_the_first_word_about_an_end_counts() -> None:
    job = take(ActiveJobs(), 1)
    job.settle(Withdrawn.LEASE_LOST)
    job.settle(Withdrawn.HANDED_BACK)
    assert job.ending.result(0) is Withdrawn.LEASE_LOST
