"""Workload: a named kind of work, and the requests that make it up.

Prompts are built as a submitted job's would be (chat messages go through the model's chat template) and encoded once,
so that every mode and every peer reads the same token ids.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from helix_jobs.bench import prompts
from helix_jobs.bench.prompt_file import read_prompts
from helix_jobs.engine.request import EncodedRequest, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import ConfigurationError, InputError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    # A request's prompt as token ids, rendered and tokenised as the engine does it.
    Encode = Callable[[Request], tuple[int, ...]]

_T = TypeVar("_T")

_LONGEST_TEXT: Final = 1 << 20  # words


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """The user's choices for a workload; None takes the workload's own default.

    Attributes:
        batch_size: Batch slots of the engine; ``decode`` makes one request for each.
        sample: Number of requests.
        seed: Picks the prompts, by ``random.Random(seed).sample(pool, sample)``.
        max_tokens: Most new tokens of every request.
        prompt_tokens: Length of the prompt, or of its shared part.
        file: JSONL file to take prompts from.
    """

    batch_size: int
    sample: int | None = None
    seed: int = 7
    max_tokens: int | None = None
    prompt_tokens: int | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kind of work.

    Attributes:
        name: The name that the user types.
        summary: One line for the help page.
        requests: Default number of requests; 0 if the batch size decides.
        max_tokens: Default number of new tokens of a request.
        prompt_tokens: Default length of the prompts' long part; None if the prompts have their own lengths.
        reads_files: Whether prompts may come from a file.
        variants: Forms of the same work that are compared; most workloads have one, without a name.
        ignore_eos: Whether outputs run to their limit.
        prompts: Makes the prompts of given indices: ``prompts(indices, variant, prompt_tokens, encode)``.
    """

    name: str
    summary: str
    requests: int
    max_tokens: int
    prompts: Callable[[Sequence[int], str, int, Encode], list[Request]]
    prompt_tokens: int | None = None
    reads_files: bool = False
    variants: tuple[str, ...] = ("",)
    ignore_eos: bool = False


def build_requests(
    workload: Workload, options: WorkloadOptions, variant: str, encode: Encode
) -> tuple[EncodedRequest, ...]:
    """The encoded requests of a workload, in a fixed order and numbered from 0.

    Raises:
        InputError: The file is bad or too short for the sample.
        ConfigurationError: A request does not fit the model.
    """
    limit = options.max_tokens or workload.max_tokens
    if options.file is not None:
        made = _pick(read_prompts(options.file, limit), options.sample, options.seed, str(options.file))
        if options.max_tokens is not None:
            limited = [with_limit(request.sampling_params, options.max_tokens) for request in made]
            made = [replace(request, sampling_params=one) for request, one in zip(made, limited, strict=True)]
    else:
        count = options.sample or workload.requests or options.batch_size
        pool: Sequence[int] = range(count)
        if workload.reads_files:
            pool = _pick(range(prompts.NUM_TASKS), count, options.seed, "the built-in prompts")
        length = options.prompt_tokens or workload.prompt_tokens or 0
        params = SamplingParams(max_tokens=limit, ignore_eos=workload.ignore_eos)
        asked = workload.prompts(pool, variant, length, encode)
        made = [replace(request, sampling_params=params) for request in asked]
    return tuple(_encoded(number, request, encode) for number, request in enumerate(made))


def greedy(request: EncodedRequest) -> EncodedRequest:
    """The request as every peer can run it: greedy, ended by the model's end tokens or the limit alone."""
    params = request.sampling_params
    plain = SamplingParams(max_tokens=params.max_tokens, ignore_eos=params.ignore_eos)
    return replace(request, sampling_params=plain)


def _pick(pool: Sequence[_T], count: int | None, seed: int, where: str) -> Sequence[_T]:
    if count is None:
        return pool
    if count > len(pool):
        raise InputError(f"--sample {count} is more than the {len(pool)} prompts of {where}; ask for fewer")
    return random.Random(seed).sample(pool, count)  # noqa: S311  (reproducible, not secret)


def with_limit(params: SamplingParams, max_tokens: int) -> SamplingParams:
    """The same fields with another limit of new tokens, which the least number of them follows."""
    return replace(params, max_tokens=max_tokens, min_tokens=min(params.min_tokens, max_tokens))


def _encoded(number: int, request: Request, encode: Encode) -> EncodedRequest:
    try:
        ids = encode(request)
    except RequestError as error:
        raise ConfigurationError(f"request {number} of the workload: {error}") from error
    params, seed = request.sampling_params, request.seed
    return EncodedRequest(request_id=str(number), prompt_token_ids=ids, sampling_params=params, seed=seed)


