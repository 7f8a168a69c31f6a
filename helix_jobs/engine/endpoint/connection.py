"""Connection: asks the server over HTTP, on a thread of its own, and puts what comes into a queue."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx2

from helix_jobs.engine.endpoint.answer_stream import CONNECT_SECONDS, StreamLimits, read_answer
from helix_jobs.engine.endpoint.faults import LONGEST_PAUSE, ServerBusyError, ServerLostError, ServerRefusesError
from helix_jobs.engine.endpoint.piece import Piece, UnreadableAnswerError
from helix_jobs.engine.endpoint.server import recognise, same_tokens
from helix_jobs.engine.endpoint.server_watch import FIRST_PAUSE, ServerWatch
from helix_jobs.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import TypeVar

    from helix_jobs.engine.endpoint.server import Server

    T = TypeVar("T")

logger = logging.getLogger(__name__)

# How often an answer is asked for that breaks off while the server goes on serving others.
MOST_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is.

    Attributes:
        url: Its address without ``/v1``.
        key: The key to show it; None for none.
        model: The model to ask for; None for the only one there.
    """

    url: str
    key: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Grown:
    """An answer goes on."""

    ask: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer is asked for, perhaps again: what came of it before does not count."""

    ask: int


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer has ended; ``token_ids`` are its text's, where it came as text or lacked tokens."""

    ask: int
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An answer does not come.

    Attributes:
        ask: Its number.
        error: What is wrong with its request; None where the server is lost.
        was_computed: The server was computing the answer when it was lost, and may be lost because of it.
    """

    ask: int
    error: RequestError | None = None
    was_computed: bool = False


Event = Begun | Grown | Whole | Unanswered


class Connection:
    """Holds the connections to one server. All methods may be called from any thread.

    Args:
        address: Where the server is.
        encode: Token ids of a text, without special tokens of the tokenizer's own; may take long.
        limits: How long things may take.
        first_pause: Seconds between the first two looks at a lost server, and before a busy one is asked again.

    Attributes:
        events: What has come, in its order.

    Raises:
        ServerLostError, ServerBusyError: The server does not answer yet.
        ServerRefusesError: The server does not take this worker, see ``recognise``.
    """

    def __init__(
        self,
        address: Address,
        encode: Callable[[str], tuple[int, ...]],
        *,
        limits: StreamLimits | None = None,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._encode = encode
        self._limits = limits or StreamLimits()
        self._first_pause = first_pause
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Answers that have all they need.
        self._cut: set[int] = set()
        # Answers whose request the server has had in full, and which have not come in full.
        self._computed: set[int] = set()
        # Monotonic time before which a busy server is not asked.
        self._not_before = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="helix-endpoint", daemon=True)
        self._thread.start()
        try:
            self._client, self._watch = self._call(self._open(address))
        except BaseException:
            self._end_loop()
            raise

    @property
    def server(self) -> Server:
        """The server as it was last seen."""
        return self._watch.server

    @property
    def outage(self) -> str | None:
        """Why the server cannot be asked; None while it can."""
        return self._watch.outage

    def has_tokens_of(self, text: str, token_ids: Sequence[int]) -> bool:
        """Whether the server splits a text into these tokens; True also where it does not tell.

        Raises:
            ServerLostError: It does not answer.
        """
        return self._call(same_tokens(self._client, self.server, text, token_ids))

    def ask(self, ask: int, body: Mapping[str, Any]) -> None:
        """Ask for an answer; ``events`` tells of it under this number."""
        self._loop.call_soon_threadsafe(self._start, ask, body)

    def cancel(self, ask: int) -> None:
        """Close an answer's connection, upon which the server ends it. No event of it comes that is not there yet."""

        def end() -> None:
            if (task := self._tasks.pop(ask, None)) is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(end)

    def cut(self, ask: int) -> None:
        """Take no more of an answer than the piece that comes next; its end comes as an event all the same."""
        self._loop.call_soon_threadsafe(self._cut.add, ask)

    def close(self) -> None:
        """Close all connections. Safe to repeat."""
        if self._loop.is_closed():
            return
        self._call(self._shut())
        self._end_loop()

    def _call(self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, address: Address) -> tuple[httpx2.AsyncClient, ServerWatch]:
        client = httpx2.AsyncClient(
            base_url=address.url,
            headers={} if address.key is None else {"Authorization": f"Bearer {address.key}"},
            timeout=httpx2.Timeout(self._limits.look, connect=CONNECT_SECONDS, pool=None),
            # The engine asks for no more answers at once than it has slots.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            # Prompts go to the address that the user gave, and nowhere else: no proxy or netrc of the environment.
            trust_env=False,
            follow_redirects=False,
        )
        try:
            server = await recognise(client, address.model)
        except BaseException:
            await client.aclose()
            raise
        # The model is asked for by its name from now on, also if the server later serves others beside it.
        watch = ServerWatch(client, server, server.model, self._drop_all, self._first_pause)
        return client, watch

    async def _shut(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch.close()
        await self._client.aclose()

    def _start(self, ask: int, body: Mapping[str, Any]) -> None:
        if self.outage is not None:
            self.events.put(Unanswered(ask))
            return
        self._tasks[ask] = self._loop.create_task(self._answer(ask, body))

    def _drop_all(self) -> None:
        """End all answers, as the server is lost. The one that found it out ends by itself, and after the others."""
        current = asyncio.current_task()
        for ask, task in list(self._tasks.items()):
            if task is not current:
                del self._tasks[ask]
                task.cancel()
                self.events.put(self._lost(ask))

    async def _answer(self, ask: int, body: Mapping[str, Any]) -> None:
        try:
            event: Event = await self._ended(ask, body)
        except Exception:
            logger.exception("an answer of the server could not be taken")
            event = Unanswered(ask, EngineError("an answer of the server could not be taken; see the worker's log"))
        finally:
            self._cut.discard(ask)
            self._computed.discard(ask)
        if self._tasks.pop(ask, None) is not None:
            self.events.put(event)

    async def _ended(self, ask: int, body: Mapping[str, Any]) -> Event:
        """Ask, perhaps several times, and return how it ended."""
        tries = 0
        pause = self._first_pause
        while True:
            await self._wait_for_leave()
            self.events.put(Begun(ask))
            self._cut.discard(ask)
            received = _Received()
            try:
                await self._read(ask, body, received)
                self._watch.answered()
                return Whole(ask, await self._missing_ids(received))
            except RequestError as error:
                return Unanswered(ask, error)
            except ServerRefusesError as error:
                self._watch.lose(str(error), has_failed=False)
                return Unanswered(ask)
            except ServerBusyError as error:
                self._computed.discard(ask)
                pause = min(LONGEST_PAUSE, 2 * pause)
                seconds = pause if error.seconds is None else max(self._first_pause, error.seconds)
                self._not_before = max(self._not_before, time.monotonic() + seconds)
                self._watch.doubt()
                if not await self._watch.is_trusted():
                    return Unanswered(ask)
            except (ServerLostError, UnreadableAnswerError) as error:
                # A server that dies may answer for a moment yet.
                await asyncio.sleep(self._first_pause)
                self._watch.doubt()
                if not await self._watch.is_trusted():
                    return self._lost(ask)
                tries += 1
                if tries >= MOST_TRIES:
                    reason = f"{error}, {tries} times, while it goes on serving others; `retry` asks again"
                    return Unanswered(ask, EngineError(reason))

    def _lost(self, ask: int) -> Unanswered:
        """The event of an answer that does not come because the server is lost."""
        return Unanswered(ask, was_computed=self._watch.has_failed and ask in self._computed)

    async def _wait_for_leave(self) -> None:
        """Wait while a busy server has asked to be left alone."""
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))

    async def _read(self, ask: int, body: Mapping[str, Any], received: _Received) -> None:
        """Hand on an answer's pieces.

        Raises:
            ServerLostError: Also if another server has made the answer.
        """

        def take(piece: Piece) -> bool:
            received.add(piece)
            self.events.put(Grown(ask, piece))
            # A server that ends the answer by itself leaves the connection of use for another one.
            return ask in self._cut and not received.has_end

        await read_answer(
            self._client,
            self.server.dialect,
            body,
            take=take,
            on_connect=self._watch.doubt,
            on_sent=lambda: self._computed.add(ask),
            limits=self._limits,
        )
        self._computed.discard(ask)
        if not await self._watch.is_trusted():
            raise ServerLostError("the server has changed meanwhile")

    async def _missing_ids(self, received: _Received) -> tuple[int, ...] | None:
        """The ids of an answer that came as text, or of which tokens are missing; None if all have come.

        Raises:
            EngineError: They cannot be had.
        """
        if self.server.dialect.has_token_ids and not received.lacks_tokens:
            return None
        if received.has_scores:
            raise EngineError(
                "the server left out the log probabilities of some tokens; remove logprobs, or run the line with "
                "Helix's own engine"
            )
        return await asyncio.to_thread(self._encode, "".join(received.texts)) if received.texts else ()


class _Received:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.num_ids = 0
        self.num_tokens: int | None = None
        self.has_scores = False
        self.has_end = False

    def add(self, piece: Piece) -> None:
        """Note one piece."""
        if piece.text:
            self.texts.append(piece.text)
        self.num_ids += len(piece.token_ids)
        self.num_tokens = piece.num_tokens if piece.num_tokens is not None else self.num_tokens
        self.has_scores = self.has_scores or bool(piece.scores)
        self.has_end = self.has_end or piece.finish is not None

    @property
    def lacks_tokens(self) -> bool:
        """Whether the server has made more tokens than it has sent, and has sent their text."""
        return self.num_tokens is not None and self.num_ids < self.num_tokens and bool(self.texts)
