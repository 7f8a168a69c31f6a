"""A real HTTP server that answers as vLLM, llama-server, llama-cpp-python or a plain server does, and fails as told.

It has no model: an answer is the prompt backwards, so that a test knows it. Faults are told one by one; each
request for an answer takes the next, and is answered well where there is none.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EOS = 0
MODEL = "served/model"


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with this status instead."""

    code: int
    body: Any = ""
    headers: tuple[tuple[str, str], ...] = ()


# Other faults, by name: what the server does in mid-answer.
CUT = "cut the connection"
DIE = "die"
GARBAGE = "send an event that is not JSON"
TRUNCATED = "end the stream without an end"
ENDLESS = "go on beyond the most tokens"
SILENT = "send one token and then nothing"
EMPTY = "send events without tokens, for ever"
HUGE = "send an event of 1.2 MB"
ERROR = "send an event that reports an error"
BAD_REQUEST = "send an event that reports a bad request"
LIMIT = "send an event that reports a limit of requests"
NO_STREAM = "send a page instead of a stream"
SPLIT = "leave out the second token, but not its text"

# Faults that are one event.
_EVENTS = {
    GARBAGE: "data: {not json\n\n",
    HUGE: f"data: {json.dumps({'choices': [], 'pad': 'x' * 1_200_000})}\n\n",
    ERROR: 'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n',
    BAD_REQUEST: 'data: {"error": {"message": "no such thing", "code": 400}}\n\n',
    LIMIT: 'data: {"error": {"message": "too many requests", "code": 429}}\n\n',
}