def _plain(*, prompt: str | None = None, prompt_token_ids: tuple[int, ...] | None = None) -> Request:
    params = SamplingParams()
    return Request(request_id="", sampling_params=params, seed=0, prompt=prompt, prompt_token_ids=prompt_token_ids)


def _ask(*messages: dict[str, str]) -> Request:
    return Request(request_id="", sampling_params=SamplingParams(), seed=0, messages=messages)


def _question(content: str) -> Request:
    return _ask({"role": "user", "content": content})


def _smallest(at_least: int, size: Callable[[int], int]) -> int:
    """The smallest number of words whose ``size`` in tokens reaches ``at_least``."""
    high = 1
    while size(high) < at_least:
        high *= 2
        if high > _LONGEST_TEXT:
            raise ConfigurationError(
                "the tokenizer makes no tokens of plain English; this workload needs another model"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if size(middle) >= at_least else (middle, high)
    return high


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _bulk(indices: Sequence[int], _variant: str, _length: int, _encode: Encode) -> list[Request]:
    return [_question(prompts.task(index)) for index in indices]


def _decode(indices: Sequence[int], _variant: str, length: int, encode: Encode) -> list[Request]:
    """Plain texts cut to exactly ``length`` tokens, all different."""

    def ids(index: int, num_words: int) -> tuple[int, ...]:
        start = f"{prompts.TOPICS[index % len(prompts.TOPICS)].capitalize()}, chapter {index + 1}. "
        return encode(_plain(prompt=start + prompts.text(index, num_words)))

    num_words = _smallest(length, lambda number: min(len(ids(index, number)) for index in indices))
    return [_plain(prompt_token_ids=ids(index, num_words)[:length]) for index in indices]


def _shared_prefix(indices: Sequence[int], variant: str, length: int, encode: Encode) -> list[Request]:
    """Questions under one system prompt of ``length`` tokens; in the ``distinct`` variant each begins differently."""

    def ask(index: int, num_words: int, mark: str) -> Request:
        rules = f"{mark}You answer questions about this handbook. {prompts.text(0, num_words)}"
        question = f"{prompts.owner(index)}, asks for page {index + 1}. What do you say?"
        return _ask({"role": "system", "content": rules}, {"role": "user", "content": question})

    def shared(num_words: int) -> int:
        return _common(encode(ask(0, num_words, "")), encode(ask(1, num_words, "")))

    def mark(index: int) -> str:
        return f"{index + 1}: {prompts.owner(index)}. " if variant == "distinct" else ""

    num_words = _smallest(length, shared)
    return [ask(index, num_words, mark(index)) for index in indices]


def _repetitive(indices: Sequence[int], _variant: str, _length: int, _encode: Encode) -> list[Request]:
    return [_question(prompts.extraction(index)) for index in indices]


def _chat(indices: Sequence[int], _variant: str, _length: int, _encode: Encode) -> list[Request]:
    return [_ask(*prompts.conversation(index)) for index in indices]


def _long(indices: Sequence[int], _variant: str, length: int, encode: Encode) -> list[Request]:
    def ask(index: int, num_words: int) -> Request:
        return _question(f"Summarise this text in two sentences.\n\n{prompts.text(index, num_words)}")

    def made(index: int) -> Request:
        return ask(index, _smallest(length, lambda num_words: len(encode(ask(index, num_words)))))

    return [made(index) for index in indices]


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload(
            name="bulk",
            summary="Prompts of mixed length, answered to their natural end.",
            requests=96,
            max_tokens=128,
            prompts=_bulk,
            reads_files=True,
        ),
        Workload(
            name="decode",
            summary="One short prompt for each batch slot, a fixed number of new tokens.",
            requests=0,
            max_tokens=64,
            prompts=_decode,
            prompt_tokens=32,
            ignore_eos=True,
        ),
        Workload(
            name="shared-prefix",
            summary="Jobs under one long system prompt, beside the same jobs with a system prompt each.",
            requests=64,
            max_tokens=8,
            prompts=_shared_prefix,
            prompt_tokens=512,
            variants=("shared", "distinct"),
        ),
        Workload(
            name="repetitive",
            summary="Extraction and templates: answers that repeat the prompt.",
            requests=32,
            max_tokens=192,
            prompts=_repetitive,
        ),
        Workload(
            name="chat",
            summary="Conversations of one to three turns.",
            requests=32,
            max_tokens=128,
            prompts=_chat,
        ),
        Workload(
            name="long",
            summary="Long prompts, short answers.",
            requests=8,
            max_tokens=64,
            prompts=_long,
            prompt_tokens=1500,
        ),
    )
}
