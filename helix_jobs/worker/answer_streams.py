"""AnswerStreams: sends the growth of answers to the servers that read them, on a thread of its own.

The engine's thread only leaves copies here. The text is made, and sent, beside it; of several copies of one answer only
the last is read.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.broker.token_channel import Growth, channel_of
from helix_jobs.errors import HelixError, without_text
from helix_jobs.worker.complaint import Complaint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from helix_jobs.broker.publisher import CeleryPublisher
    from helix_jobs.engine.partial_output import PartialOutput, PartialText

logger = logging.getLogger(__name__)

# Between two rounds: short against what a reader notices. A round that takes long is followed by a longer pause, so
# that all of it takes no more than a fifth of a processor.
_PAUSE_SECONDS: Final = 0.01
_PAUSE_PER_WORK: Final = 4.0
# After a broker's error.
_AFTER_ERROR_SECONDS: Final = 1.0
# A request's id, and which of its choices.
_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Sent:
    """How many characters a listener has."""

    reasoning: int = 0
    text: int = 0


class AnswerStreams:
    """Sends what answers with a ``stream`` have grown by.

    Args:
        publisher: The broker; a connection of this object's own.
    """

    def __init__(self, publisher: CeleryPublisher) -> None:
        self._publisher = publisher
        self._lock = threading.Lock()
        # The latest copy of each answer that has grown, and the requests that have ended since the last round.
        self._grown: dict[_Key, PartialOutput] = {}
        self._ended: set[str] = set()
        # The sending thread's own.
        self._sent: dict[_Key, _Sent] = {}
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._complaint = Complaint(logger)
        self._thread: threading.Thread | None = None

    def take(self, partials: Iterable[PartialOutput]) -> None:
        """Note answers that have grown. Returns at once; called by the engine's thread after each step."""
        for partial in partials:
            # The engine names further choices by their request and their number.
            request_id = partial.request.request_id.partition("#")[0]
            with self._lock:
                self._grown[request_id, partial.request.choice] = partial
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="helix-streams", daemon=True)
                self._thread.start()

    def forget(self, request_id: str) -> None:
        """A request has ended: whoever reads it finds the answer in the database. Called by the engine's thread."""
        with self._lock:
            self._ended.add(request_id)
        self._wanted.set()

    def close(self) -> None:
        """End the thread and close the connection."""
        self._stopping.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        self._publisher.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wanted.wait()
            self._wanted.clear()
            began = time.monotonic()
            with self._lock:
                grown, self._grown = self._grown, {}
                ended, self._ended = self._ended, set()
            try:
                self._send(grown)
            except HelixError as error:
                self._complaint.say(f"answers are not streamed, and come whole at their end: {error}")
                self._stopping.wait(_AFTER_ERROR_SECONDS)
            except Exception as error:  # one answer that cannot be sent must not end the thread that sends all
                logger.exception("a piece of an answer is not streamed", exc_info=without_text(error))
                self._stopping.wait(_AFTER_ERROR_SECONDS)
            else:
                self._complaint.end("answers are streamed again")
            self._sent = {key: sent for key, sent in self._sent.items() if key[0] not in ended}
            self._stopping.wait(max(_PAUSE_SECONDS, _PAUSE_PER_WORK * (time.monotonic() - began)))

    def _send(self, grown: Mapping[_Key, PartialOutput]) -> None:
        pieces = [(key, piece) for key, partial in grown.items() if (piece := self._piece(key, partial)) is not None]
        if not pieces:
            return
        names = self._publisher.names
        channels = [channel_of(names, str(grown[key].request.stream)) for key, _ in pieces]

        def publish(client: object) -> list[int]:
            pipeline = client.pipeline(transaction=False)  # type: ignore[attr-defined]  # kombu has no types
            for channel, (_, piece) in zip(channels, pieces, strict=True):
                pipeline.publish(channel, piece.to_message())
            received: list[int] = pipeline.execute()
            return received

        for (key, piece), listeners in zip(pieces, self._publisher.ask(publish), strict=True):
            # What nobody heard is sent again with the next piece, to a server that begins to listen.
            if listeners:
                self._sent[key] = _Sent(piece.reasoning_at + len(piece.reasoning), piece.text_at + len(piece.text))

    def _piece(self, key: _Key, partial: PartialOutput) -> Growth | None:
        try:
            found: PartialText = partial.read()
        except Exception as error:
            logger.debug("a growing answer cannot be read", exc_info=without_text(error))
            return None
        sent = self._sent.get(key, _Sent())
        reasoning, text = found.reasoning[sent.reasoning :], found.text[sent.text :]
        if not (reasoning or text):
            return None
        job_id, _, lease = key[0].partition(".")  # see engine_request_id
        return Growth(int(job_id), int(lease), key[1], sent.reasoning, reasoning, sent.text, text)
