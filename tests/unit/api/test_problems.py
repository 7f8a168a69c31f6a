"""Refusals in OpenAI's shape."""

from __future__ import annotations

import pytest

from helix_jobs import errors
from helix_jobs.api.open_requests import OpenRequests
from helix_jobs.api.problems import Problem, problem_of, problem_of_job


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.NotFoundError("there is no batch"), 404, "not_found_error", "not_found"),
        (errors.IdempotencyConflictError("another content"), 409, "conflict_error", "idempotency_conflict"),
        (errors.InputError("no lines"), 400, "invalid_request_error", "invalid_request"),
        (errors.DatabaseUnreachableError("no answer"), 503, "server_error", "unavailable"),
        (errors.DatabaseReplacedError("another"), 500, "server_error", "server_error"),
    ],
)
def test_errors_have_their_status(error: errors.HelixError, status: int, kind: str, code: str) -> None:
    problem = problem_of(error)
    assert problem.status == status
    assert problem.body() == {"error": {"message": str(error), "type": kind, "param": None, "code": code}}
    assert ("Retry-After" in problem.headers) is (status == 503)


def test_a_field_is_named_as_the_client_wrote_it() -> None:
    body = problem_of(errors.InvalidFieldError("body.max_token", "is unknown", "did you mean max_tokens?")).body()
    assert body["error"]["param"] == "max_token"
    assert body["error"]["message"] == "max_token: is unknown; did you mean max_tokens?"
    several = errors.InvalidFieldsError((errors.InvalidFieldError("body.n", "is 0", "give 1"),) * 2)
    assert problem_of(several).body()["error"]["param"] == "n"


def test_messages_hold_no_password() -> None:
    assert "hunter2" not in problem_of(errors.InputError("postgresql://me:hunter2@box/db")).message


@pytest.mark.parametrize("code", [*errors.ErrorCode, "unheard_of", None])
def test_each_way_to_fail_has_a_status(code: str | None) -> None:
    problem = problem_of_job(code, None)
    assert 400 <= problem.status < 600
    assert problem.code
    ours = {errors.ErrorCode.ENGINE_ERROR, errors.ErrorCode.WORKER_LOST, "unheard_of", None}
    assert (problem.status == 500) is (code in ours)


def test_a_key_cannot_take_all_room() -> None:
    requests = OpenRequests(4, is_shared=True)
    with requests.one("a"), requests.one("a"):
        with pytest.raises(Problem) as raised, requests.one("a"):
            pass
        assert raised.value.status == 429
        assert raised.value.headers == {"Retry-After": "1"}
        with requests.one("b"), requests.one("b"), pytest.raises(Problem), requests.one("c"):
            pass
    assert requests.total == 0
    with OpenRequests(1, is_shared=False).one("a"):
        pass
