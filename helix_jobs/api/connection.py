"""Connection: uvicorn's HTTP connection, with limits for clients that hold it without using it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

# How long a client may take for a request's line and headers.
HEAD_SECONDS: Final = 30.0
# How long a client may take nothing of an answer that waits for it.
TAKE_SECONDS: Final = 60.0


class Connection(H11Protocol):
    """One connection. uvicorn alone waits for ever for a first request, for the rest of its head, and for a reader.

    Requests that are being answered have no limit here: an answer takes as long as it takes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's own values)
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        super().data_received(data)
        self._watch_head()

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
