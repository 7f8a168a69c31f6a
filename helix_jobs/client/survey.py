"""survey: reads a whole input as ``submit`` would, counts its tokens, and keeps a sample. Nothing is stored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.client.preview import engine_request
from helix_jobs.client.submit_source import open_input
from helix_jobs.errors import BadLine, PromptTooLongError, RequestError
from helix_jobs.forecast.work import JobShape, Thinned
from helix_jobs.intake.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helix_jobs.client.inputs import Input
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.client.spared_lines import SparedLines
    from helix_jobs.engine.request import EncodedRequest, Request
    from helix_jobs.forecast.prefix_savings import PrefixSavings
    from helix_jobs.new_job import NewJob
    from helix_jobs.settings import Settings
    from helix_jobs.tables.ask import TableAsk

# Bad lines and lines that the model refuses, of each so many are kept to be shown.
_SHOWN: Final = 1000
# Lines whose requests are kept to be tried.
_CANDIDATES: Final = 1024
_REPORT_EVERY: Final = 500


class Encoder(Protocol):
    """What encodes a request: an engine does."""

    def encode(self, request: Request) -> EncodedRequest:
        """The request with its prompt as tokens.

        Raises:
            RequestError: The model cannot take it.
        """


@dataclass(frozen=True, slots=True)
class Candidate:
    """A line that may be tried.

    Attributes:
        request: Its request, encoded.
        shape: Its shape.
        place: Its place among the good lines, from 0.
    """

    request: EncodedRequest
    shape: JobShape
    place: int


@dataclass(slots=True)
class Survey:
    """What an input holds.

    Attributes:
        lines: Lines that the model will answer.
        spared: Lines that take an answer which is there by then.
        answers: Answers that they ask for.
        prompt_tokens: Tokens of their prompts.
        shared_tokens: The part of ``prompt_tokens`` that the prefix cache will share.
        limit_tokens: Tokens of their answers at most.
        longest: Tokens of the longest prompt.
        bad_count: Lines that ``submit`` refuses.
        bad_lines: The first of them.
        too_long: Lines whose prompt does not fit the model's context.
        refused: Lines that the model cannot take for another reason.
        refusals: The first of both, as (line, reason).
        shapes: For each answer what it needs, thinned.
        candidates: Lines to try, thinned.
    """

    lines: int = 0
    spared: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    limit_tokens: int = 0
    longest: int = 0
    bad_count: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    too_long: int = 0
    refused: int = 0
    refusals: list[tuple[int, str]] = field(default_factory=list)
    shapes: Thinned[tuple[int, JobShape]] = field(default_factory=Thinned)
    candidates: Thinned[Candidate] = field(default_factory=lambda: Thinned(_CANDIDATES))

    def refuse(self, line: int, error: RequestError) -> None:
        """Count a line that the model cannot take."""
        if isinstance(error, PromptTooLongError):
            self.too_long += 1
        else:
            self.refused += 1
        if len(self.refusals) < _SHOWN:
            self.refusals.append((line, str(error)))

    def add(self, request: EncodedRequest, shared: int, context: int) -> None:
        """Count a line that the model will answer."""
        prompt = len(request.prompt_token_ids)
        limit = min(request.sampling_params.max_tokens, max(0, context - prompt))
        limit = 0 if request.score_choices is not None else limit
        shape = JobShape(prompt, prompt - shared, limit)
        choices = request.sampling_params.n
        for choice in range(choices):
            # Further answers share the prompt of the first.
            self.shapes.add((self.lines, shape if choice == 0 else JobShape(prompt, 1, limit)))
        self.candidates.add(Candidate(request, shape, self.lines))
        self.lines += 1
        self.answers += choices
        self.prompt_tokens += prompt
        self.shared_tokens += shared
        self.limit_tokens += limit * choices
        self.longest = max(self.longest, prompt)


def survey(
    settings: Settings,
    source: Input,
    defaults: LineDefaults,
    encoder: Encoder,
    *,
    savings: PrefixSavings,
    context: int,
    table: TableAsk | None = None,
    spared: SparedLines | None = None,
    on_reading: Callable[[str], None] | None = None,
    on_progress: Callable[[int], None] = lambda _lines: None,
) -> Survey:
    """Read an input and count.

    Args:
        settings: The limits of lines.
        source: As for ``HelixClient.submit``.
        defaults: For lines that do not say otherwise.
        encoder: Turns prompts into tokens, as a worker does.
        savings: The prefix cache.
        context: Prompt plus output tokens at most.
        table: What is asked of the source as a table; None for lines.
        spared: Says which lines nobody computes; None where all are.
        on_reading: Called with how a table is read.
        on_progress: Called with the number of lines so far.

    Raises:
        InputError: The input cannot be read, or a template cannot be used.
    """
    found = Survey()
    with ExitStack() as stack:
        lines = stack.enter_context(open_input(source, table, on_reading))
        reader = defaults.reader(Limits.of(settings))
        read: Iterable[NewJob | BadLine] = lines.read(reader)
        looked = ((line, False) for line in read) if spared is None else spared.look(read)
        for number, (line, is_spared) in enumerate(looked, start=1):
            if number % _REPORT_EVERY == 0:
                on_progress(number)
            if isinstance(line, BadLine):
                found.bad_count += 1
                if len(found.bad_lines) < _SHOWN:
                    found.bad_lines.append(line)
                continue
            if is_spared:
                found.spared += 1
                continue
            try:
                request = encoder.encode(engine_request(line))
            except RequestError as error:
                found.refuse(line.line, error)
            else:
                found.add(request, savings.add(request.prompt_token_ids, request.adapter), context)
                if spared is not None:
                    spared.compute_last()
    return found
