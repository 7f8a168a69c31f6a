"""EndpointEngine: satisfies ``EngineProtocol`` with an OpenAI-compatible server that the user runs."""

from __future__ import annotations

import itertools
import queue
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.choices import already_held, joined
from helix_jobs.engine.endpoint.answering import Answering
from helix_jobs.engine.endpoint.connection import Begun, Grown, Unanswered, Whole
from helix_jobs.engine.endpoint.dialect import Asked, check_encoded, check_fields
from helix_jobs.engine.endpoint.partials import UnfinishedText
from helix_jobs.engine.protocol import EngineCounters, EngineInfo
from helix_jobs.engine.request import EncodedRequest, FinishReason, GenerationResult, Request
from helix_jobs.engine.sampling.mask_worker import MaskWorker
from helix_jobs.engine.sampling.output_grammar import OutputGrammar
from helix_jobs.engine.sampling.random_numbers import choice_seed
from helix_jobs.engine.text.final_result import final_result
from helix_jobs.engine.text.final_text import apply_stop_strings
from helix_jobs.engine.text.partial_text import UnfinishedOutput
from helix_jobs.engine.text.stop_strings import StopStringWatch
from helix_jobs.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.endpoint.connection import Connection, Event
    from helix_jobs.engine.endpoint.piece import Piece
    from helix_jobs.engine.endpoint.served_text import ServedText

# A step waits at most so long for something to come: requests and aborts that reach the worker wait for the step.
STEP_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndpointRequest(EncodedRequest):
    """An encoded request with the form of its answer, which the server is told."""

    constraint: Constraint | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """The choices of one request, and the results of those that have ended, by choice."""

    answers: tuple[Answering, ...]
    ended: dict[int, GenerationResult]


