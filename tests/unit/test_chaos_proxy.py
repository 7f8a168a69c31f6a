"""The chaos proxy does what the fault suite says it does."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.chaos_proxy import ChaosProxy, Fault, Weather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Through = Callable[[Weather], tuple[ChaosProxy, socket.socket]]


@pytest.fixture
def through() -> Iterator[Through]:
    """Connects through a proxy to a server that says everything again."""
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = [listener]
    proxies: list[ChaosProxy] = []

    def echo(end: socket.socket) -> None:
        try:
            while data := end.recv(1000):
                end.sendall(data)
        except OSError:
            pass

    def connect(weather: Weather) -> tuple[ChaosProxy, socket.socket]:
        proxies.append(ChaosProxy(listener.getsockname()[1], weather, 1))
        near = socket.create_connection(("127.0.0.1", proxies[-1].port))
        near.settimeout(10)
        far, _ = listener.accept()
        opened.extend((near, far))
        threading.Thread(target=echo, args=(far,), daemon=True).start()
        return proxies[-1], near

    yield connect
    for proxy in proxies:
        proxy.close()
    for end in opened:
        end.close()


def test_in_calm_weather_and_late_everything_arrives(through: Through) -> None:
    for weather in (Weather(), Weather(latency=1.0, latest=0.001)):
        proxy, near = through(weather)
        near.sendall(b"hello")
        assert near.recv(100) == b"hello"
        assert proxy.faults[Fault.LATENCY] == (2 if weather.latency else 0)


def test_a_reset_is_seen_as_one(through: Through) -> None:
    proxy, near = through(Weather(reset=1.0))
    near.sendall(b"hello")
    with pytest.raises(ConnectionResetError):
        near.recv(100)
    assert proxy.faults == {Fault.RESET: 1}


def test_a_cut_lets_half_of_a_message_through(through: Through) -> None:
    proxy, near = through(Weather(cut=1.0))
    near.sendall(b"hello, you")
    assert near.recv(100) == b""  # the server heard "hello" and could not say it again
    assert proxy.faults[Fault.CUT] >= 1


def test_half_open_is_silence_without_an_end(through: Through) -> None:
    proxy, near = through(Weather(half_open=1.0))
    for _ in range(2):
        near.sendall(b"hello")
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        near.recv(100)
    proxy.calm()
    near.sendall(b"hello")
    with pytest.raises(TimeoutError):
        near.recv(100)
    assert proxy.faults == {Fault.HALF_OPEN: 1}


def test_faults_are_as_frequent_as_asked_and_the_same_for_a_seed() -> None:
    weather = Weather(latency=0.2, reset=0.1, cut=0.1, half_open=0.05)
    thrown = [[weather.throw(dice) for _ in range(10_000)] for dice in (random.Random(3), random.Random(3))]
    assert thrown[0] == thrown[1]
    counts = Counter(thrown[0])
    expected = {Fault.LATENCY: 2_000, Fault.RESET: 1_000, Fault.CUT: 1_000, Fault.HALF_OPEN: 500, None: 5_500}
    assert all(abs(counts[fault] - count) < 200 for fault, count in expected.items()), counts
