"""Accept or try again: the decision, what the next try is, and both through the service with a real database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.engine.fake_engine import DICE, FakeEngine
from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import ExhaustedError
from helix_jobs.storage.records import ClaimedJob
from helix_jobs.storage.schema import results
from helix_jobs.worker import answer_judge
from helix_jobs.worker.acceptance import RETRY_TEMPERATURE, after_judging, judged, request_of_try, seed_of_try
from helix_jobs.worker.answer_judge import AnswerJudge
from helix_jobs.worker.engine_run import Generated
from helix_jobs.worker.job_endings import GiveUp, Refuse, Succeed, decide
from tests.unit.worker.finished_runs import RESULT, RUN

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST = Request(request_id="1", prompt="a", sampling_params=SamplingParams(), seed=7)
RULE = AcceptanceRule(not_cut=True)
# The die of each seed of this job's tries, from the first.
SEEDS = [seed_of_try(1, tries) for tries in range(100)]
FACES = [seed % 6 for seed in SEEDS]


def answers(*texts: str, reason: FinishReason = FinishReason.STOP) -> Succeed:
    first, *others = (
        replace(RESULT, output_text=text, choice=number, finish_reason=reason) for number, text in enumerate(texts)
    )
    decision = decide(
        Generated(replace(first, siblings=tuple(others)), RUN), info=FakeEngine().info, waited_seconds=0.0
    )
    assert isinstance(decision, Succeed)
    return decision


def test_the_first_try_is_the_request_itself() -> None:
    assert request_of_try(REQUEST, 0) is REQUEST


def test_later_tries_have_fresh_seeds_and_a_greedy_one_samples() -> None:
    tries = [request_of_try(REQUEST, number) for number in range(6)]
    assert len({request.seed for request in tries}) == 6
    assert tries == [request_of_try(REQUEST, number) for number in range(6)], "a try that died runs as the same try"
    assert [request.sampling_params.temperature for request in tries] == [0.0] + [RETRY_TEMPERATURE] * 5
    warm = replace(REQUEST, sampling_params=SamplingParams(temperature=0.9, top_k=4))
    assert request_of_try(warm, 2).sampling_params == warm.sampling_params
    assert all(0 <= request_of_try(replace(REQUEST, seed=-(2**63)), n).seed < 2**64 for n in (1, 2))


@pytest.mark.parametrize(
    ("reasons", "tries", "what"),
    [
        ([None], 0, Succeed),
        ([None, None], 2, Succeed),
        (["no"], 0, Refuse),
        (["no"], 1, Refuse),
        (["no"], 2, GiveUp),
        (["no"], 7, GiveUp),
        ([None, "no"], 0, Refuse),
        ([None, "no"], 2, GiveUp),
    ],
)
def test_all_choices_must_be_accepted_within_the_tries(reasons: list[str | None], tries: int, what: type) -> None:
    decision = answers(*["text"] * len(reasons))
    assert isinstance(after_judging(decision, reasons, RULE, tries), what)


@pytest.mark.parametrize(
    ("reasons", "max_tries", "message"),
    [
        (["it is short"], 1, "its only answer was refused: it is short"),
        (["it is short"], 3, "3 answers were refused, the last of them is kept: it is short"),
        ([None, "a", None, "b"], 2, "2 answers were refused, the last of them is kept: choice 1: a; choice 3: b"),
        (["a"] * 5, 1, "its only answer was refused: choice 0: a; choice 1: a; choice 2: a; and 2 more"),
    ],
)
def test_the_reason_is_told(reasons: Sequence[str | None], max_tries: int, message: str) -> None:
    decision = answers(*["text"] * len(reasons))
    ended = after_judging(decision, reasons, replace(RULE, max_tries=max_tries), max_tries - 1)
    assert ended == GiveUp(decision.answers, RUN, message)


def test_thinking_is_no_part_of_the_answer() -> None:
    (row,) = answers("text").answers
    thought = Succeed((replace(row, reasoning_text="hm", reasoning_tokens=3),), RUN)
    now = datetime.now(UTC)
    claim = ClaimedJob(
        id=1, batch_id="b", line=1, request=job({"min_tokens": 2}), lease=1, attempts=1, queued_at=now, claimed_at=now
    )
    assert row.completion_tokens == 4
    assert judged(Succeed((row,), RUN), claim, AnswerJudge()) == Succeed((row,), RUN)
    assert judged(thought, claim, AnswerJudge()) == Refuse()


def job(accept: object, prompt: str = DICE, **sampling: Any) -> dict[str, Any]:
    return {"prompt": prompt, "sampling": sampling, "seed": 1, "metadata": {}, "accept": accept}


def run_to_the_end(bench: Any, job_id: int) -> Any:
    """Deliver the job's message until it is no longer queued."""
    for _ in range(10):
        (done,) = bench.run(job_id)
        assert done.result(30)
        row = bench.rows()[job_id]
        if row.state != "queued":
            return row
    raise AssertionError("it does not end")


