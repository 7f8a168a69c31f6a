"""Log probabilities and scores come out of both databases as they went in."""

from __future__ import annotations

import math
from array import array

from helix_jobs.results.export import result_row as exported
from helix_jobs.storage import results
from helix_jobs.token_logprobs import NO_TOKEN, TokenLogprobs, TokenText
from tests.store_helpers import must_take, register, stored_batch, succeed


def test_pages_hold_few_rows_where_logprobs_are_large(database, monkeypatch):
    """A thousand rows of long scored prompts would be gigabytes."""
    monkeypatch.setattr(results, "_PAGE_BYTES", 3000)
    monkeypatch.setattr(results, "_FIRST_ROWS", 2)
    sizes = []
    page = results._page
    monkeypatch.setattr(results, "_page", lambda *args: sizes.append(len(found := page(*args))) or found)
    register(database, "w1")
    batch, ids = stored_batch(database, 12)
    for number, job_id in enumerate(ids):
        assert succeed(database, must_take(database, job_id), logprobs=b"x" * 1000 if number < 8 else None)
    with database.read() as c:
        found = [row.job_id for row in results.iter_results(c, batch)]
    assert found == ids
    assert sizes == [2, 3, 3, 3, 1]


def test_logprobs_and_scores_round_trip(database):
    texts = {5: TokenText(b"\x00\xff"), 6: TokenText("é\U0001f600".encode()), 7: TokenText(b"</s>", is_special=True)}
    ids, numbers = array("i", [5, NO_TOKEN, 6, 7]), array("f", [math.nan, math.nan, -1.1, -math.inf])
    made = TokenLogprobs(1, ids, numbers, texts)
    scores = {"ja, \u2028 né": {"sum": -1.5, "mean": -0.75, "tokens": 2}}
    register(database, "w1")
    batch, (first, second) = stored_batch(database, 2)
    told = {"logprobs": made.to_bytes(), "prompt_logprobs": made.to_bytes(), "cumulative_logprob": -1.1}
    assert succeed(database, must_take(database, first), **told, scores=scores)
    assert succeed(database, must_take(database, second))
    with database.read() as c:
        found, plain = results.iter_results(c, batch)
    assert (found.logprobs, found.prompt_logprobs) == (made.to_bytes(), made.to_bytes())
    assert found.scores == scores
    assert found.cumulative_logprob == -1.1
    assert TokenLogprobs.from_bytes(found.logprobs).texts == texts
    assert exported(found)["logprobs"][1]["bytes"] == list("é\U0001f600".encode())
    assert (plain.logprobs, plain.prompt_logprobs, plain.scores, plain.cumulative_logprob) == (None,) * 4
