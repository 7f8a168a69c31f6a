"""A batch with every kind of answer, as a worker would have stored it: what the page of answers has to show."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches, claims
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.schema import jobs as tables
from helix_jobs.token_logprobs import TokenLogprobs, TokenText
from tests.store_helpers import DIGEST, ended, must_take, now, register, result_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import ResultRow

# Markup and code that a page must show as the text it is. Each has its own number, which it would put into a dialog.
HOSTILE: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</textarea></title></style></script><script>alert(3)</script>",
    "<a href='javascript:alert(4)'>press</a> javascript:alert(5)",
    "<!-- --><svg onload=alert(6)><!--",
    "{{ 7*'7' }} {% for x in (1,) %}{{ request }}{% endfor %} ${alert(7)}",
    "<iframe srcdoc='<script>parent.alert(8)</script>'></iframe><object data='//elsewhere.example/x'></object>",
    "<form action='//elsewhere.example/'><button id=main>go</button></form><base href='//elsewhere.example/'>",
    "<div hx-get='/sign-out' hx-trigger='load' hx-on:click='alert(9)' data-live='//elsewhere.example/'>live</div>",
    "<link rel=stylesheet href='//elsewhere.example/x.css'><meta http-equiv=refresh content='0;url=//x.example'>",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe\N{POP DIRECTIONAL FORMATTING}\N{LEFT-TO-RIGHT ISOLATE}\N{ZERO WIDTH SPACE}",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m\x08\x7f\x85\u2028",
    "Z\u0335\u0321\u035a\u0351" * 40,
)
ALL_HOSTILE: Final = "\n".join(HOSTILE)


def logprobs_of(*tokens: tuple[str, float]) -> bytes:
    """The stored form of these tokens with their probabilities, each with two alternatives."""
    texts, ids, numbers = {}, array("i"), array("f")
    for place, (text, probability) in enumerate(tokens):
        own, other = 2 * place, 2 * place + 1
        texts[own], texts[other] = TokenText(text.encode()), TokenText(b"other")
        likelier, rest = (own, other) if probability >= 0.5 else (other, own)
        ids.extend((own, likelier, rest))
        numbers.extend(math.log(part) for part in (probability, *sorted((probability, 1 - probability))[::-1]))
    return TokenLogprobs(2, ids, numbers, texts).to_bytes()


def scene_batch(
    database: Database, jobs: Sequence[tuple[Mapping[str, Any], Sequence[ResultRow] | str | None]], *, name: str
) -> str:
    """Store a batch of requests with their answers; a text is an error code, and None leaves a job queued.

    Returns:
        The batch's id.
    """
    register(database, f"w-{name[:20]}")
    batch_id = batches.new_batch_id(now())
    stored = [
        NewJob(line=line, custom_id=request.get("custom_id"), request=dict(request["request"]))
        for line, (request, _) in enumerate(jobs, 1)
    ]
    with database.write() as c:
        batches.create_batch(c, NewBatch(id=batch_id, created_at=now(), name=name))
        batches.insert_jobs(c, batch_id, stored, now())
        batches.seal_batch(c, batch_id, len(stored), DIGEST)
    with database.read() as c:
        query = select(tables.c.id).where(tables.c.batch_id == batch_id).order_by(tables.c.line)
        ids = list(c.execute(query).scalars())
    for job_id, (_, outcome) in zip(ids, jobs, strict=True):
        if outcome is None:
            continue
        claimed = must_take(database, job_id, f"w-{name[:20]}")
        finished = ended(claimed, f"w-{name[:20]}")
        with database.write() as c:
            if isinstance(outcome, str):
                code, _, message = outcome.partition(": ")
                assert claims.finish_failed(c, finished, code, message, now())
            else:
                assert claims.finish_succeeded(c, finished, list(outcome), now())
    return batch_id


CHAT: Final = {
    "messages": [
        {"role": "system", "content": "You are a travel clerk. Answer briefly."},
        {"role": "user", "content": "How is the weather in Zürich?\nAnd in Basel?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
            ],
        },
        {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call_1"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather of a city now.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
    "sampling": {"max_tokens": 128, "temperature": 0.7, "n": 2},
    "seed": 12345678901234567890,
    "metadata": {"team": "Reisebüro", "ticket": 4711},
}


def every_kind(database: Database) -> str:
    """A batch with an answer of every kind; returns its id."""
    poem = "Der Mond ist aufgegangen,\ndie goldnen Sternlein prangen\nam Himmel hell und klar.\n\n" * 3
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Basel","days":[1,2]}'},
    }
    form = {"kind": "json_schema", "value": '{"type":"object"}', "whitespace": "compact"}
    tokens = (("Der", 0.97), (" Mond", 0.62), (" ist", 0.31), (" auf", 0.04), ("gegangen", 0.999), (",\n", 0.55))
    jobs = [
        ({"custom_id": "poem", "request": _prompt("Write the first verse of a German evening song.")}, [_answer(poem)]),
        (
            {"custom_id": "weather-71", "request": CHAT},
            [
                result_row(output_text="21 degrees in Zürich, and Basel I ask now.", tool_calls=[call],
                           finish_reason="tool_calls", reasoning_text="The tool said 21.\nBasel is missing.",
                           reasoning_tokens=4),
                result_row(choice=1, output_text="Warm. 🌞👩‍👩‍👧", finish_reason="stop"),
            ],
        ),
        (
            {"custom_id": "form", "request": {**_prompt("A person as JSON"), "constraint": form}},
            [_answer('{"name":"Ada","born":1815,"works":["Notes"],"notes":"', finish_reason="length", is_valid=False)],
        ),
        ({"request": {**_prompt("A person as JSON"), "constraint": form}},
         [_answer('{"name":"Ada","born":1815,"works":["Notes on the Analytical Engine"]}', is_valid=True)]),
        ({"custom_id": "long", "request": _prompt("Everything. " * 800)},
         "prompt_too_long: the prompt has 2,401 tokens and the model's context 2,048; shorten it"),
        ({"custom_id": "tokens", "request": _prompt("Sing")},
         [_answer("Der Mond ist aufgegangen,\n", logprobs=logprobs_of(*tokens), cumulative_logprob=-5.28)]),
        ({"custom_id": "scored", "request": _prompt("Is the moon up? ")},
         [_answer("yes", scores={"yes": {"sum": -0.2, "mean": -0.2, "tokens": 1}, "no": {"sum": -1.9, "mean": -1.9,
                                                                                         "tokens": 1}})]),
        ({"custom_id": "empty", "request": _prompt("Say nothing.")}, [_answer("")]),
        ({"custom_id": "waiting", "request": _prompt("Later.")}, None),
    ]  # fmt: skip
    return scene_batch(database, jobs, name="Every kind of answer")


def hostile_batch(database: Database) -> str:
    """A batch in which every text is hostile; returns its id."""
    call = {"id": ALL_HOSTILE[:60], "type": "function",
            "function": {"name": HOSTILE[1], "arguments": ALL_HOSTILE}}  # fmt: skip
    chat = {
        "messages": [
            {"role": "user", "content": ALL_HOSTILE},
            {"role": HOSTILE[1], "content": ALL_HOSTILE, "tool_calls": [call], "reasoning": ALL_HOSTILE},
            {"role": "tool", "content": ALL_HOSTILE, "tool_call_id": HOSTILE[1]},
        ],
        "tools": [{"type": "function", "function": {"name": HOSTILE[1], "description": ALL_HOSTILE,
                                                    "parameters": {HOSTILE[0]: HOSTILE[2]}}}],
        "metadata": {HOSTILE[1]: ALL_HOSTILE},
        "sampling": {HOSTILE[0]: HOSTILE[1]},
    }  # fmt: skip
    tokens = logprobs_of(*((text, 0.3) for text in HOSTILE))
    jobs: list[tuple[Mapping[str, Any], Any]] = [
        (
            {"custom_id": HOSTILE[1], "request": chat},
            [
                _answer(
                    ALL_HOSTILE,
                    reasoning_text=ALL_HOSTILE,
                    tool_calls=[call],
                    logprobs=tokens,
                    prompt_logprobs=tokens,
                    scores={ALL_HOSTILE: {"sum": -1.0, "mean": -1.0, "tokens": 1}},
                    target_model=HOSTILE[1],
                    device=HOSTILE[0],
                )
            ],
        ),
        ({"custom_id": HOSTILE[2], "request": _prompt(ALL_HOSTILE)}, f"engine_error: {ALL_HOSTILE}"),
        ({"custom_id": "one-line", "request": _prompt("x" * 3_000_000)}, [_answer("<b>" * 1_700_000)]),
    ]
    jobs += [({"custom_id": f"{number} {text}"[:500], "request": _prompt(text)}, [_answer(text)])
             for number, text in enumerate(HOSTILE)]  # fmt: skip
    return scene_batch(database, jobs, name=HOSTILE[1])


def _prompt(text: str) -> dict[str, Any]:
    return {"prompt": text, "sampling": {"max_tokens": 64}, "seed": 7, "metadata": {}}


def _answer(text: str, **changes: Any) -> ResultRow:
    return result_row(output_text=text, **changes)