def texts(bench: Any) -> dict[int, str]:
    with bench.database.read() as c:
        return {row.job_id: row.output_text for row in c.execute(select(results.c.job_id, results.c.output_text))}


def test_a_job_is_answered_until_its_rule_accepts(make_bench: Any) -> None:
    """How often it is tried is what its seed says, and the answer is that of its last try."""
    tries = next(number for number, face in enumerate(FACES) if face != FACES[0])
    bench = make_bench()
    (again,) = bench.add_raw(job({"regex": str(FACES[tries]), "max_tries": tries + 1}))
    row = run_to_the_end(bench, again)
    assert (row.state, row.tries, row.attempts, row.lease) == ("succeeded", tries, 1, tries + 1)
    assert texts(bench) == {again: str(FACES[tries])}
    counted = bench.service.counters
    assert (counted.refused_answers, counted.outcomes["succeeded"]) == (tries, 1)


def test_a_job_without_tries_left_keeps_its_last_answer(make_bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    bench = make_bench()
    (never,) = bench.add_raw(job({"regex": "7", "max_tries": 4}, prompt=f"secret-word {DICE}"))
    row = run_to_the_end(bench, never)
    assert (row.state, row.error_code, row.tries) == ("failed", "not_accepted", 4)
    assert row.error_message == (
        "4 answers were refused, the last of them is kept: it does not match the regular expression"
    )
    assert texts(bench) == {never: f"secret-word {FACES[3]}"}
    counted = bench.service.counters
    assert (counted.refused_answers, counted.outcomes["not_accepted"]) == (4, 1)
    assert "secret-word" not in caplog.text


@pytest.mark.parametrize(
    ("accept", "prompt", "sampling"),
    [
        ({"min_chars": 4}, "abc", {}),
        ({"max_chars": 2}, "abc", {}),
        ({"min_tokens": 4}, "a b c", {}),
        ({"max_tokens": 2}, "a b c", {}),
        ({"not_cut": True}, "a b c", {"max_tokens": 2}),
        ({"not_repeating": True}, "ha", {"max_tokens": 60, "ignore_eos": True}),
        ({"regex": "b+"}, "abc", {}),
        ({"schema": {"type": "integer"}}, "1.5", {}),
    ],
)
def test_each_rule_refuses_through_the_service(make_bench: Any, accept: Any, prompt: str, sampling: Any) -> None:
    bench = make_bench()
    (held, free) = bench.add_raw(
        job({**accept, "max_tries": 1}, prompt, **sampling),
        {key: value for key, value in job(None, prompt, **sampling).items() if key != "accept"},
    )
    assert run_to_the_end(bench, held).error_code == "not_accepted"
    assert run_to_the_end(bench, free).state == "succeeded"


def test_a_rule_that_somebody_changed_fails_its_job_before_it_is_answered(make_bench: Any) -> None:
    bench = make_bench()
    (broken,) = bench.add_raw(job({"regex": 5}))
    row = run_to_the_end(bench, broken)
    assert (row.state, row.error_code) == ("failed", "invalid_request")
    assert row.error_message.startswith("accept.regex: is no string")
    assert bench.engine.counters().completion_tokens == 0


def test_a_machine_that_starts_no_process_hands_the_job_back(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(answer_judge, "BoundedProcess", none_left)
    bench = make_bench()
    (held,) = bench.add_raw(job({"regex": ".*"}))
    (done,) = bench.run(held)
    assert done.result(30)
    row = bench.rows()[held]
    assert (row.state, row.attempts, row.tries) == ("queued", 0, 0)
    assert [type(error) for error in bench.broken] == [ExhaustedError]
