"""The process that renders and tokenises prompts: a template and a tokenizer are untrusted.

``PromptEncoder`` runs ``python -m helix_jobs.engine.text.prompt_process``. It reads one JSON object a line from
standard input, the setup first, and answers each with one line. It imports neither torch nor transformers, so that it
starts in a tenth of a second and takes some 30 MB beside the tokenizer. ``bounded_child`` sets its limits.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.engine.text.bounded_child import begin, bound_memory, bound_time, send
from helix_jobs.engine.text.chat_template import ChatTemplate
from helix_jobs.engine.text.library_panics import panics_as_errors
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from helix_jobs.engine.text.thinking_arguments import thinking_arguments

if TYPE_CHECKING:
    from helix_jobs.engine.text.encoded_prompt import Thinking

Answer = dict[str, Any]


class PromptWorker:
    """Answers requests of one model, one after the other.

    Args:
        setup: ``tokenizer`` (its JSON), ``split_special_tokens``, ``bos_token``, ``template`` (None without one) and
            ``special_tokens`` for the template.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_str(setup["tokenizer"])
        # A tokenizer file may ask for truncation or padding; prompts get neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = setup["split_special_tokens"]
        self._bos_token: str | None = setup["bos_token"]
        self._bos_id = None if self._bos_token is None else self._tokenizer.token_to_id(self._bos_token)
        self._template: ChatTemplate | None = None
        self._damage = ""
        if setup["template"] is not None:
            try:
                added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
                self._template = ChatTemplate(setup["template"], setup["special_tokens"], added)
            except Exception as error:  # noqa: BLE001  (plain prompts are served without it)
                self._damage = type(error).__name__

    def ready(self) -> Answer:
        """The answer to the setup."""
        template = self._template
        if template is None:
            return {"damage": self._damage}
        markers = template.markers
        answer = {
            "damage": self._damage,
            **asdict(template.probe),
            "markers": None if markers is None else markers.name,
        }
        opening = "" if markers is None else markers.opening
        closings, headers = ((), ()) if markers is None else (markers.closings, markers.headers)
        return {
            **answer,
            "opening_ids": self._tokenize(opening, add_special_tokens=False),
            "closings": [self._tokenize(closing, add_special_tokens=False) for closing in closings],
            "header_starts": [self._tokenize(header, add_special_tokens=False)[0] for header in headers],
        }

    def answer(self, request: dict[str, Any]) -> Answer:
        """Token ids of a prompt, of options that continue it, or of words.

        Args:
            request: ``prompt``; or ``messages``, ``arguments``, ``tools``, ``continues`` and ``reasoning``; and
                ``most``, the most ids to return, or ``options``. Or ``words``.

        Returns:
            ``ids``, or only their ``count`` when there are more than ``most``; of options and of words, ``ids`` has a
            list for each. Of messages also ``thinking``: whether the prompt leaves it ``open``, ``closed`` or ``free``.
            Or ``refused``, the reason for none.
        """
        if "words" in request:
            return self._words(request["words"])
        thinking: Answer = {}
        try:
            with panics_as_errors():
                if "options" in request:
                    return {"ids": self._options(request)}
                if "prompt" in request:
                    ids = self._prompt(request["prompt"])
                else:
                    ids, thinking = self._chat(request)
        except RefusedMessagesError as error:
            return {"refused": str(error)}
        except MemoryError:
            return {"refused": "the prompt needs too much memory to be tokenised; shorten it"}
        except Exception as error:  # noqa: BLE001  (a tokenizer's errors may quote the prompt: its kind alone)
            return {"refused": f"the model's tokenizer fails on the prompt ({type(error).__name__}); change it"}
        most = request["most"]
        return {"ids": ids, **thinking} if most is None or len(ids) <= most else {"count": len(ids)}

    def _words(self, words: list[str]) -> Answer:
        try:
            with panics_as_errors():
                return {"ids": [self._tokenize(word, add_special_tokens=False) for word in words]}
        except MemoryError:
            return {"refused": "bad_words need too much memory to be tokenised; shorten them"}
        except Exception as error:  # noqa: BLE001  (a tokenizer's errors may quote a word: its kind alone)
            return {"refused": f"the model's tokenizer fails on bad_words ({type(error).__name__}); change them"}

    def _prompt(self, text: str) -> list[int]:
        ids = self._tokenize(text, add_special_tokens=True)
        # A prompt that begins with the BOS token's text has its own BOS token; a second would change the prompt.
        if self._bos_token and text.startswith(self._bos_token) and ids[:2] == [self._bos_id] * 2:
            return ids[1:]
        return ids

    def _chat(self, request: dict[str, Any]) -> tuple[list[int], Answer]:
        text, thinking = self._render(request)
        return self._tokenize(text, add_special_tokens=False), {"thinking": thinking}

    def _render(self, request: dict[str, Any]) -> tuple[str, Thinking]:
        """A chat's prompt, and what it leaves of the thinking."""
        template = self._template
        if template is None:
            raise RefusedMessagesError(
                f"the model's chat template is damaged ({self._damage}); submit a prompt instead of messages"
                if self._damage
                else "the model has no chat template; submit a prompt instead of messages"
            )
        reasoning = ReasoningOptions(**request["reasoning"])
        if reasoning.max_tokens is not None and template.markers is None:
            raise RefusedMessagesError(
                "max_reasoning_tokens: the model's chat template marks no thinking, so it would have no effect; remove "
                "it"
            )
        marks_thinking = template.markers is not None
        thinking = thinking_arguments(reasoning, template.variables, marks_thinking=marks_thinking)
        rendering = template.render(
            request["messages"],
            {**request["arguments"], **thinking},
            tools=request["tools"],
            continues=request["continues"],
        )
        return rendering.text, template.thinking(rendering)

    def _options(self, request: dict[str, Any]) -> list[list[int]]:
        """The tokens of each option behind the prompt's.

        Prompt and option are tokenised as one text, as they would stand in one. Where that changes the prompt's own
        tokens, because a word goes across the boundary, the option is tokenised apart.
        """
        is_plain = "prompt" in request
        text = request["prompt"] if is_plain else self._render(request)[0]
        before = self._tokenize(text, add_special_tokens=is_plain)
        found = []
        for option in request["options"]:
            whole = self._tokenize(text + option, add_special_tokens=is_plain)
            if whole[: len(before)] == before and len(whole) > len(before):
                found.append(whole[len(before) :])
            else:
                found.append(self._tokenize(option, add_special_tokens=False))
        return found

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Only the batch call can skip the offsets, which cost more than the ids.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids


def main() -> None:
    """Answer until standard input ends."""
    setup, requests, answers = begin()
    worker = PromptWorker(setup)
    bound_time(0)
    bound_memory(setup["memory_bytes"])
    send(answers, worker.ready())
    for line in requests:
        request = json.loads(line)
        bound_time(request["seconds"])
        send(answers, worker.answer(request))
        bound_time(0)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
