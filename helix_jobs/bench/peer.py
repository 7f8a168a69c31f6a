"""Peer: another engine, run by its own interpreter, that answers the same prompts in the same call.

The process loads once and sleeps in a read between rounds, so that both sides can take turns on one machine. The files
that the job needs (a model's directory, a GGUF file) are looked up before the process starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from helix_jobs.bench.process_memory import peak_memory
from helix_jobs.child_process import ChildProcess
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from helix_jobs.engine.request import EncodedRequest

PEERS_FOLDER: Final = Path(__file__).with_name("peers")
# Name -> module in peers/
PEERS: Final = {
    "transformers": "transformers_peer",
    "assisted": "assisted_peer",
    "vllm": "vllm_peer",
    "openvino": "openvino_peer",
    "llama": "llama_peer",
}
READS_GGUF: Final = frozenset({"openvino", "llama"})
NEEDS_DRAFT: Final = frozenset({"assisted"})
# Compiling takes minutes on a small machine. A round takes as long as the user's workload, but must end.
_START_SECONDS: Final = 1800.0
_ROUND_SECONDS: Final = 4 * 3600.0
_EXIT_SECONDS: Final = 10.0
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 1 << 16


class PeerError(HelixError):
    """A peer could not be started, or died. The rest of the bench goes on.

    ``tail`` is the end of its standard error.
    """

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob:
    """The models and limits that a peer loads, sent as JSON on its standard input.

    Attributes:
        model: Directory of the target.
        gguf: The target as a GGUF file, or None.
        draft: Directory of the draft, or None.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        batch_size: Sequences that run at once.
        max_model_len: Prompt plus output tokens of the longest request.
        kv_cache_bytes: Keys and values of a full batch of such requests.
        num_threads: Threads Helix itself computes with.
    """

    model: str
    gguf: str | None
    draft: str | None
    dtype: str
    batch_size: int
    max_model_len: int
    kv_cache_bytes: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer's description of itself, sent once it has loaded."""

    version: str
    settings: dict[str, Any]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One round: its seconds, and the token ids of every output in the order of the requests, end tokens excluded.

    ``peak_memory_bytes`` is the most resident memory so far of the peer and of what it started, each at its own peak.
    """

    seconds: float
    outputs: tuple[tuple[int, ...], ...]
    peak_memory_bytes: int

    @property
    def output_tokens(self) -> int:
        """Emitted tokens."""
        return sum(map(len, self.outputs))

    @property
    def output_tokens_per_second(self) -> float:
        """Over the wall time of the round."""
        return self.output_tokens / self.seconds


class PeerProcess:
    """One running peer; a context manager that ends it with everything it started.

    Args:
        name: For messages.
        command: The program and its arguments.
        num_threads: Threads, set in the environment for libraries that read it when they load (OpenMP).
    """

    def __init__(self, name: str, command: Sequence[str], num_threads: int) -> None:
        self.name = name
        # A file instead of a pipe: it need not be emptied while the peer computes.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close())
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        try:
            self._process = ChildProcess(
                command,
                name=f"peer-{name}",
                on_line=self._lines.put,
                on_end=lambda _: self._lines.put(None),
                stderr=self._errors,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(
                f"peer {name}: {command[0]} cannot be run ({error.strerror}); name its interpreter with --peer-python"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def load(self, job: PeerJob, timeout: float = _START_SECONDS) -> PeerInfo:
        """Let the peer load; blocks until it is ready.

        Raises:
            PeerError: The peer ended, or is not ready after ``timeout`` seconds.
        """
        answer = self._ask(asdict(job), timeout)
        return PeerInfo(str(answer["version"]), dict(answer["settings"]), float(answer["load_seconds"]))

    def run(
        self, requests: Sequence[EncodedRequest], stop_token_ids: Sequence[int], timeout: float = _ROUND_SECONDS
    ) -> PeerRun:
        """Let the peer answer encoded requests greedily; blocks until it is done.

        Raises:
            PeerError: The peer ended, has no answer after ``timeout`` seconds, or emitted no token.
        """
        params = [request.sampling_params for request in requests]
        answer = self._ask(
            {
                "prompts": [list(request.prompt_token_ids) for request in requests],
                "max_tokens": [one.max_tokens for one in params],
                "ignore_eos": [one.ignore_eos for one in params],
                "stop_token_ids": list(stop_token_ids),
            },
            timeout,
        )
        memory = sum(map(peak_memory, _family(self._process.pid)))
        run = PeerRun(float(answer["seconds"]), tuple(tuple(ids) for ids in answer["outputs"]), memory)
        if not run.output_tokens:
            raise PeerError(f"peer {self.name} emitted no token", self._tail())
        return run

    def close(self) -> None:
        """End the process and all it started. Safe to repeat."""
        if self._errors.closed:
            return
        family = _family(self._process.pid)
        self._process.close_input()
        self._process.wait(_EXIT_SECONDS)
        # A process that outlives its parent is no longer listed as its child, hence the list made before.
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.join()
        self._errors.close()

    def _ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            self._process.send(json.dumps(question).encode() + b"\n")
        except OSError as error:
            raise self._ended() from error
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise PeerError(f"peer {self.name} has not answered for {timeout:.0f} s", self._tail()) from None
        if line is None:
            raise self._ended()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise PeerError(f"peer {self.name} answered with something that is not JSON", self._tail()) from error
        assert isinstance(answer, dict), "run.py answers with objects"
        return answer

    def _ended(self) -> PeerError:
        code = self._process.wait(_EXIT_SECONDS)
        return PeerError(f"peer {self.name} ended with exit code {code}", self._tail())

    def _tail(self) -> str:
        """The last lines of the peer's standard error."""
        size = self._errors.seek(0, 2)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        lines = self._errors.read().decode(errors="replace").splitlines()
        return "\n".join([line.rstrip() for line in lines if line.strip()][-_TAIL_LINES:])


def peer_command(name: str, python: str) -> list[str]:
    """The command line of a known peer."""
    return [python, str(PEERS_FOLDER / "run.py"), PEERS[name]]


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []
