"""PromptEncoder: prompts and messages to token ids, in separate processes with limits.

A chat template is an untrusted program, and a tokenizer holds untrusted patterns. With an unlucky prompt either may
take hours or all memory, in C code that no thread can stop. Both therefore run in ``prompt_process``, and the engine's
thread, which decodes outputs, never waits for them.

Trade-off: one more process, of 30 MB beside its tokenizer, and some 0.2 ms a prompt for the round trip; in return
tokenising holds neither the worker's interpreter lock nor its processor.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.text.bounded_process import (
    BoundedProcess,
    ProcessEndedError,
    ProcessLimits,
    RequestAtFaultError,
)
from helix_jobs.engine.text.encoded_prompt import EncodedPrompt, FoundTemplate, Thinking
from helix_jobs.engine.text.template_probe import ContentForm, Probe, ToolProbe
from helix_jobs.errors import EngineError, ExhaustedError, InvalidRequestError, ModelError, PromptTooLongError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.chat_options import ReasoningOptions

logger = logging.getLogger(__name__)

# Seconds that a prompt waits for a free process before another process is started.
_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """Limits of encoding a prompt.

    With ordinary tokenizers a million characters take one to ten seconds, ten thousand messages less than one.

    Attributes:
        seconds: Processor time of any prompt; also for reading the tokenizer and probing the template.
        seconds_per_million_chars: Additional processor time, by the prompt's size.
        process: The other limits of a process.
        processes: Most processes; with the second, a long prompt does not hold up the others.
        bounds_itself: The process limits itself where its system can. The worker watches it in any case.
    """

    seconds: float = 10.0
    seconds_per_million_chars: float = 60.0
    process: ProcessLimits = field(default_factory=ProcessLimits)
    processes: int = 2
    bounds_itself: bool = True

    def seconds_for(self, num_chars: int) -> float:
        """Processor time for a prompt of this size."""
        return self.seconds + self.seconds_per_million_chars * num_chars / 1e6


DEFAULT_LIMITS: Final = PromptLimits()


class PromptEncoder:
    """Encodes prompts of one model. Thread-safe; processes are started when they are needed.

    Args:
        tokenizer: A fast tokenizer, which has a ``tokenizer.json``.
        limits: Limits of encoding a prompt; None for the default.
        name: The model's name, as the user gave it.

    Raises:
        ModelError: The tokenizer is not a fast tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, limits: PromptLimits | None = None, name: str = "served"
    ) -> None:
        self._name = name
        self._limits = limits or DEFAULT_LIMITS
        self._setup = _describe(tokenizer, self._limits, name)
        self._free: queue.LifoQueue[BoundedProcess] = queue.LifoQueue()
        self._processes: set[BoundedProcess] = set()
        self._lock = threading.Lock()
        self._num_closed = 0
        weakref.finalize(self, _end, self._processes)

    def probe(self) -> FoundTemplate | None:
        """What the chat template does; None without a template.

        Raises:
            ExhaustedError: The system cannot start a process.
            ModelError: Template or tokenizer exceed the limits in a first trial.
        """
        try:
            process = self._take()
        except ProcessEndedError as error:
            raise ModelError(
                f"model {self._name}: its tokenizer or chat template cannot be used: trying them, the process {error}; "
                "use another model, or put a sound chat template into its files"
            ) from error
        except (OSError, RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            raise ExhaustedError(explain_exhaustion(error)) from error
        self._free.put(process)
        ready = process.ready
        if ready["damage"]:
            logger.warning(
                "model %s: its chat template is damaged (%s); jobs with messages will fail", self._name, ready["damage"]
            )
        if "forms" not in ready:
            return None
        probe = Probe(
            tuple(ContentForm(form) for form in ready["forms"]), ready["after_answer"], ToolProbe(**ready["tools"])
        )
        return FoundTemplate(
            probe,
            ready["markers"],
            tuple(ready["opening_ids"]),
            tuple(map(tuple, ready["closings"])),
            tuple(ready["header_starts"]),
        )

    def encode_prompt(self, prompt: str, most: int | None = None) -> tuple[int, ...]:
        """Token ids of a plain prompt, the tokenizer's special tokens added.

        Args:
            prompt: The text.
            most: Most token ids allowed; None for any number.

        Raises:
            InvalidRequestError: The tokenizer fails on the prompt, or encoding exceeds the limits.
            PromptTooLongError: The prompt has more than ``most`` tokens.
            EngineError: The process was ended from outside, twice.
            OSError, RuntimeError, MemoryError: The system cannot start a process (see ``exhaustion``).
        """
        return tuple(self._encode({"prompt": prompt}, len(prompt), most)["ids"])

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        most: int | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        continues: bool = False,
        reasoning: ReasoningOptions | None = None,
    ) -> EncodedPrompt:
        """Token ids of messages, rendered with the model's chat template.

        Args:
            messages: As in ``ChatTemplate.render``.
            arguments: The request's own arguments for the template.
            most: Most token ids allowed; None for any number.
            tools: The functions that the answer may call.
            continues: The prompt ends with the last message's text.
            reasoning: What the request asks of thinking.

        Raises:
            InvalidRequestError: There is no template, the template refuses the messages or leaves one out, or encoding
                exceeds the limits.
            PromptTooLongError: The prompt has more than ``most`` tokens.
            EngineError: The process was ended from outside, twice.
            OSError, RuntimeError, MemoryError: The system cannot start a process (see ``exhaustion``).
        """
        chat, num_chars = _chat(messages, arguments, tools, reasoning, continues=continues)
        answer = self._encode(chat, num_chars, most)
        return EncodedPrompt(tuple(answer["ids"]), Thinking(answer["thinking"]))

    def encode_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of each of some texts, without the tokenizer's special tokens.

        Args:
            words: The texts.

        Raises:
            InvalidRequestError: The tokenizer fails on a text, or encoding exceeds the limits.
            EngineError: The process was ended from outside, twice.
            OSError, RuntimeError, MemoryError: The system cannot start a process (see ``exhaustion``).
        """
        answer = self._answer({"words": list(words)}, sum(map(len, words)), "these bad_words", "change them")
        return tuple(map(tuple, answer["ids"]))

    def encode_options(
        self,
        options: Sequence[str],
        *,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] | None = None,
        continues: bool = False,
        reasoning: ReasoningOptions | None = None,
    ) -> tuple[tuple[int, ...], ...]:
        """Token ids of texts that continue a prompt or a chat's generation prompt, see ``PromptWorker``.

        Args:
            options: The texts.
            prompt: The prompt, or None for messages.
            messages: As in ``encode_messages``.
            arguments: As in ``encode_messages``.
            continues: As in ``encode_messages``.
            reasoning: As in ``encode_messages``.

        Raises:
            InvalidRequestError: The prompt or an option cannot be encoded, or encoding exceeds the limits.
            EngineError: The process was ended from outside, twice.
            OSError, RuntimeError, MemoryError: The system cannot start a process (see ``exhaustion``).
        """
        question, num_chars = (
            ({"prompt": prompt}, len(prompt))
            if prompt is not None
            else _chat(messages, arguments or {}, (), reasoning, continues=continues)
        )
        # Each option is tokenised behind the whole prompt.
        num_chars = (1 + len(options)) * num_chars + sum(map(len, options))
        answer = self._answer({**question, "options": list(options)}, num_chars, "these choices", "shorten them")
        return tuple(map(tuple, answer["ids"]))

    def close(self) -> None:
        """End all processes and the prompts that use or await one. A later prompt starts a new process."""
        with self._lock:  # a process being started is either among them already or will not be started
            self._num_closed += 1
            doomed = set(self._processes)
            self._processes.clear()
        _end(doomed)

    def _encode(self, request: dict[str, Any], num_chars: int, most: int | None) -> dict[str, Any]:
        remedy = "shorten it, or submit a prompt instead of messages"
        answer = self._answer({**request, "most": most}, num_chars, "this prompt", remedy)
        if "count" in answer:
            raise PromptTooLongError(
                f"the prompt has {answer['count']} tokens and the context holds {(most or 0) + 1}, "
                "one new token included; shorten the prompt, or say with truncate_prompt what to keep of it"
            )
        return answer

    def _answer(self, request: dict[str, Any], num_chars: int, what: str, remedy: str) -> dict[str, Any]:
        """What a process answers; ``what`` and ``remedy`` stand in the error where it comes to no end."""
        seconds = self._limits.seconds_for(num_chars)
        own_seconds = seconds if self._limits.bounds_itself else 0
        line = json.dumps({**request, "seconds": own_seconds}).encode() + b"\n"
        num_closed = self._num_closed
        try:
            try:
                answer = self._ask(line, seconds)
            except RequestAtFaultError:
                raise
            except ProcessEndedError:  # killed by a user or for lack of memory, perhaps not because of this prompt
                if self._num_closed > num_closed:
                    raise
                answer = self._ask(line, seconds)
        except RequestAtFaultError as error:
            raise InvalidRequestError(
                f"the model's chat template or tokenizer does not come to an end with {what}: its process {error}; "
                f"{remedy}"
            ) from error
        except ProcessEndedError as error:
            raise EngineError(f"the process that tokenises prompts {error}; `retry` runs it again") from error
        if "refused" in answer:
            raise InvalidRequestError(answer["refused"])
        return answer

    def _ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        process = self._take()
        try:
            answer = process.ask(line, seconds)
        except Exception:
            self._drop(process)
            raise
        self._free.put(process)
        return answer

    def _take(self) -> BoundedProcess:
        """Take a free process: the one used last, a new one or, at the maximum, the next to become free.

        Raises:
            ProcessEndedError: The process cannot be started, or the encoder was closed meanwhile.
        """
        num_closed = self._num_closed
        while True:
            with self._lock:
                patience = _PATIENCE if self._processes else 0.0
            with suppress(queue.Empty):
                process = self._free.get(timeout=patience) if patience else self._free.get_nowait()
                if process.is_alive:
                    return process
                with self._lock:
                    self._processes.discard(process)
                continue
            with self._lock:
                if self._num_closed > num_closed:
                    raise ProcessEndedError("was closed")
                if len(self._processes) >= self._limits.processes:
                    continue
                try:
                    process = BoundedProcess("helix_jobs.engine.text.prompt_process", self._limits.process)
                except (OSError, RuntimeError, MemoryError) as error:
                    if not is_shortage(error):
                        raise ProcessEndedError(f"cannot be started ({error})") from error
                    if self._processes:
                        continue  # wait for the next free process instead
                    raise
                self._processes.add(process)
            try:
                process.start(self._setup, self._limits.seconds)
            except Exception:
                self._drop(process)
                raise
            return process

    def _drop(self, process: BoundedProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.kill()


def _describe(tokenizer: PreTrainedTokenizerBase, limits: PromptLimits, name: str) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not tokenizer.is_fast or backend is None:
        raise ModelError(
            f"model {name}: its tokenizer is a program of its own (a slow tokenizer), which is not served; convert it: "
            "load it with transformers' AutoTokenizer and use_fast=True, and save it as tokenizer.json"
        )
    setup = {
        "tokenizer": backend.to_str(),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "bos_token": tokenizer.bos_token,
        "template": _template_of(tokenizer),
        "special_tokens": tokenizer.special_tokens_map,
        "seconds": limits.seconds if limits.bounds_itself else 0,
        "memory_bytes": limits.process.memory_bytes if limits.bounds_itself else 0,
    }
    return json.dumps(setup, default=str).encode() + b"\n"


def _chat(
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]],
    reasoning: ReasoningOptions | None,
    *,
    continues: bool,
) -> tuple[dict[str, Any], int]:
    """A chat as its process reads it, and the characters in it."""
    plain = [dict(message) for message in messages]
    chat = {
        "messages": plain,
        "arguments": dict(arguments),
        "tools": list(tools),
        "continues": continues,
        "reasoning": {} if reasoning is None else reasoning.to_dict(),
    }
    return chat, sum(len(message["content"]) for message in plain) + _num_chars_beside(plain, tools)


def _num_chars_beside(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
    """Characters of tools, calls and thinking, of which most chats have none."""
    if not tools and not any("tool_calls" in message or "reasoning_content" in message for message in messages):
        return 0
    return len(json.dumps([*tools, *(message.get("tool_calls") for message in messages)])) + sum(
        len(message.get("reasoning_content", "")) for message in messages
    )


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several named templates, and none of them the default
        return None


def _end(processes: set[BoundedProcess]) -> None:
    with suppress(KeyError):  # the set is empty, perhaps because another thread took the last process
        while True:
            processes.pop().kill()
