"""The text of an unfinished output, as far as no later token changes it. ``final_text`` reads finished ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.reasoning import Phase, place_of
from helix_jobs.engine.request import RequestState
from helix_jobs.engine.text.final_text import read_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.text.chat_forms import ChatForms
    from helix_jobs.engine.text.codec import TextCodec


@dataclass(frozen=True, slots=True)
class UnfinishedOutput:
    """The tokens of an output so far; satisfies ``PartialOutput``, and is read like a finished output.

    Attributes:
        request: The request; of several choices, the choice's own.
        output_token_ids: The tokens.
        codec: Decodes them.
        forms: What the model writes beside words.
        stopped_text: None: an output that a stop string ended is finished.
    """

    request: EncodedRequest
    output_token_ids: list[int]
    codec: TextCodec = field(repr=False)
    forms: ChatForms | None = field(repr=False, default=None)
    stopped_text: None = None

    def read(self) -> PartialText:
        """See ``PartialOutput``.

        Nothing is shown while the model may still begin to think. No answer is shown where it may call functions: its
        words may turn out to be a call.
        """
        request = self.request
        form = request.reasoning
        phase = Phase.ANSWER if form is None else place_of(self.output_token_ids, form).phase
        if phase is Phase.UNDECIDED:
            return PartialText()
        answer, _ = read_answer(self, self.codec, self.forms)
        thought, text = answer.reasoning_text or "", "" if request.tools is not None else answer.text
        if self.forms is not None and self.forms.has_channels and request.is_chat:
            # Several messages are joined without the space around them, and one alone stands as it is.
            text = "" if text[:1].isspace() else text.rstrip()
            thought = thought.rstrip("\n")
        elif phase is Phase.THINKING and form is not None:
            return PartialText(reasoning=without_begun(thought, (form.end,)).rstrip("\n"))
        return PartialText(without_begun(text, request.sampling_params.stop), thought)


def unfinished_outputs(sequences: Iterable[Sequence], codec: TextCodec, forms: ChatForms) -> Iterator[UnfinishedOutput]:
    """Those of the sequences whose growth somebody reads, and that have not ended."""
    for sequence in sequences:
        if sequence.request.stream is not None and sequence.state is not RequestState.FINISHED:
            yield UnfinishedOutput(sequence.request, sequence.output_token_ids, codec, forms)


def without_begun(text: str, marks: Iterable[str]) -> str:
    """The text without an end that may be the beginning of a mark."""
    begun = max((_overlap(text, mark) for mark in marks), default=0)
    return text[: len(text) - begun]


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of the text that begins the mark, and is not all of it."""
    longest = min(len(text), len(mark) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(mark[:length])), 0)
