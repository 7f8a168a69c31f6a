"""The process in which prompts are rendered and tokenised: a template and a tokenizer are strangers' work.

``PromptEncoder`` runs ``python -m helix_jobs.engine.prompt_process``. It reads one JSON object a line from standard
input, the setup first, and answers each with one line. It imports neither torch nor transformers, so that it starts in
a tenth of a second and takes some 30 MB beside the tokenizer.

It bounds itself where the system can: a timer of processor time ends it in the middle of any C code, and a limit of its
address space turns too large an allocation into a MemoryError. Where there are none (Windows), the parent watches.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from tokenizers import Tokenizer

from helix_jobs.engine.chat_template import ChatTemplate, RefusedMessagesError

Answer = dict[str, Any]


class PromptWorker:
    """Answers requests of one model, one after the other.

    Args:
        setup: ``tokenizer`` (its JSON), ``split_special_tokens``, ``bos_token``, ``template`` (None without one) and
            ``special_tokens`` for the template.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_str(setup["tokenizer"])
        # A file may ask for them; a prompt is neither cut nor filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = setup["split_special_tokens"]
        self._bos_token: str | None = setup["bos_token"]
        self._bos_id = None if self._bos_token is None else self._tokenizer.token_to_id(self._bos_token)
        self._template: ChatTemplate | None = None
        self._damage = ""
        if setup["template"] is not None:
            try:
                self._template = ChatTemplate(setup["template"], setup["special_tokens"])
            except Exception as error:  # noqa: BLE001  (plain prompts are served without it)
                self._damage = type(error).__name__

    def ready(self) -> Answer:
        """The answer to the setup."""
        return {"damage": self._damage, **({} if self._template is None else asdict(self._template.probe))}

    def answer(self, request: dict[str, Any]) -> Answer:
        """Token ids of a prompt.

        Args:
            request: ``prompt``, or ``messages`` and ``arguments``; and ``most``: how many ids are of use.

        Returns:
            ``ids``, or only their ``count`` when there are more than ``most``; or ``refused``: why there are none.
        """
        try:
            ids = self._prompt(request["prompt"]) if "prompt" in request else self._chat(request)
        except RefusedMessagesError as error:
            return {"refused": str(error)}
        except MemoryError:
            return {"refused": "the prompt needs too much memory to be tokenised; shorten it"}
        except Exception as error:  # noqa: BLE001  (a tokenizer's errors may quote the prompt: its kind alone)
            return {"refused": f"the model's tokenizer fails on the prompt ({type(error).__name__}); change it"}
        most = request["most"]
        return {"ids": ids} if most is None or len(ids) <= most else {"count": len(ids)}

    def _prompt(self, text: str) -> list[int]:
        ids = self._tokenize(text, add_special_tokens=True)
        # A prompt that begins with the BOS token's text brings its own: two of them are another prompt.
        if self._bos_token and text.startswith(self._bos_token) and ids[:2] == [self._bos_id] * 2:
            return ids[1:]
        return ids

    def _chat(self, request: dict[str, Any]) -> list[int]:
        if self._template is None:
            raise RefusedMessagesError(
                f"the model's chat template is damaged ({self._damage}); submit a prompt instead of messages"
                if self._damage
                else "the model has no chat template; submit a prompt instead of messages"
            )
        return self._tokenize(
            self._template.render(request["messages"], request["arguments"]), add_special_tokens=False
        )

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # The batch of one is the only way without offsets, which cost more than the ids.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids


def main() -> None:
    """Answer until standard input ends."""
    requests, answers = _private_streams()
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a supervisor's goes to all; the parent says when it is over
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = json.loads(requests.readline())
    _bound_time(setup["seconds"])
    _bound_memory(setup["memory_bytes"])
    worker = PromptWorker(setup)
    _bound_time(0)
    _bound_memory(setup["memory_bytes"])
    _send(answers, worker.ready())
    for line in requests:
        request = json.loads(line)
        _bound_time(request["seconds"])
        _send(answers, worker.answer(request))
        _bound_time(0)


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for ourselves: what a library prints must not get between the answers."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def _send(answers: IO[bytes], answer: Answer) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _bound_time(seconds: float) -> None:
    """Let the system end this process after so much processor time; 0 takes the bound away."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _bound_memory(more_bytes: int) -> None:
    """Let allocations fail when the process has grown by so much from now on; 0 sets no bound."""
    if sys.platform == "linux" and more_bytes:
        import resource

        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  (no file, but the kernel's answer)
            now = int(statm.read().split()[0]) * resource.getpagesize()
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.RLIM_INFINITY))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
