"""ChaosProxy: a way to a server on which anything may happen to a connection, as seeded dice decide."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

_CHUNK_BYTES = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    """What may happen to a chunk, and with it to its connection."""

    LATENCY = "late"
    RESET = "reset"
    CUT = "cut in mid-message"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How likely each fault is for a chunk that is to be forwarded; calm by default.

    Attributes:
        latency: It is forwarded late, and what follows it too.
        latest: By so many seconds at most.
        reset: Both ends see their connection reset, and the chunk is lost.
        cut: Half of the chunk arrives, then both connections are closed.
        half_open: From now on nothing arrives in either direction, and neither end is told.
    """

    latency: float = 0.0
    latest: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    half_open: float = 0.0

    def throw(self, dice: random.Random) -> Fault | None:
        """Decide about one chunk."""
        number = dice.random()
        for fault, chance in (
            (Fault.HALF_OPEN, self.half_open),
            (Fault.RESET, self.reset),
            (Fault.CUT, self.cut),
            (Fault.LATENCY, self.latency),
        ):
            if number < chance:
                return fault
            number -= chance
        return None


@dataclass(slots=True)
class _Connection:
    """Both ends of one connection."""

    dice: random.Random
    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_dead: bool = field(default=False)

    def close(self) -> None:
        for end in self.ends:
            end.close()

    def reset(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.transport.abort()


class ChaosProxy:
    """Forwards to a port of this machine, in a thread of its own.

    Attributes:
        port: Where it listens.
        faults: How many of each there were.
        num_connections: How many it accepted.

    Args:
        port: Where to.
        weather: What may happen.
        seed: Of the dice; each connection has dice of its own, by its number.
    """

    def __init__(self, port: int, weather: Weather, seed: int) -> None:
        self.faults: Counter[Fault] = Counter()
        self.num_connections = 0
        self._target, self._weather, self._seed = port, weather, seed
        self._connections: list[_Connection] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def calm(self) -> None:
        """Nothing more happens; what is half-open stays so."""
        self._weather = Weather()

    def close(self) -> None:
        """End every connection and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next round

    async def _serve(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        dice = random.Random(f"{self._seed}, {self.num_connections}")
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            near.close()
            return
        connection = _Connection(dice, (near, far))
        self._connections.append(connection)
        with suppress(asyncio.CancelledError):  # the proxy's end; asyncio would log it
            await asyncio.gather(
                self._forward(connection, near_reader, far), self._forward(connection, far_reader, near)
            )

    async def _forward(
        self, connection: _Connection, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                if connection.is_dead:
                    continue
                fault = self._weather.throw(connection.dice)
                if fault is not None:
                    self.faults[fault] += 1
                match fault:
                    case Fault.HALF_OPEN:
                        connection.is_dead = True
                        continue
                    case Fault.RESET:
                        connection.reset()
                        return
                    case Fault.CUT:
                        target.write(data[: len(data) // 2])
                        break
                    case Fault.LATENCY:
                        await asyncio.sleep(connection.dice.uniform(0.0, self._weather.latest))
                target.write(data)
                await target.drain()
        if not connection.is_dead:
            connection.close()
