"""LineReader: turns input lines into validated jobs, as a stream.

Every line, whatever its bytes, becomes a ``NewJob`` or a ``BadLine``. The input is never held whole in memory.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import BadLine, InvalidFieldError, InvalidFieldsError
from helix_jobs.intake.acceptance_field import AcceptanceReader
from helix_jobs.intake.custom_ids import CustomIds
from helix_jobs.intake.forms import parse_job
from helix_jobs.intake.limits import NO_LIMITS, Limits
from helix_jobs.intake.line_faults import cut
from helix_jobs.intake.raw_lines import encode, split
from helix_jobs.intake.sampling_fields import SamplingReader
from helix_jobs.intake.strict_json import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from helix_jobs.acceptance.rule import AcceptanceRule
    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.intake.raw_lines import LineSource, RawLine, RejectSink
    from helix_jobs.new_job import NewJob


class LineReader:
    """Reads the lines of an input.

    Args:
        defaults: Sampling fields for lines that do not give them.
        limits: How large a line may be.
        rejects: Receives the unchanged bytes of bad lines, each ended by a newline.
        truncate_prompt: What to keep of a prompt that is too long, for lines that do not say.
        accept: The acceptance rule for lines that do not give theirs.
        constraint: The form of an answer, for lines that give none.
        endpoint: The endpoint that every line has to be for, as an OpenAI Batch line; None takes every form.

    Raises:
        InvalidFieldError: The rule's schema or regular expression cannot be used.
    """

    def __init__(
        self,
        defaults: SamplingParams,
        limits: Limits = NO_LIMITS,
        rejects: RejectSink | None = None,
        truncate_prompt: TruncatePrompt | None = None,
        accept: AcceptanceRule | None = None,
        *,
        constraint: Constraint | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._truncate_prompt = truncate_prompt
        self._acceptance = AcceptanceReader(accept)
        self._sampling = SamplingReader(defaults)
        self._limits = limits
        self._rejects = rejects
        self._constraint = constraint
        self._endpoint = endpoint

    def read(self, stream: LineSource) -> Iterator[NewJob | BadLine]:
        """Read JSONL from a binary stream: one ``NewJob`` or ``BadLine`` for each line that is not blank.

        At most one line (4 MiB) is held. A byte order mark on a line, CRLF and a missing last newline are tolerated.

        Args:
            stream: The lines, UTF-8.
        """
        return self._read(split(stream, self._rejects))

    def read_mappings(self, items: Iterable[Mapping[str, Any]]) -> Iterator[NewJob | BadLine]:
        """Like ``read``, for lines given as Python mappings; ``line`` is the position, from 1.

        Each mapping is converted to JSON text, so that the same rules hold and no object is shared with the caller.
        """
        return self._read(encode(items))

    def read_raw(self, lines: Iterable[RawLine]) -> Iterator[NewJob | BadLine]:
        """Like ``read``, for lines that somebody else has cut or made."""
        return self._read(lines)

    @property
    def rejects(self) -> RejectSink | None:
        """Receives the bytes of bad lines."""
        return self._rejects

    def _read(self, lines: Iterable[RawLine]) -> Iterator[NewJob | BadLine]:
        with closing(CustomIds()) as custom_ids:
            for raw in lines:
                try:
                    job = self._parse(raw)
                    if job.custom_id is not None:
                        custom_ids.add(job.custom_id, raw.number)
                except InvalidFieldError as error:
                    # The splitter has already written a line that was too long to hold.
                    data = raw.data if raw.original is None else raw.original
                    if self._rejects is not None and data:
                        self._rejects.write(data + b"\n")
                    yield _bad_line(raw.number, error)
                else:
                    yield job

    def _parse(self, raw: RawLine) -> NewJob:
        if raw.refusal is not None:
            raise raw.refusal
        values = decode(raw.data, first=raw.number == 1)
        job = parse_job(
            values,
            self._sampling,
            self._limits,
            line=raw.number,
            size=len(raw.data),
            acceptance=self._acceptance,
            constraint=self._constraint,
        )
        if self._endpoint not in (None, job.request.get("endpoint")):
            raise InvalidFieldError(
                "url", f"is not {self._endpoint}", "give every line the url of the batch's endpoint"
            )
        if self._truncate_prompt is not None:
            job.request.setdefault("truncate_prompt", self._truncate_prompt.to_dict())
        return job


def _bad_line(number: int, error: InvalidFieldError) -> BadLine:
    faults = error.faults if isinstance(error, InvalidFieldsError) else (error,)
    first, *others = (BadLine(number, fault.field or '""', cut(fault.reason), fault.remedy) for fault in faults)
    return replace(first, others=tuple(others)) if others else first
