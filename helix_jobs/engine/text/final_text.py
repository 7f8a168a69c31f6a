"""An output's text: cut at stop strings, and read at the end. A request fails if its output cannot be decoded."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.reasoning import Phase, place_of, reasoning_end
from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.text.call_forms import read_calls, read_message_calls
from helix_jobs.engine.text.channels import messages_of, parts_of
from helix_jobs.errors import EngineError
from helix_jobs.exhaustion import is_shortage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.matcher import Grammar
    from helix_jobs.engine.reasoning import Place
    from helix_jobs.engine.request import EncodedRequest, GenerationResult
    from helix_jobs.engine.schedule.logprob_record import LogprobRecord
    from helix_jobs.engine.text.calls import Call
    from helix_jobs.engine.text.chat_forms import ChatForms
    from helix_jobs.engine.text.codec import Context, TextCodec
    from helix_jobs.engine.text.stop_strings import StopStringWatch
    from helix_jobs.errors import RequestError

logger = logging.getLogger(__name__)


def apply_stop_strings(sequence: EndedOutput, watch: StopStringWatch, num_new: int) -> int:
    """End the sequence at a stop string, if there is one; return the number of new tokens dropped.

    Stop strings count in the answer only, not in the thinking before it.

    Raises:
        MemoryError, OSError, RuntimeError: The machine is short of a resource; the request is not at fault.
    """
    answer = answer_ids(sequence)
    try:
        found = watch.find(answer, min(num_new, len(answer)), sequence.num_output_tokens - len(answer))
    except Exception as error:
        if is_shortage(error):
            raise
        fail(sequence, error)
        return 0
    if found is None:
        return 0
    num_tokens, sequence.stopped_text = found
    num_dropped = len(answer) - num_tokens
    sequence.truncate_output(sequence.num_output_tokens - num_dropped)
    sequence.finish(FinishReason.STOP)
    return num_dropped


class Output(Protocol):
    """What is read of an output: a sequence, or what stands for one."""

    @property
    def request(self) -> EncodedRequest:
        """What was asked for."""

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens."""

    @property
    def stopped_text(self) -> str | None:
        """The answer before a stop string; None without one."""


class Form(Protocol):
    """The form that an output must have, as it judges one: an ``OutputGrammar``."""

    @property
    def grammar(self) -> Grammar:
        """The compiled constraint."""

    def is_accepting(self, output_ids: SequenceOf[int], /) -> bool:
        """Whether the output has the form."""


class EndedOutput(Output, Protocol):
    """An output that may end here: a ``Sequence`` of Helix's own engine, or a server's answer."""

    stopped_text: str | None

    @property
    def request_id(self) -> str:
        """The choice's own id."""

    @property
    def num_output_tokens(self) -> int:
        """Length of the output."""

    @property
    def grammar(self) -> Form | None:
        """The form that it must have."""

    @property
    def error(self) -> RequestError | None:
        """Why it has failed."""

    @property
    def kept_stop_ids(self) -> frozenset[int]:
        """Tokens that end an output and stay at its end."""

    @property
    def logprobs(self) -> LogprobRecord | None:
        """The log probabilities of its tokens."""

    @property
    def prompt_logprobs(self) -> LogprobRecord | None:
        """The log probabilities of its prompt's tokens."""

    def truncate_output(self, num_output_tokens: int, /) -> None:
        """Forget output tokens past so many."""

    def finish(self, reason: FinishReason, /) -> None:
        """End with a reason."""

    def fail(self, error: RequestError, /) -> None:
        """End with an error."""

    def result(self, output_text: str, /) -> GenerationResult:
        """The result."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The parts of an output; see ``GenerationResult``."""

    text: str = ""
    reasoning_text: str | None = None
    reasoning_tokens: int | None = None


def result_of(sequence: EndedOutput, codec: TextCodec, forms: ChatForms | None = None) -> GenerationResult:
    """The result of an output that has ended: its answer, its thinking and its calls. See ``final_result``.

    Args:
        sequence: The request that has ended.
        codec: Decodes the output.
        forms: What the model writes beside words; None for nothing.

    Raises:
        Exception: The output cannot be decoded.
    """
    answer, found = read_answer(sequence, codec, forms)
    tools = sequence.request.tools
    # Trade-off: where one call was asked for, the first stays and the others go; refusing the answer would lose it.
    calls = _named(sequence, found if tools is None or tools.is_parallel else found[:1])
    result = replace(
        sequence.result(answer.text),
        reasoning_text=answer.reasoning_text,
        reasoning_tokens=answer.reasoning_tokens,
        tool_calls=calls or None,
    )
    is_call = calls and result.finish_reason is FinishReason.STOP
    return replace(result, finish_reason=FinishReason.TOOL_CALLS) if is_call else result


def read_answer(output: Output, codec: TextCodec, forms: ChatForms | None) -> tuple[Answer, list[Call]]:
    """The answer, the thinking and the calls of an output, which may be unfinished.

    Raises:
        Exception: The output cannot be decoded.
    """
    if forms is not None and forms.has_channels and output.request.is_chat:
        return _read_messages(output, codec)
    return _with_calls(output, _read(output, codec), codec, None if forms is None else forms.calls)