@dataclass(eq=False)
class FaultyServer:
    """See the module.

    Attributes:
        kind: ``vllm``, ``llama-server``, ``llama-cpp-python`` or ``openai``.
        text_of: The text of token ids, for the kinds that send text.
        models: The entries of ``/v1/models``.
        key: The key it asks for; None for none.
        faults: What the next requests for answers meet.
        asked: The bodies of all requests for answers.
        keys: The ``Authorization`` headers of these.
        released: Set to let silent answers go.
        deadly: Prompts over which it dies, each time.
        beside: For each time it met such a prompt, how many other answers were under way.
        under_way: Answers that it makes.
        engine_is_dead: It lists its models and answers nothing else, as vLLM does whose engine has died.
    """

    kind: str = "vllm"
    text_of: Callable[[Sequence[int]], str] = repr
    ids_of: Callable[[str], Sequence[int]] | None = None
    version: str = "0.11.2"
    models: list[dict[str, Any]] = field(default_factory=list)
    key: str | None = None
    context: int = 200
    faults: deque[Any] = field(default_factory=deque)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    connections: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    closed_early: threading.Event = field(default_factory=threading.Event)
    status: Status | None = None
    answers: dict[str, list[int]] = field(default_factory=dict)
    deadly: list[Any] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    engine_is_dead: bool = False
    under_way: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            owner = {"vllm": "vllm", "llama-server": "llamacpp"}.get(self.kind, "me")
            self.models = [{"id": MODEL, "object": "model", "owned_by": owner, "root": "/weights/one"}]
            if self.kind == "vllm":
                self.models[0]["max_model_len"] = self.context
        self._sockets: set[socket.socket] = set()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(_Handler):
            server_state = outer

        self._http = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Close the port and all connections, as the death of its process does."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        self.released.set()
        self.kill()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server_state: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server_state._sockets.add(self.connection)
        self.server_state.connections += 1

    def finish(self) -> None:
        self.server_state._sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        state = self.server_state
        if not self._may_enter():
            return
        paths: dict[str, Any] = {"/v1/models": {"object": "list", "data": state.models}}
        if state.kind == "vllm":
            paths |= {"/version": {"version": state.version}, "/health": ""}
        if state.kind == "llama-server":
            paths["/props"] = {
                "build_info": state.version,
                "model_path": state.models[0]["root"],
                "total_slots": 3,
                "default_generation_settings": {"n_ctx": state.context},
            }
        if state.kind == "llama-cpp-python":
            paths["/openapi.json"] = {"info": {"title": "llama.cpp Python API", "version": state.version}}
        if self.path == "/health" and state.engine_is_dead:
            self._send(Status(503))
            return
        self._send(Status(200, paths[self.path]) if self.path in paths else Status(404, {"detail": "Not Found"}))

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may_enter():
            return
        if self.path == "/tokenize":
            text = body.get("prompt", body.get("content"))
            known = state.ids_of is not None
            self._send(Status(200, {"tokens": list(state.ids_of(text))}) if known else Status(404))
            return
        state.asked.append(body)
        state.keys.append(self.headers.get("Authorization"))
        fault = state.faults.popleft() if state.faults else None
        if body["prompt"] in state.deadly:
            fault = DIE
            state.beside.append(state.under_way)
        if state.engine_is_dead:
            self._send(Status(500, "EngineCore died"))
        elif isinstance(fault, Status):
            self._send(fault)
        elif fault == NO_STREAM:
            self._send(Status(200, "<html>no</html>"))
        else:
            state.under_way += 1
            try:
                with suppress(OSError):
                    self._answer(body, fault)
            finally:
                state.under_way -= 1

    def _may_enter(self) -> bool:
        state = self.server_state
        if state.status is not None:
            self._send(state.status)
        elif state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}":
            self._send(Status(401, {"error": "Unauthorized"}))
        else:
            return True
        return False

    def _send(self, status: Status) -> None:
        data = status.body.encode() if isinstance(status.body, str) else json.dumps(status.body).encode()
        self.send_response(status.code)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *status.headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, body: dict[str, Any], fault: Any) -> None:
        state = self.server_state
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        prompt = body["prompt"]
        whole: list[Any] = [*reversed(prompt)]
        if (other := state.answers.get(str(prompt))) is not None:
            whole = list(other)
        most = body.get("max_tokens", body.get("n_predict"))
        if fault == ENDLESS:
            whole = (whole * (2 * most))[: 2 * most]
        elif not isinstance(prompt, str):
            whole.append(EOS)
        reason = "stop"
        stops = set(body.get("stop_token_ids", [EOS]))
        for number, token in enumerate(whole):
            is_end = token in stops if not isinstance(token, str) else False
            if number >= most and fault != ENDLESS:
                reason = "length"
                break
            self._token(token, number, hides=fault == SPLIT and number == 1)
            if is_end:
                break
            if number == 0 and fault is not None and not self._misbehave(fault):
                return
        self._end(reason, min(len(whole), most) if fault == ENDLESS else number + (reason == "stop"))

    def _misbehave(self, fault: Any) -> bool:
        """Do the fault behind the first token; whether the answer goes on."""
        if fault in (CUT, DIE):
            if fault == DIE:
                threading.Thread(target=self.server_state.kill).start()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return False
        if fault in _EVENTS:
            self._chunk(_EVENTS[fault])
        elif fault == TRUNCATED:
            self._chunk("")
            return False
        elif fault == EMPTY:
            while not self.server_state.released.wait(0.01):
                self._event({"choices": []})
            return False
        elif fault == SILENT:
            self.server_state.released.wait()
        return True

    def _token(self, token: Any, number: int, *, hides: bool = False) -> None:
        state = self.server_state
        if state.kind == "vllm":
            logprobs = {
                "tokens": [f"token_id:{token}"],
                "token_logprobs": [-0.5 - number],
                "top_logprobs": [{f"token_id:{token}": -0.5 - number, "token_id:1": -9.0}],
            }
            wants = state.asked[-1].get("logprobs") is not None
            choice = {"index": 0, "text": "?", "token_ids": [token], "logprobs": logprobs if wants else None}
            self._event({"model": MODEL, "choices": [{**choice, "finish_reason": None}]})
        elif state.kind == "llama-server":
            text = "" if token == EOS else state.text_of([token])
            event: dict[str, Any] = {"content": text, "tokens": [] if hides else [token], "stop": False}
            if "n_probs" in state.asked[-1]:
                tops = [{"id": token, "logprob": -0.5 - number}, {"id": 1, "logprob": -9.0}]
                event["completion_probabilities"] = [{**tops[0], "top_logprobs": tops}]
            self._event(event)
        else:
            self._event({"choices": [{"index": 0, "text": token, "logprobs": None, "finish_reason": None}]})

    def _end(self, reason: str, count: int) -> None:
        if self.server_state.kind == "llama-server":
            stop_type = {"stop": "eos", "length": "limit"}[reason]
            end = {"content": "", "tokens": [], "stop": True, "stop_type": stop_type, "tokens_predicted": count}
            self._event({**end, "timings": {"cache_n": 2}})
        else:
            self._event({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
            if self.server_state.kind == "vllm":
                usage = {"completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 2}}
                self._event({"choices": [], "usage": usage})
            self._chunk("data: [DONE]\n\n")
        self._chunk("")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.server_state.closed_early.set()
            raise