class EndpointEngine:
    """Asks a server for answers. Prompts are rendered and answers are read as Helix's own engine does it.

    Each choice of a request is asked for by itself. Trade-off: a server that shares no prompts computes a prompt for
    each choice; in return choices stream, end and are seeded alike with every kind of server.

    While the server is lost (``info.outage``), every request ends as aborted, and so goes back to the queue. Those that
    the server was computing when it was lost say so (``lost_with_server``), as one of them may be the cause.

    Args:
        connection: To the server; closed with the engine.
        text: The model's tokenizer and forms; closed with the engine.
        max_batch_size: Answers that are asked for at once.
        place: The server's address, for people.
    """

    energy = None

    def __init__(self, connection: Connection, text: ServedText, *, max_batch_size: int, place: str) -> None:
        self._connection = connection
        self._text = text
        self._max_batch_size = max_batch_size
        self._place = place
        # Never computes: grammars only judge what has come.
        self._masks = MaskWorker()
        self._numbers = itertools.count(1)
        self._groups: dict[str, _Group] = {}
        self._waiting: dict[Answering, None] = {}
        self._asked: dict[int, Answering] = {}
        self._ended: list[GenerationResult] = []
        self._grown: dict[Answering, None] = {}
        self._counters = EngineCounters()

    @property
    def info(self) -> EngineInfo:
        """The server and its model, as they were last seen."""
        server = self._connection.server
        return EngineInfo(
            target_model=server.model,
            draft_model=None,
            device=f"{server.in_words} at {self._place}",
            dtype="the server's",
            kernels="endpoint",
            speculation_depth=0,
            max_batch_size=self._max_batch_size,
            max_model_len=self._text.max_model_len,
            num_blocks=0,
            block_size=0,
            kv_cache_bytes=0,
            chat=self._text.forms.in_words,
            is_remote=True,
            outage=self._connection.outage,
        )

    def encode(self, request: Request) -> EncodedRequest:
        """Return the request with its prompt as tokens. Thread-safe.

        Raises:
            InvalidFieldError: The server cannot do what a field asks for.
            InvalidRequestError, PromptTooLongError: As ``RequestEncoding.encode``.
        """
        dialect = self._connection.server.dialect
        check_fields(request, dialect)
        constraint = request.constraint
        if constraint is not None:
            # The server decides on white space; what it has chosen is judged by the wider form.
            request = replace(request, constraint=replace(constraint, whitespace="model"))
        encoded = self._text.encoding.encode(request)
        check_encoded(encoded, dialect)
        values = {one.name: getattr(encoded, one.name) for one in fields(EncodedRequest)}
        return _EndpointRequest(**values, constraint=constraint)

    def add_request(self, request: EncodedRequest) -> None:
        """Queue an encoded request.

        Raises:
            InvalidRequestError: The request id is already in the engine.
        """
        if request.request_id in self._groups:
            raise already_held(request)
        choices = [
            request if choice == 0 else replace(request, seed=choice_seed(request.seed, choice), choice=choice)
            for choice in range(request.sampling_params.n)
        ]
        answers = tuple(map(self._answering, choices))
        self._groups[request.request_id] = _Group(answers, {})
        self._waiting.update(dict.fromkeys(answers))

    def abort(self, request_id: str) -> None:
        """End all choices of a request and close their connections; the next step returns its result."""
        group = self._groups.get(request_id)
        for answer in () if group is None else group.answers:
            if group is not None and answer.request.choice not in group.ended:
                answer.finish(FinishReason.ABORTED)
                self._end(answer)

    def has_unfinished(self) -> bool:
        """Whether requests or unreturned results are left."""
        return bool(self._groups or self._ended)

    def step(self) -> list[GenerationResult]:
        """Ask for answers where slots are free, take what has come, and return the requests that ended."""
        began = time.perf_counter()
        self._grown.clear()
        while self._waiting and len(self._asked) < self._max_batch_size:
            # The most urgent first; of equals max takes the one that came first.
            self._ask(max(self._waiting, key=lambda one: one.request.priority))
        in_flight = len(self._asked)
        asked_at = time.perf_counter()
        has_come = False
        for event in self._events(wait=bool(self._asked) and not self._ended):
            has_come = True
            self._take(event)
        self._count(
            steps=int(has_come),
            sequence_steps=in_flight if has_come else 0,
            schedule_seconds=asked_at - began,
            target_seconds=time.perf_counter() - asked_at,
        )
        ended, self._ended = self._ended, []
        return ended

    def partials(self) -> Iterator[UnfinishedOutput | UnfinishedText]:
        """The unfinished outputs that the last step has lengthened, of requests with a ``stream``."""
        for answer in self._grown:
            if answer.request.stream is None or answer.is_ended:
                continue
            if self._connection.server.dialect.has_token_ids:
                yield UnfinishedOutput(
                    answer.request, list(answer.output_token_ids), self._text.codec, self._text.forms
                )
            else:
                yield UnfinishedText(answer.request, tuple(answer.texts))

    def running(self) -> list[str]:
        """Ids of the requests with a choice that the server answers."""
        return list(dict.fromkeys(answer.request_id for answer in self._asked.values()))

    def counters(self) -> EngineCounters:
        """Totals since the engine was built."""
        return self._counters

    def close(self) -> None:
        """Close the connections and end the processes that encode. Safe to repeat."""
        self._groups.clear()
        self._waiting.clear()
        self._asked.clear()
        self._connection.close()
        self._text.close()
        self._masks.close()

    def _answering(self, request: EncodedRequest) -> Answering:
        params, text = request.sampling_params, self._text
        stop_ids = text.encoding.stop_ids(params, is_chat=request.is_chat)
        has_token_ids = self._connection.server.dialect.has_token_ids
        asked = Asked(
            request=request,
            prompt_text="" if has_token_ids else text.prompt_text(request.prompt_token_ids),
            max_tokens=min(params.max_tokens, text.max_model_len - len(request.prompt_token_ids)),
            stop_token_ids=stop_ids,
            constraint=request.constraint if isinstance(request, _EndpointRequest) else None,
        )
        grammar = None
        if request.grammar is not None:
            grammar = OutputGrammar(request.grammar, self._masks, stop_ids)
        watch = None
        if params.stop:
            watch = StopStringWatch(
                text.codec,
                params.stop,
                text.codec.context(request.prompt_token_ids),
                is_chat=request.is_chat and not request.continues,
                min_tokens=params.min_tokens,
                keeps_stop=params.include_stop_str_in_output,
            )
        return Answering(asked, grammar, watch)

    def _ask(self, answer: Answering) -> None:
        del self._waiting[answer]
        answer.ask = next(self._numbers)
        self._asked[answer.ask] = answer
        answer.begin()
        server = self._connection.server
        self._connection.ask(answer.ask, server.dialect.body(server.model, answer.asked))
        if answer.request.choice == 0:
            self._count(prompt_tokens=len(answer.request.prompt_token_ids))

    def _events(self, *, wait: bool) -> Iterator[Event]:
        """What has come; with ``wait`` the first of it is waited for a moment."""
        try:
            yield self._connection.events.get(timeout=STEP_SECONDS) if wait else self._connection.events.get_nowait()
            while True:
                yield self._connection.events.get_nowait()
        except queue.Empty:
            return

    def _take(self, event: Event) -> None:
        answer = self._asked.get(event.ask)
        if answer is None:  # it has ended meanwhile
            return
        match event:
            case Begun():
                answer.begin()
            case Grown(_, piece):
                self._grow(answer, piece)
            case Unanswered(_, None, was_computed):
                answer.lost_with_server = was_computed
                answer.finish(FinishReason.ABORTED)
                self._end(answer)
            case Unanswered(_, RequestError() as error):
                answer.fail(error)
                self._end(answer)
            case Whole(_, token_ids):
                if token_ids is not None and answer.stopped_text is None:
                    counted = answer.num_output_tokens
                    answer.replace_tokens(token_ids)
                    self._cut_at_stop_strings(answer, answer.num_output_tokens)
                    self._count(completion_tokens=max(0, answer.num_output_tokens - counted))
                answer.end()
                self._end(answer)

    def _grow(self, answer: Answering, piece: Piece) -> None:
        """Add a piece to an answer. One that has all it needs still waits for the connection's word that it counts."""
        was_ended = answer.is_ended
        num_new = answer.take(piece)
        num_new -= self._cut_at_stop_strings(answer, num_new)
        self._count(completion_tokens=num_new)
        self._grown[answer] = None
        if answer.is_ended and not was_ended and answer.ask is not None:
            self._connection.cut(answer.ask)

    def _cut_at_stop_strings(self, answer: Answering, num_new: int) -> int:
        """How many of an answer's new tokens a stop string has cut off."""
        if answer.watch is None or not num_new:
            return 0
        return apply_stop_strings(answer, answer.watch, num_new)

    def _end(self, answer: Answering) -> None:
        """Close an answer's connection and note its result; the last one of a request completes the request's."""
        self._waiting.pop(answer, None)
        if answer.ask is not None and self._asked.pop(answer.ask, None) is not None:
            self._connection.cancel(answer.ask)
        group = self._groups[answer.request_id]
        group.ended[answer.request.choice] = final_result(answer, self._text.codec, self._text.forms)
        self._count(cached_prompt_tokens=answer.cached_prompt_tokens if answer.request.choice == 0 else 0)
        if len(group.ended) == len(group.answers):
            del self._groups[answer.request_id]
            self._ended.append(joined([group.ended[choice] for choice in range(len(group.answers))]))
        elif answer.error is not None or answer.finish_reason is FinishReason.ABORTED:
            self.abort(answer.request_id)  # a choice that does not come ends the others

    def _count(self, **more: float) -> None:
        values = {name: getattr(self._counters, name) + value for name, value in more.items()}
        self._counters = replace(self._counters, **values)