def _with_calls(sequence: Output, answer: Answer, codec: TextCodec, call_form: str | None) -> tuple[Answer, list[Call]]:
    """The answer's words and its calls, which stand in its text."""
    tools = sequence.request.tools
    if tools is None or call_form is None:
        return answer, []
    # Some models write the marks of their calls in special tokens.
    whole = answer.text if sequence.stopped_text is not None else codec.decode_all(answer_ids(sequence))
    words, found = read_calls(whole, call_form, tools.parameters)
    return (replace(answer, text=words), found) if found else (answer, [])


def _read_messages(sequence: Output, codec: TextCodec) -> tuple[Answer, list[Call]]:
    """The parts of an answer in messages, each of which has a channel."""
    request, output_ids = sequence.request, sequence.output_token_ids
    form = request.reasoning
    open_header = "" if form is None else form.opening if form.starts_open else None
    messages = messages_of(parts_of(output_ids, codec), open_header)
    thinking = "\n".join(filter(None, (message.text for message in messages if message.is_thought)))
    num_thought = None
    if form is not None:
        num_thought = len(_thought_ids(output_ids, place_of(output_ids, form), request))
    calls: list[Call] = []
    if sequence.stopped_text is not None:
        text = sequence.stopped_text
    else:
        calls = [] if request.tools is None else read_message_calls(messages, request.tools.parameters)
        words = [
            message.text if calls else message.shown
            for message in messages
            if not message.is_thought and not (calls and message.function is not None)
        ]
        text = words[0] if len(words) == 1 else "\n".join(filter(None, (word.strip() for word in words)))
    return Answer(text, thinking.strip("\n") or None, num_thought), calls


def _read(sequence: Output, codec: TextCodec) -> Answer:
    form, output_ids = sequence.request.reasoning, sequence.output_token_ids
    if form is None:
        if sequence.stopped_text is not None:
            return Answer(sequence.stopped_text)
        return Answer(codec.decode(output_ids, context_of(sequence.request, codec)))
    place = place_of(output_ids, form)
    if place.phase is Phase.UNDECIDED or (place.phase is Phase.ANSWER and not place.answer):
        text = sequence.stopped_text
        if text is None:
            text = codec.decode(output_ids, context_of(sequence.request, codec))
        return Answer(text, reasoning_tokens=0)
    thought = _thought_ids(output_ids, place, sequence.request)
    rest = "" if place.phase is Phase.THINKING else codec.decode(output_ids[place.answer :])
    if form.is_spelt:  # the end may begin and end within a token
        shown = output_ids if place.phase is Phase.ANSWER else output_ids[: place.start + len(thought)]
        before, _, after = codec.decode(shown).partition(form.end)
        reasoning, rest = before.lstrip().removeprefix(form.opening), after
    else:
        reasoning = codec.decode(thought).removeprefix(form.opening)
    if sequence.stopped_text is not None:
        rest = sequence.stopped_text
    # Templates write these line breaks around the thinking; they belong to neither part.
    return Answer(rest.lstrip("\n"), reasoning.strip("\n") or None, len(thought))


def context_of(request: EncodedRequest, codec: TextCodec) -> Context | None:
    """The end of the prompt that an output goes on from; None for a chat's answer, which is a text of its own."""
    return codec.context(request.prompt_token_ids) if request.continues or not request.is_chat else None


def _thought_ids(output_ids: list[int], place: Place, request: EncodedRequest) -> list[int]:
    """The tokens of the thinking. What follows a spent budget is its closing, which the output's end may have cut."""
    return output_ids[place.start : place.stop][: request.max_reasoning_tokens]


def answer_ids(sequence: Output) -> list[int]:
    """Output tokens behind the thinking; none while the model thinks."""
    form, output_ids = sequence.request.reasoning, sequence.output_token_ids
    if form is None:
        return output_ids
    start = reasoning_end(output_ids, form)
    return [] if start is None else output_ids[start:]


def _named(sequence: EndedOutput, calls: list[Call]) -> tuple[Mapping[str, Any], ...]:
    """The calls in OpenAI's form. An id is a function of prompt and output, so that a retried job has the same."""
    request = sequence.request
    root = repr((request.seed, request.prompt_token_ids, sequence.output_token_ids))
    return tuple(
        {
            "id": f"call_{hashlib.sha256(f'{root}{number}'.encode()).hexdigest()[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    )


def is_valid(sequence: EndedOutput) -> bool | None:
    """Whether an output that has ended has the form it was asked for; None if it was asked for none."""
    grammar = sequence.grammar
    if grammar is None:
        return None
    if sequence.error is not None:
        return False
    if sequence.stopped_text is None:
        ids = sequence.output_token_ids
        return grammar.is_accepting(ids[:-1] if ids and ids[-1] in sequence.kept_stop_ids else ids)
    # A stop string has cut the text, perhaps within a token.
    try:
        return grammar.grammar.accepts(sequence.stopped_text)
    except GrammarError:
        return False


def fail(sequence: EndedOutput, error: Exception) -> None:
    """End a request with an error, as its output cannot be read."""
    kind = type(error).__name__
    # Log only the error's type and traceback, as a library's message may quote the answer. A panic's own output on
    # standard error cannot be held back.
    logged = EngineError(kind).with_traceback(error.__traceback__)
    logger.error("the output of request %s cannot be decoded", sequence.request_id, exc_info=logged)
    sequence.fail(EngineError(f"the output cannot be decoded: {kind}"))
