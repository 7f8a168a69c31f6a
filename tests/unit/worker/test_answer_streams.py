"""The growth of answers on its way to servers: only while they listen, and each piece once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.broker.queue_names import QueueNames
from helix_jobs.broker.token_channel import Growth
from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.worker.answer_streams import AnswerStreams
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUEST = EncodedRequest(
    request_id="7.1", prompt_token_ids=(1,), sampling_params=SamplingParams(), seed=0, stream="server"
)


@dataclass
class Output:
    """An output with this text."""

    text: str
    request: EncodedRequest = REQUEST
    error: Exception | None = None

    def read(self) -> PartialText:
        if self.error is not None:
            raise self.error
        return PartialText(self.text)


class Broker:
    """Stands for the publisher, with a channel on which a test listens or not."""

    names = QueueNames("i")

    def __init__(self) -> None:
        self.listeners = 1
        self.is_away = False
        self.heard: list[tuple[str, Growth]] = []
        self.rounds = 0
        self.closed = False

    def ask(self, question: Callable[[Any], Any]) -> Any:
        self.rounds += 1
        if self.is_away:
            raise BrokerUnreachableError("away")
        return question(self)

    def pipeline(self, *, transaction: bool) -> Broker:
        assert not transaction
        self._sent: list[tuple[str, Growth]] = []
        return self

    def publish(self, channel: str, message: bytes) -> None:
        growth = Growth.of_message(message)
        assert growth is not None
        self._sent.append((channel, growth))

    def execute(self) -> list[int]:
        if self.listeners:
            self.heard += self._sent
        return [self.listeners] * len(self._sent)

    def close(self) -> None:
        self.closed = True

    def text(self, job_id: int = 7) -> str:
        """What a listener has put together."""
        text = ""
        for _, growth in list(self.heard):
            if growth.job_id == job_id:
                assert growth.text_at == len(text), "no piece is missing or comes twice"
                text += growth.text
        return text


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def streams(broker: Broker) -> Iterator[AnswerStreams]:
    made = AnswerStreams(broker)  # type: ignore[arg-type]  # stands for it
    yield made
    made.close()
    assert broker.closed
    assert not any(thread.name == "helix-streams" for thread in threading.enumerate())


def test_pieces_follow_each_other(broker: Broker, streams: AnswerStreams) -> None:
    whole = "abcdefgh" * 5
    for end in range(1, len(whole) + 1):
        streams.take([Output(whole[:end])])
        if end % 8 == 0:
            wait_until(lambda end=end: broker.text() == whole[:end], "the text is heard so far")
    assert len(broker.heard) >= 5
    assert {channel for channel, _ in broker.heard} == {"helix.i.stream.server"}


def test_what_nobody_heard_is_sent_again_with_the_next_piece(broker: Broker, streams: AnswerStreams) -> None:
    broker.listeners = 0
    streams.take([Output("Elbe")])
    wait_until(lambda: broker.rounds, "it was sent")
    broker.listeners = 1
    streams.take([Output("Elbe and")])
    wait_until(lambda: broker.text() == "Elbe and", "all of it is heard")


def test_an_outage_costs_nothing_but_time(
    broker: Broker, streams: AnswerStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_jobs.worker.answer_streams._AFTER_ERROR_SECONDS", 0.01)
    broker.is_away = True
    streams.take([Output("Elbe")])
    wait_until(lambda: broker.rounds, "it was tried")
    broker.is_away = False
    streams.take([Output("Elbe and")])
    wait_until(lambda: broker.text() == "Elbe and", "all of it is heard")


def test_an_ended_request_is_forgotten_and_its_id_begins_anew(broker: Broker, streams: AnswerStreams) -> None:
    streams.take([Output("Elbe")])
    wait_until(lambda: broker.text() == "Elbe", "it is heard")
    streams.forget("7.1")
    wait_until(lambda: not streams._sent, "nothing is kept of it")
    broker.heard.clear()
    streams.take([Output("Rhine")])
    wait_until(lambda: broker.text() == "Rhine", "from its beginning")


def test_choices_and_requests_are_told_apart(broker: Broker, streams: AnswerStreams) -> None:
    second = replace(REQUEST, request_id="7.1#1", choice=1)
    other = replace(REQUEST, request_id="8.3", stream="another")
    streams.take([Output("a"), Output("b", second), Output("c", other)])
    wait_until(lambda: len(broker.heard) == 3, "all are heard")
    found = {(channel, growth.job_id, growth.lease, growth.choice, growth.text) for channel, growth in broker.heard}
    server, another = "helix.i.stream.server", "helix.i.stream.another"
    assert found == {(server, 7, 1, 0, "a"), (server, 7, 1, 1, "b"), (another, 8, 3, 0, "c")}


def test_an_answer_that_cannot_be_read_stops_no_other(broker: Broker, streams: AnswerStreams) -> None:
    other = replace(REQUEST, request_id="8.3")
    streams.take([Output("a", error=RuntimeError("a panic")), Output("c", other)])
    wait_until(lambda: broker.text(8) == "c", "the other is heard")
    assert broker.text() == ""
