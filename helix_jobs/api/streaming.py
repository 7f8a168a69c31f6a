"""stream_answer: an answer as server-sent events, while it grows."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from starlette.concurrency import run_in_threadpool

from helix_jobs.api.chunks import DONE, WAITING, Chunks, event
from helix_jobs.api.growing_answer import ChangedAnswerError, GrowingAnswer
from helix_jobs.api.problems import Problem, problem_of
from helix_jobs.api.storing import stored
from helix_jobs.errors import HelixError
from helix_jobs.intake.forms import CHAT_ENDPOINT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping

    from starlette.requests import Request

    from helix_jobs.api.context import Context
    from helix_jobs.api.interactive import Call
    from helix_jobs.broker.token_channel import Growth

# How often one looks whether the client is still there, before its answer begins.
_LOOK_SECONDS: Final = 0.25
# A proxy closes what is silent for a minute.
_WAITING_SECONDS: Final = 15.0
_CHANGED: Final = Problem(
    500,
    "the stored answer does not begin with what was streamed: it was computed again, by another worker or beside other "
    "requests; ask again, or start workers with --reproducible on",
    code="answer_changed",
)


async def stream_answer(request: Request, context: Context, call: Call, *, has_usage: bool) -> AsyncGenerator[bytes]:
    """Store a request, and yield its answer in events until it has ended.

    Args:
        request: The client.
        context: The server.
        call: What it asks.
        has_usage: Whether a last chunk says how many tokens there were.

    Raises:
        Problem: The request is refused, or fails before its answer begins. Later failures are events.
        HelixError: It cannot be stored.
    """
    with context.open_requests.one(call.owner):
        worker = await run_in_threadpool(context.workers.require_one)
        model = answering_model(call.body, dict(context.settings.adapters), worker.target_model)
        await run_in_threadpool(context.feed.start)
        job_id = await stored(context, call, context.feed.listener)
        chunks = Chunks(job_id, model, int(time.time()), is_chat=call.endpoint == CHAT_ENDPOINT, has_usage=has_usage)
        waiting = _Waiting(context, job_id)
        begun = False
        try:
            async for piece in _events(context, waiting, chunks):
                if piece is not None:
                    begun = True
                    yield piece
                elif not begun and await request.is_disconnected():
                    return
        except ChangedAnswerError:
            yield event(_CHANGED.body())
        except (Problem, HelixError) as error:
            if not begun:
                raise
            yield event((error if isinstance(error, Problem) else problem_of(error)).body())
        finally:
            waiting.close()
            if not waiting.has_ended and call.idempotency_key is None:
                # The client has gone. Not awaited: this task is being cancelled.
                asyncio.get_running_loop().run_in_executor(None, context.interactive.cancel, job_id)


def answering_model(body: Mapping[str, Any], adapters: Collection[str], target: str) -> str:
    """What will have written the answer: the adapter that a request chooses, or the model itself.

    Args:
        body: The request's parsed JSON.
        adapters: The names of the adapters that requests may choose.
        target: The model's name.
    """
    chosen = next((body[name] for name in ("adapter", "model") if body.get(name) is not None), None)
    return chosen if isinstance(chosen, str) and chosen in adapters else target


async def _events(context: Context, waiting: _Waiting, chunks: Chunks) -> AsyncIterator[bytes | None]:
    """The events of a job; None now and then while nothing happens.

    Raises:
        ChangedAnswerError: What was sent does not begin the answer.
        Problem: The job failed.
        DatabaseUnreachableError: The answer cannot be read.
    """
    while not waiting.has_ended:
        context.ending.check()
        if not await waiting.news():
            yield WAITING if waiting.is_due() else None
        for delta in waiting.answer.take():
            yield chunks.grown(delta)
    body = await run_in_threadpool(context.interactive.answer, waiting.job_id)
    for piece in _rest(chunks, waiting.answer, body):
        yield piece
    yield DONE


def _rest(chunks: Chunks, answer: GrowingAnswer, body: Mapping[str, Any]) -> list[bytes]:
    """What is missing of each choice, and the usage."""
    pieces = []
    # The prompt's log probabilities stand beside a chat's choices, and come with the end of the first.
    beside = {name: body[name] for name in ("prompt_logprobs",) if name in body}
    for choice in body["choices"]:
        message = choice.get("message")
        text = choice["text"] if message is None else message["content"] or ""
        reasoning = "" if message is None else message.get("reasoning_content") or ""
        pieces.append(chunks.ended(choice, answer.finish(choice["index"], reasoning, text), beside))
        beside = {}
    return [*pieces, *filter(None, [chunks.usage(body)])]


class _Waiting:
    """A client's wait for one job: for its growth and for its end."""

    def __init__(self, context: Context, job_id: int) -> None:
        self._context = context
        self.job_id = job_id
        self._news = asyncio.Event()
        self._said_at = time.monotonic()
        self.answer = GrowingAnswer()
        self._ended = context.watch.watch(job_id)
        self._ending = asyncio.ensure_future(self._ended.wait())
        self._ending.add_done_callback(lambda _: self._news.set())
        context.feed.read(job_id, asyncio.get_running_loop(), self._grow)

    @property
    def has_ended(self) -> bool:
        """Whether the job has."""
        return self._ended.is_set()

    async def news(self) -> bool:
        """Wait a moment; whether the answer has grown or ended."""
        try:
            await asyncio.wait_for(self._news.wait(), _LOOK_SECONDS)
        except TimeoutError:
            return False
        self._news.clear()
        self._said_at = time.monotonic()
        return True

    def is_due(self) -> bool:
        """Whether the client has heard nothing for long; it will hear something now."""
        due = time.monotonic() - self._said_at >= _WAITING_SECONDS
        self._said_at = time.monotonic() if due else self._said_at
        return due

    def close(self) -> None:
        """Wait no longer."""
        self._context.feed.leave(self.job_id, self._grow)
        self._context.watch.forget(self.job_id, self._ended)
        self._ending.cancel()

    def _grow(self, growth: Growth) -> None:
        self.answer.add(growth)
        self._news.set()
