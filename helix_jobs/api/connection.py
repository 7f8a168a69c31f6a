"""Connection: uvicorn's HTTP connection, with limits for clients that hold it without using it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from helix_jobs.api.request_memo import RequestMemo

# How long a client may take for a request's line and headers.
HEAD_SECONDS: Final = 30.0
# How long a client may take nothing of an answer that waits for it.
TAKE_SECONDS: Final = 60.0


class Connection(H11Protocol):
    """One connection. uvicorn alone waits for ever for a first request, for the rest of its head, and for a reader.

    Requests that are being answered have no limit here: an answer takes as long as it takes.

    A request that came before, byte for byte, is answered from the memo, and neither parsed nor routed.

    Args:
        memo: The requests that came before, on whatever connection.
    """

    def __init__(self, *args: Any, memo: RequestMemo, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's own values)
        super().__init__(*args, **kwargs)
        self._memo = memo
        # All bytes of the request that is being answered; None where they did not come alone and in one piece.
        self._head: bytes | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        is_alone = self._is_at_rest()
        if is_alone and (answer := self._memo.answer(data, self.server_state.default_headers)) is not None:
            self._answer_again(answer)
            return
        self._head = data if is_alone else None
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        # Both sides are done: the bytes were this request's, whole, without more behind them, and the connection stays.
        is_whole = self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE
        if self._head is not None and is_whole and not self.conn.trailing_data[0]:
            self._memo.note(self._head, self.scope["state"])
        self._head = None
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._take_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """The client has taken most of what was written."""
        super().resume_writing()
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that no request uses; what its client has not taken of the last answer may still wait."""
        super().timeout_keep_alive_handler()
        self._watch_taking()

    def _is_at_rest(self) -> bool:
        """Whether no request is being answered, none has begun, and the client takes what is written."""
        if self.flow.write_paused or self.transport.is_closing():
            return False
        is_answered = self.cycle is not None and not self.cycle.response_complete
        return not is_answered and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _answer_again(self, answer: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.transport.write(answer)
        self.server_state.total_requests += 1
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _watch_head(self) -> None:
        """Wait for a request's head, unless a request is being answered."""
        is_answered = self.cycle is not None and not self.cycle.response_complete
        if is_answered and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif not is_answered and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort_head)

    def _abort_head(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _watch_taking(self) -> None:
        if self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_SECONDS, self.transport.abort)
